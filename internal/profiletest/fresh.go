package profiletest

import (
	"context"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"converge/consumers/readmodel"
	"converge/internal/opshttp"
	"converge/producers/httpapi"
	"converge/schemas"
)

// Many readers wait for several versions; each gets the one that its token names, or a newer one, as soon as it is
// there, whether or not there was a profile when it came.
func waits(t *testing.T, f Follower) {
	w := f.World(t)
	type reading struct {
		version int64
		rec     *httptest.ResponseRecorder
	}
	answers := make(chan reading)
	const readers = 30
	for i := range readers {
		version := int64(i%3 + 1)
		go func() {
			answers <- reading{version, w.get("u-1", "Consistency-Token", w.api.Token("profiles/u-1", version), "Prefer", "wait=30")}
		}()
	}
	began := time.Now()
	for version := range int64(3) {
		if err := w.Deliver(t.Context(), Updated(t, "u-1", version+1)); err != nil {
			t.Fatal(err)
		}
		for range readers / 3 {
			a := <-answers
			if shown := version + 1; a.rec.Code != 200 || a.version > shown || a.rec.Header().Get("Preference-Applied") != "wait=30" {
				t.Errorf("version %d is there, and who waits for %d gets %d %v %s", shown, a.version, a.rec.Code, a.rec.Header(), a.rec.Body)
			}
		}
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("three versions took %v to be seen", took)
	}
	if rec := w.get("u-1", "Consistency-Token", w.api.Token("profiles/u-1", 2)); rec.Code != 200 || rec.Header().Get("Read-Model-Version") != "3" || rec.Header().Get("Preference-Applied") != "" {
		t.Errorf("what is there already: %d %v", rec.Code, rec.Header())
	}
}

// Reads that wait leave room for others, up to a bound of their own; and a server that drains ends their wait with
// what there is. Whoever waited on would be cut off.
func waitsAside(t *testing.T, f Follower) {
	w := f.World(t)
	if err := w.Deliver(t.Context(), Updated(t, "u-1", 1)); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	api, err := httpapi.New(httpapi.Config{MaxInFlight: 1, MaxWaiting: 2, Registerer: registry})
	if err != nil {
		t.Fatal(err)
	}
	f.New(w.Pool, schemas.NewCodec(schemas.JSON, schemas.IDs{})).Routes(api)
	l, err := opshttp.Listen("127.0.0.1:0", "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- opshttp.Serve(ctx, l, api, 15*time.Second) }()
	waiting := map[string]int{"wait=30": 200, "wait=30, handling=strict": 503}
	var answered sync.WaitGroup
	n := 0
	for prefer, code := range waiting {
		answered.Go(func() {
			r, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+l.Addr().String()+f.Path+"/u-1", nil)
			if err != nil {
				t.Error(err)
				return
			}
			r.Header.Set("Consistency-Token", api.Token("profiles/u-1", 2))
			r.Header.Set("Prefer", prefer)
			rec, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Errorf("%s: %v", prefer, err)
				return
			}
			rec.Body.Close()
			if rec.StatusCode != code || rec.Header.Get("Read-Model-Version") != "1" {
				t.Errorf("%s: %d %v", prefer, rec.StatusCode, rec.Header)
			}
		})
		for n++; waitingRequests(t, registry) < n; { // one by one: while it is processed it takes the one place
			runtime.Gosched()
		}
	}
	if rec := w.ask(api, "GET", "u-1"); rec.Code != 200 {
		t.Errorf("two wait and one asks: %d %s", rec.Code, rec.Body)
	}
	if rec := w.ask(api, "GET", "u-1", "Consistency-Token", api.Token("profiles/u-1", 2)); rec.Code != 429 || rec.Header().Get("Retry-After") != "1" {
		t.Errorf("one too many waits: %d %v", rec.Code, rec.Header())
	}
	if rec := w.ask(api, "GET", "u-1", "Consistency-Token", api.Token("profiles/u-1", 1)); rec.Code != 200 {
		t.Errorf("what is there needs no wait: %d %s", rec.Code, rec.Body)
	}
	stop()
	answered.Wait()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func waitingRequests(t *testing.T, registry *prometheus.Registry) int {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == "converge_api_waiting_requests" {
			return int(family.GetMetric()[0].GetGauge().GetValue())
		}
	}
	t.Fatal("no gauge says how many wait")
	return 0
}

// A reader whose time is over gets what is there, or read-model-lagging: when nothing is there, and when it is strict.
func stale(t *testing.T, f Follower) {
	w := f.World(t)
	lagging := func(rec *httptest.ResponseRecorder) bool {
		return rec.Code == 503 && rec.Header().Get("Retry-After") == "1" && rec.Header().Get("Read-Model-Lag") != "" &&
			strings.Contains(rec.Body.String(), "/problems/read-model-lagging")
	}
	now := "wait=0"
	token := func(version int64) string { return w.api.Token("profiles/u-1", version) }
	for _, prefer := range []string{now, now + ", handling=strict", now + ", handling=lenient"} {
		if rec := w.get("u-1", "Consistency-Token", token(1), "Prefer", prefer); !lagging(rec) || rec.Header().Get("Read-Model-Version") != "0" {
			t.Errorf("%s, and nothing is there: %d %v %s", prefer, rec.Code, rec.Header(), rec.Body)
		}
	}
	if rec := w.get("u-1"); rec.Code != 404 || rec.Header().Get("Read-Model-Version") != "0" {
		t.Errorf("without a token nobody waits: %d %v", rec.Code, rec.Header())
	}
	if err := w.Deliver(t.Context(), Updated(t, "u-1", 2)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		version         int64
		prefer, applied string
		lags            bool
	}{
		{2, now, "wait=0", false},
		{2, now + ", handling=strict", "wait=0, handling=strict", false},
		{3, now, "wait=0", false},
		{3, "handling=lenient, " + now, "wait=0", false},
		{3, "handling=strict, " + now, "wait=0, handling=strict", true},
		{3, "handling=strict", "handling=strict", true}, // after the default time
		{3, "wait=x", "", false},
	} {
		began := time.Now()
		rec := w.get("u-1", "Consistency-Token", token(c.version), "Prefer", c.prefer)
		took := time.Since(began)
		if applied := strings.Join(rec.Header().Values("Preference-Applied"), ", "); applied != c.applied || lagging(rec) != c.lags || !c.lags && rec.Code != 200 || rec.Header().Get("Read-Model-Version") != "2" {
			t.Errorf("version %d with Prefer: %s: %d %v %s", c.version, c.prefer, rec.Code, rec.Header(), rec.Body)
		}
		if waits := !strings.Contains(c.prefer, now); waits != (took >= readmodel.DefaultWait) {
			t.Errorf("version %d with Prefer: %s: waited %v", c.version, c.prefer, took)
		}
	}
	for name, bad := range map[string]string{"of another user": w.api.Token("profiles/u-2", 2), "of an order": w.api.Token("orders/u-1", 2), "forged": token(2)[:30] + "AAAA", "no token": "2"} {
		if rec := w.get("u-1", "Consistency-Token", bad); rec.Code != 400 || !strings.Contains(rec.Body.String(), "/problems/invalid-token") {
			t.Errorf("a token that is %s: %d %s", name, rec.Code, rec.Body)
		}
	}
	if rec := w.ask(w.api, "HEAD", "u-1", "Consistency-Token", token(3), "Prefer", now); rec.Code != 200 || rec.Header().Get("Read-Model-Version") != "2" {
		t.Errorf("HEAD: %d %v", rec.Code, rec.Header())
	}
}

// Two tenants' users may have one name. Each tenant sees its own, under the name that it gave.
func tenants(t *testing.T, f Follower) {
	w := f.World(t)
	if err := w.Deliver(t.Context(), Updated(t, "a/u-1", 1)); err != nil {
		t.Fatal(err)
	}
	as := func(tenant, user string, headers ...string) *httptest.ResponseRecorder {
		return w.ask(w.tenants, "GET", user, append(headers, "Authorization", "Bearer token-"+tenant)...)
	}
	if rec := as("a", "u-1"); rec.Code != 200 || !strings.Contains(rec.Body.String(), `"user_id":"u-1"`) {
		t.Errorf("its own: %d %s", rec.Code, rec.Body)
	}
	for name, rec := range map[string]*httptest.ResponseRecorder{"of b": as("b", "u-1"), "by its stored name": as("b", "a%2Fu-1"), "of nobody": w.get("u-1"), "of nobody by its stored name": w.get("a%2Fu-1")} {
		if rec.Code != 404 {
			t.Errorf("a's user, %s: %d %s", name, rec.Code, rec.Body)
		}
	}
	token := w.tenants.Token("profiles/a/u-1", 1)
	if rec := as("a", "u-1", "Consistency-Token", token); rec.Code != 200 {
		t.Errorf("its own, with its token: %d %s", rec.Code, rec.Body)
	}
	if rec := as("b", "u-1", "Consistency-Token", token); rec.Code != 400 {
		t.Errorf("b's user, with a's token: %d %s", rec.Code, rec.Body)
	}
}
