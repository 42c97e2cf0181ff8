package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/sr"
	"github.com/twmb/franz-go/pkg/sr/srfake"

	"converge/internal/opshttp"
)

// RegistryConfig says where the embedded schema registry lives.
type RegistryConfig struct {
	Dir  string // made if need be; the schemas that are there are served again, with their ids
	Addr string // host:port to listen on; port 0 takes a free one
}

// Registry is an embedded schema registry with the Confluent API: franz-go's srfake, which forgets
// everything, with a file behind it that does not.
type Registry struct {
	fake     *srfake.Registry
	file     string
	listener net.Listener

	mu sync.Mutex // one change at a time, each on disk before it is answered
}

// OpenRegistry loads what is there and takes the address. It answers while Serve runs.
func OpenRegistry(cfg RegistryConfig) (*Registry, error) {
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of the embedded registry: %w", err)
	}
	r := &Registry{fake: srfake.NewRegistry(srfake.WithGlobalCompat(sr.CompatBackwardTransitive)), file: filepath.Join(cfg.Dir, "schemas.json")}
	if err := r.load(); err != nil {
		return nil, err
	}
	listener, err := opshttp.Listen(cfg.Addr, "--registry")
	if err != nil {
		return nil, err
	}
	r.listener = listener
	return r, nil
}

// URL returns where clients find the registry.
func (r *Registry) URL() string { return "http://" + r.listener.Addr().String() }

// Serve answers until ctx ends.
func (r *Registry) Serve(ctx context.Context) error {
	return opshttp.Serve(ctx, r.listener, http.HandlerFunc(r.serve), time.Second)
}

// serve passes a request on; the answer to one that may have changed something waits for the disk.
func (r *Registry) serve(w http.ResponseWriter, request *http.Request) {
	if request.Method == http.MethodGet || request.Method == http.MethodHead {
		r.fake.Handler().ServeHTTP(w, request)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	answer := httptest.NewRecorder()
	r.fake.Handler().ServeHTTP(answer, request)
	if answer.Code < 300 {
		if err := r.save(); err != nil {
			http.Error(w, `{"error_code":50001,"message":"the change could not be written to disk"}`, http.StatusInternalServerError)
			return
		}
	}
	for name, values := range answer.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes()) // the client left: it asks again
}

// stored is one version of one subject, in the registry's own JSON.
type stored struct {
	Subject string `json:"subject"`
	Version int    `json:"version"`
	ID      int    `json:"id"`
	sr.Schema
}

func (r *Registry) load() error {
	text, err := os.ReadFile(r.file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var all []stored
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	if err != nil {
		return fmt.Errorf("reading the embedded registry's %s: %w", r.file, err)
	}
	for _, s := range all {
		r.fake.SeedSchema(s.Subject, s.Version, s.ID, s.Schema)
	}
	return nil
}

// save writes every version of every subject, as the registry itself tells them.
func (r *Registry) save() error {
	var subjects []string
	if err := r.ask("/subjects", &subjects); err != nil {
		return err
	}
	all := []stored{}
	for _, subject := range subjects {
		var versions []int
		base := "/subjects/" + url.PathEscape(subject) + "/versions"
		if err := r.ask(base, &versions); err != nil {
			return err
		}
		for _, version := range versions {
			var s stored
			if err := r.ask(fmt.Sprintf("%s/%d", base, version), &s); err != nil {
				return err
			}
			all = append(all, s)
		}
	}
	text, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		return fmt.Errorf("writing the embedded registry's schemas: %w", err)
	}
	return replace(r.file, text)
}

func (r *Registry) ask(path string, into any) error {
	answer := httptest.NewRecorder()
	r.fake.Handler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, nil))
	if answer.Code != http.StatusOK {
		return fmt.Errorf("asking the embedded registry for %s: status %d", path, answer.Code)
	}
	if err := json.NewDecoder(bytes.NewReader(answer.Body.Bytes())).Decode(into); err != nil {
		return fmt.Errorf("asking the embedded registry for %s: %w", path, err)
	}
	return nil
}

// replace puts text in the file's place so that a crash leaves the old or the new one, whole.
func replace(path string, text []byte) error {
	fresh := path + ".new"
	file, err := os.Create(fresh)
	if err != nil {
		return fmt.Errorf("replacing %s: %w", path, err)
	}
	_, err = file.Write(text)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		return fmt.Errorf("replacing %s: %w", path, err)
	}
	return nil
}
