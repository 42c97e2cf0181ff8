package registry_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/sr"
	"github.com/twmb/franz-go/pkg/sr/srfake"

	"converge/consumers/event"
	"converge/schemas"
	"converge/schemas/registry"
)

func newClient(t *testing.T, url string, log *slog.Logger) *registry.Client {
	t.Helper()
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c, err := registry.New(url, log)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newFake(t *testing.T, opts ...srfake.Option) *srfake.Registry {
	t.Helper()
	r := srfake.New(opts...)
	t.Cleanup(r.Close)
	return r
}

func TestRegisteringTwiceGivesTheSameIDsAndGuardsTheSubjects(t *testing.T) {
	fake := newFake(t)
	first, err := newClient(t, fake.URL(), nil).Register(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second, err := newClient(t, fake.URL(), nil).Register(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	probe, err := sr.NewClient(sr.URLs(fake.URL()))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range schemas.Subjects() {
		id, ok := first.Types[s.EventType]
		if !ok || id != second.Types[s.EventType] {
			t.Errorf("%s: id %d, then %d", s.EventType, id, second.Types[s.EventType])
		}
		held, ok := fake.GetSchema(s.Name, 1)
		if !ok || held.ID != id {
			t.Errorf("%s: the registry holds id %d, want %d", s.Name, held.ID, id)
		}
		if _, ok := fake.GetSchema(s.Name, 2); ok {
			t.Errorf("%s: a second version appeared", s.Name)
		}
		if level := probe.Compatibility(t.Context(), s.Name)[0]; level.Err != nil || level.Level != sr.CompatBackwardTransitive {
			t.Errorf("%s: level %s, %v", s.Name, level.Level, level.Err)
		}
		if text, err := first.Schema(t.Context(), id); err != nil || text != s.Schema {
			t.Errorf("%s: schema %d is %q, %v", s.Name, id, text, err)
		}
	}
}

func TestValuesTravelBetweenProcesses(t *testing.T) {
	fake := newFake(t)
	writerIDs, err := newClient(t, fake.URL(), nil).Register(t.Context(), "OrderCancelled")
	if err != nil {
		t.Fatal(err)
	}
	if len(writerIDs.Types) != 1 {
		t.Errorf("only one type was asked for, got %v", writerIDs.Types)
	}
	_, contentType, value, err := schemas.NewCodec(schemas.Avro, writerIDs).Encode("OrderCancelled", schemas.OrderCancelled{OrderID: "o1"})
	if err != nil {
		t.Fatal(err)
	}
	reading := schemas.NewCodec(schemas.JSON, schemas.IDs{Schema: newClient(t, fake.URL(), nil).Schema})
	var got schemas.OrderCancelled
	if err := reading.Decode(t.Context(), "OrderCancelled", contentType, value, &got); err != nil || got.OrderID != "o1" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestAVersionThatCouldNoLongerBeReadStopsTheStart(t *testing.T) {
	fake := newFake(t)
	const subject = "orders-converge.orders.OrderCancelled"
	fake.SeedSchema(subject, 1, 70, sr.Schema{Schema: `{"type":"record","name":"OrderCancelled","namespace":"converge.orders","fields":[{"name":"id","type":"string"}]}`})
	fake.SeedSchema(subject, 2, 71, sr.Schema{Schema: schemas.Text("OrderCancelled")})
	_, err := newClient(t, fake.URL(), nil).Register(t.Context())
	var incompatible *registry.IncompatibleError
	if !errors.As(err, &incompatible) || incompatible.Subject != subject || incompatible.Version != 1 {
		t.Fatalf("got %v, want version 1 reported: every version counts, not the last alone", err)
	}
	if _, ok := fake.GetSchema(subject, 3); ok {
		t.Error("a version was registered all the same")
	}
}

func TestARegistryThatRefusesAVersionIsBelieved(t *testing.T) {
	fake := newFake(t)
	fake.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		w.WriteHeader(http.StatusConflict)
		_, _ = w.Write([]byte(`{"error_code":409,"message":"incompatible"}`))
		return true
	})
	_, err := newClient(t, fake.URL(), nil).Register(t.Context())
	var incompatible *registry.IncompatibleError
	if !errors.As(err, &incompatible) {
		t.Errorf("got %v, want an IncompatibleError", err)
	}
}

func TestRegisterWaitsForARegistryThatIsAwayAndSaysSoOnce(t *testing.T) {
	fake := newFake(t)
	var refusals atomic.Int32
	fake.Intercept(func(w http.ResponseWriter, _ *http.Request) bool {
		if refusals.Add(1) > 3 {
			return false
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	var lines bytes.Buffer
	client := newClient(t, fake.URL(), slog.New(slog.NewTextHandler(&lines, nil)))
	if _, err := client.Register(t.Context(), "OrderCancelled"); err != nil {
		t.Fatal(err)
	}
	if got := lines.String(); strings.Count(got, "schema registry is away") != 1 || strings.Count(got, "answers again") != 1 {
		t.Errorf("the log says\n%s", got)
	}
}

func TestWaitingForARegistryEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
	defer cancel()
	_, err := newClient(t, "http://"+closedPort(t), nil).Register(ctx)
	if event.Classify(err) != event.ClassInfrastructure {
		t.Errorf("class %s, want infrastructure: %v", event.Classify(err), err)
	}
}

func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestErrorsSayWhetherTheEventIsAtFault(t *testing.T) {
	answer := func(status int, body string) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		}))
		t.Cleanup(server.Close)
		return server.URL
	}
	for name, c := range map[string]struct {
		url  string
		want event.Class
	}{
		"unknown id":                  {newFake(t).URL(), event.ClassPermanent},
		"nobody listens":              {"http://" + closedPort(t), event.ClassInfrastructure},
		"wrong path":                  {newFake(t).URL() + "/nowhere", event.ClassInfrastructure},
		"no credentials":              {newFake(t, srfake.WithAuth("Bearer x")).URL(), event.ClassInfrastructure},
		"server error":                {answer(500, `{"error_code":50001}`), event.ClassInfrastructure},
		"not a registry":              {answer(200, `<html>`), event.ClassInfrastructure},
		"too many requests":           {answer(429, ``), event.ClassInfrastructure},
		"40403 is what says it":       {answer(404, `{"error_code":40403,"message":"gone"}`), event.ClassPermanent},
		"a proxy's 404 says nothing":  {answer(404, `not found`), event.ClassInfrastructure},
		"another 404 of the registry": {answer(404, `{"error_code":40401}`), event.ClassInfrastructure},
	} {
		_, err := newClient(t, c.url, nil).Schema(t.Context(), 999)
		if err == nil || event.Classify(err) != c.want {
			t.Errorf("%s: class %s, want %s: %v", name, event.Classify(err), c.want, err)
		}
	}
}

func TestAWrongPathStopsRegisterWithAHint(t *testing.T) {
	_, err := newClient(t, newFake(t).URL()+"/nowhere", nil).Register(t.Context())
	var refused *registry.RefusedError
	if !errors.As(err, &refused) || refused.Status != http.StatusNotFound || !strings.Contains(err.Error(), "/apis/ccompat/v7") {
		t.Errorf("got %v", err)
	}
}

func TestAPathInTheURLIsKept(t *testing.T) {
	fake := newFake(t)
	server := httptest.NewServer(http.StripPrefix("/apis/ccompat/v7", fake.Handler()))
	t.Cleanup(server.Close)
	if _, err := newClient(t, server.URL+"/apis/ccompat/v7", nil).Register(t.Context(), "OrderCancelled"); err != nil {
		t.Error(err)
	}
}

func TestOneRequestServesAllWhoWantOneSchema(t *testing.T) {
	fake := newFake(t)
	fake.SeedSchema("s", 1, 7, sr.Schema{Schema: `"string"`})
	var requests atomic.Int32
	var inside sync.Once
	arrived, release := make(chan struct{}), make(chan struct{})
	fake.Intercept(func(http.ResponseWriter, *http.Request) bool {
		requests.Add(1)
		inside.Do(func() { close(arrived) })
		<-release
		return false
	})
	client := newClient(t, fake.URL(), nil)
	var group sync.WaitGroup
	ask := func() {
		if text, err := client.Schema(t.Context(), 7); err != nil || text != `"string"` {
			t.Errorf("got %q, %v", text, err)
		}
	}
	group.Go(ask)
	<-arrived
	for range 20 {
		group.Go(ask)
	}
	close(release)
	group.Wait()
	if n := requests.Load(); n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}

func TestACallerWhoGivesUpTakesNobodyAlong(t *testing.T) {
	fake := newFake(t)
	fake.SeedSchema("s", 1, 7, sr.Schema{Schema: `"string"`})
	arrived, release := make(chan struct{}, 8), make(chan struct{})
	fake.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
		arrived <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
		return false
	})
	client := newClient(t, fake.URL(), nil)
	hasty, giveUp := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		if _, err := client.Schema(hasty, 7); !errors.Is(err, context.Canceled) {
			t.Errorf("who gave up got %v", err)
		}
	})
	<-arrived
	group.Go(func() {
		if text, err := client.Schema(t.Context(), 7); err != nil || text != `"string"` {
			t.Errorf("who stayed got %q, %v", text, err)
		}
	})
	giveUp()
	<-arrived // the second request, of the one who stayed
	close(release)
	group.Wait()
}

func TestCredentialsAreSentAndNeverShown(t *testing.T) {
	fake := newFake(t, srfake.WithAuth("Basic dXNlcjpzZWNyZXQ=")) // user:secret
	with := func(address string) string {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword("user", "secret")
		return u.String()
	}
	if _, err := newClient(t, with(fake.URL()), nil).Register(t.Context(), "OrderCancelled"); err != nil {
		t.Error(err)
	}
	_, err := newClient(t, with("http://"+closedPort(t)), nil).Schema(t.Context(), 1)
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
}

func TestNewRefusesWhatIsNoAddress(t *testing.T) {
	for _, address := range []string{"", "ftp://host", "http://", "http://%zz"} {
		if _, err := registry.New(address, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%q was taken", address)
		}
	}
}

// A registry that others wrote answers where the fake was only modelled on one.
func TestARealRegistryTakesTheSchemasAndKnowsUnknownIDs(t *testing.T) {
	address := os.Getenv("CONVERGE_TEST_REGISTRY")
	if address == "" {
		t.Skip("CONVERGE_TEST_REGISTRY names no registry to try, as in http://127.0.0.1:8081/apis/ccompat/v7")
	}
	client := newClient(t, address, nil)
	first, err := client.Register(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second, err := newClient(t, address, nil).Register(t.Context())
	if err != nil || !maps.Equal(first.Types, second.Types) {
		t.Fatalf("ids %v, then %v, %v", first.Types, second.Types, err)
	}
	probe, err := sr.NewClient(sr.URLs(address))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range schemas.Subjects() {
		text, err := newClient(t, address, nil).Schema(t.Context(), first.Types[s.EventType])
		if err != nil {
			t.Error(err)
		} else if err := errors.Join(schemas.Compatible(s.Schema, text), schemas.Compatible(text, s.Schema)); err != nil {
			t.Errorf("%s came back as another schema: %v", s.Name, err)
		}
		if level := probe.Compatibility(t.Context(), s.Name)[0]; level.Err != nil || level.Level != sr.CompatBackwardTransitive {
			t.Errorf("%s: level %s, %v", s.Name, level.Level, level.Err)
		}
		broken := strings.Replace(s.Schema, `"fields": [`, `"fields": [{"name": "added", "type": "string"},`, 1)
		if _, err := probe.RegisterSchema(t.Context(), s.Name, sr.Schema{Schema: broken}, -1, -1); err == nil {
			t.Errorf("%s: the registry took a version that cannot read the first", s.Name)
		}
	}
	var unknown *registry.UnknownSchemaError
	if _, err := client.Schema(t.Context(), 999_999); !errors.As(err, &unknown) {
		t.Errorf("an unknown id gave %v", err)
	}
}
