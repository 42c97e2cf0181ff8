package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"converge/internal/kafkatest"
	"converge/internal/process"
	"converge/internal/sandbox"
)

// The end-to-end tests run the real binary, as its users do.

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "converge-e2e-")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "converge")
	out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building converge: %w\n%s", err, out)
	}
	return bin, nil
})

func binary(t *testing.T) string {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// running is a converge process in a process group of its own.
type running struct {
	t      *testing.T
	cmd    *exec.Cmd
	output *lockedBuffer
	done   <-chan struct{}
	base   string // http://host:port
}

// lockedBuffer collects what a process prints while a test reads it.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// start runs converge with the arguments, and --http.
func start(t *testing.T, http string, args ...string) *running {
	t.Helper()
	return launch(t, http, nil, append(args, "--http", http)...)
}

// launch runs converge with the arguments and, beside the test's own, the environment. http is where it
// will answer.
func launch(t *testing.T, http string, environment []string, args ...string) *running {
	t.Helper()
	return launchBinary(t, binary(t), http, environment, args...)
}

// launchBinary is launch for another build of converge.
func launchBinary(t *testing.T, binary, http string, environment []string, args ...string) *running {
	t.Helper()
	r := &running{t: t, output: &lockedBuffer{}, base: "http://" + http}
	r.cmd = exec.Command(binary, args...)
	r.cmd.Stdout, r.cmd.Stderr = r.output, r.output
	r.cmd.Env = append(os.Environ(), environment...)
	var err error
	if r.done, err = process.StartChild(r.cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.kill()
		if t.Failed() {
			t.Logf("converge %v printed:\n%s", args, tail(r.output.String(), 60))
		}
	})
	return r
}

// kill ends the whole process group at once, as kill -9 does, and waits.
func (r *running) kill() {
	select {
	case <-r.done:
	default:
		_ = syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL)
		<-r.done
	}
}

// interrupt is Ctrl-C; it returns the exit code.
func (r *running) interrupt() int {
	r.t.Helper()
	if err := r.cmd.Process.Signal(os.Interrupt); err != nil {
		r.t.Fatal(err)
	}
	return r.wait(60 * time.Second)
}

func (r *running) wait(limit time.Duration) int {
	r.t.Helper()
	select {
	case <-r.done:
		return r.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		r.t.Fatalf("still running after %v", limit)
		return -1
	}
}

func (r *running) ready() *running {
	r.t.Helper()
	eventually(r.t, 120*time.Second, func() error {
		select {
		case <-r.done:
			r.t.Fatalf("ended with code %d before it was ready", r.cmd.ProcessState.ExitCode())
		default:
		}
		return wants(http.StatusOK, r.get("/readyz"))
	})
	return r
}

// answer is an HTTP answer, or the error that stood in its place.
type answer struct {
	err    error
	status int
	header http.Header
	body   []byte
}

func (a answer) json(t *testing.T) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(a.body, &m); err != nil {
		t.Fatalf("answer %d is not JSON: %v: %s", a.status, err, a.body)
	}
	return m
}

func wants(status int, a answer) error {
	if a.err != nil {
		return a.err
	}
	if a.status != status {
		return fmt.Errorf("status %d, want %d: %s", a.status, status, a.body)
	}
	return nil
}

func (r *running) get(path string) answer { return r.do("GET", path, "", nil) }

func (r *running) do(method, path, body string, header map[string]string) answer {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var reader io.Reader
	if body != "" {
		reader = bytes.NewReader([]byte(body))
	}
	req, err := http.NewRequestWithContext(ctx, method, r.base+path, reader)
	if err != nil {
		return answer{err: err}
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return answer{err: err, status: res.StatusCode, header: res.Header, body: data}
}

// eventually runs check until it returns nil, and fails the test with its last error when limit passes.
func eventually(t *testing.T, limit time.Duration, check func() error) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not within %v: %v", limit, err)
		}
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func tail(text string, lines int) string {
	all := bytes.Split([]byte(text), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}

// broker is a Kafka of the test's own, to take away and to bring back.
type broker interface {
	Brokers() string
	Kill()    // at once, where it is a process of its own
	Restart() // where it was, on the data that is there
	Own() bool
}

// startKafka decides what the end-to-end tests run on: a real Kafka when it was asked for (make
// test-kafka), otherwise the embedded one, in the test's own process.
func startKafka(t *testing.T) broker {
	t.Helper()
	if kafkatest.Real() {
		return kafkatest.Start(t)
	}
	k := &embeddedKafka{t: t, dir: t.TempDir(), addr: freeAddr(t)}
	k.Restart()
	t.Cleanup(k.Kill)
	return k
}

type embeddedKafka struct {
	*sandbox.Kafka
	t         *testing.T
	dir, addr string
}

func (k *embeddedKafka) Brokers() string { return k.addr }
func (k *embeddedKafka) Kill()           { k.Close() }
func (k *embeddedKafka) Own() bool       { return true }

func (k *embeddedKafka) Restart() {
	k.t.Helper()
	var err error
	if k.Kafka, err = sandbox.StartKafka(sandbox.KafkaConfig{Dir: k.dir, Addr: k.addr}); err != nil {
		k.t.Fatal(err)
	}
}

// upArgs returns the arguments of an up that collides with nothing. Its Kafka, whose address is the fifth,
// is a real one when that was asked for: one for all of a test.
func upArgs(t *testing.T, dir string) []string {
	t.Helper()
	flag, addr := "--kafka", ""
	if kafkatest.Real() {
		flag, addr = "--brokers", kafkaOf(t)
	} else {
		addr = freeAddr(t)
	}
	return []string{"up", "--dir", dir, flag, addr, "--registry", freeAddr(t)}
}

var (
	kafkasMu sync.Mutex
	kafkas   = map[*testing.T]string{}
)

func kafkaOf(t *testing.T) string {
	t.Helper()
	kafkasMu.Lock()
	defer kafkasMu.Unlock()
	if kafkas[t] == "" {
		kafkas[t] = startKafka(t).Brokers()
	}
	return kafkas[t]
}

func (r *running) order(key, method string, quantity int) string {
	r.t.Helper()
	body := fmt.Sprintf(`{"customer_id":"c-1","items":[{"sku":"BOOK-1","quantity":%d}],"payment_method":%q}`, quantity, method)
	a := r.do("POST", "/orders", body, map[string]string{"Idempotency-Key": key})
	if err := wants(http.StatusAccepted, a); err != nil {
		r.t.Fatalf("POST /orders: %v", err)
	}
	id, _ := a.json(r.t)["id"].(string)
	if id == "" {
		r.t.Fatalf("POST /orders answered without an id: %s", a.body)
	}
	return id
}

// ends waits for the order's end and returns its reason.
func (r *running) ends(id, state string) string {
	r.t.Helper()
	var status map[string]any
	eventually(r.t, 60*time.Second, func() error {
		a := r.get("/orders/" + id + "/status")
		if err := wants(http.StatusOK, a); err != nil {
			return err
		}
		status = a.json(r.t)
		if got := status["state"]; got != state {
			return fmt.Errorf("order %s is %v, want %s: %s", id, got, state, a.body)
		}
		return nil
	})
	reason, _ := status["reason"].(string)
	return reason
}

func (r *running) available(sku string) float64 {
	r.t.Helper()
	a := r.get("/stock/" + sku)
	if err := wants(http.StatusOK, a); err != nil {
		r.t.Fatalf("GET /stock: %v", err)
	}
	n, _ := a.json(r.t)["available"].(float64)
	return n
}
