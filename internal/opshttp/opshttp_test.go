package opshttp

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

func get(t *testing.T, h http.Handler, path string) *httptest.ResponseRecorder {
	t.Helper()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", path, nil))
	return rec
}

func TestReadyMeansThatEveryCheckPassesNow(t *testing.T) {
	var checks Checks
	h := Handler(prometheus.NewRegistry(), &checks)
	if rec := get(t, h, "/readyz"); rec.Code != 200 || strings.TrimSpace(rec.Body.String()) != `{"status":"ready"}` || rec.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("without checks: %d %v %s", rec.Code, rec.Header(), rec.Body)
	}
	faults := map[string]error{}
	for _, name := range []string{"relay", "database", "console"} {
		checks.Add(name, func(context.Context) error { return faults[name] })
	}
	faults["relay"], faults["console"] = errors.New("the slot is taken"), errors.New("behind")
	rec := get(t, h, "/readyz")
	var got struct {
		Status  string   `json:"status"`
		Reasons []Reason `json:"reasons"`
	}
	if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Reason{{"relay", "the slot is taken"}, {"console", "behind"}}, got.Reasons); rec.Code != 503 || got.Status != "not ready" || diff != "" {
		t.Errorf("%d %s\n%s", rec.Code, rec.Body, diff)
	}
	if rec := get(t, h, "/healthz"); rec.Code != 200 || strings.TrimSpace(rec.Body.String()) != `{"status":"alive"}` {
		t.Errorf("not ready is not dead: %d %s", rec.Code, rec.Body)
	}
	clear(faults)
	if rec := get(t, h, "/readyz"); rec.Code != 200 {
		t.Errorf("mended: %d %s", rec.Code, rec.Body)
	}
}

// A part that hangs is a reason and not a hung answer, and does not keep the others from being asked.
func TestACheckThatHangsIsAReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var checks Checks
		for _, name := range []string{"first", "second"} {
			checks.Add(name, func(ctx context.Context) error {
				<-ctx.Done()
				return ctx.Err()
			})
		}
		checks.Add("well", func(context.Context) error { return nil })
		began := time.Now()
		failing := checks.Failing(t.Context())
		var names []string
		for _, r := range failing {
			if names = append(names, r.Check); r.Reason == "" {
				t.Errorf("%s has no reason", r.Check)
			}
		}
		if diff := cmp.Diff([]string{"first", "second"}, names); diff != "" || time.Since(began) != checkTime {
			t.Errorf("after %v:\n%s", time.Since(began), diff)
		}
	})
}

func TestMetricsAreThere(t *testing.T) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "converge_things_total", Help: "Things."}, func() float64 { return 7 }))
	rec := get(t, Handler(reg, &Checks{}), "/metrics")
	if rec.Code != 200 || !strings.Contains(rec.Body.String(), "\nconverge_things_total 7\n") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

// Whoever starts a second process reads which flag moves it.
func TestAPortThatIsTakenIsToldWithTheWayOut(t *testing.T) {
	l, err := Listen("127.0.0.1:0", "--http")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = Listen(l.Addr().String(), "--metrics")
	if err == nil || !strings.Contains(err.Error(), l.Addr().String()+" is taken") || !strings.Contains(err.Error(), "--metrics") || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v", err)
	}
	var op *net.OpError
	if _, err := Listen("192.0.2.1:1", "--http"); !errors.As(err, &op) || !strings.Contains(err.Error(), "--http") { // TEST-NET: nobody's
		t.Errorf("%v", err)
	}
}

// serving runs Serve and returns its address, what ends it, and what it returned.
func serving(t *testing.T, h http.Handler, drain time.Duration) (url string, stop func(), ended <-chan error) {
	t.Helper()
	l, err := Listen("127.0.0.1:0", "--http")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, h, drain) }()
	return "http://" + l.Addr().String(), cancel, done
}

type reply struct {
	code int
	body string
	err  error
}

func fetch(t *testing.T, url string) <-chan reply {
	got := make(chan reply, 1)
	go func() {
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
		if err != nil {
			got <- reply{err: err}
			return
		}
		res, err := client.Do(req)
		if err != nil {
			got <- reply{err: err}
			return
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		got <- reply{res.StatusCode, string(body), err}
	}()
	return got
}

// The drain lets a request finish, tells streams to end, and takes no more.
func TestADrainLetsRequestsFinish(t *testing.T) {
	entered, leave, told := make(chan struct{}, 2), make(chan struct{}), make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/request", func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-leave
		if r.Context().Err() != nil {
			t.Error("the request was cancelled")
		}
		_, _ = io.WriteString(w, "whole")
	})
	mux.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-Draining(r.Context())
		close(told)
		_, _ = io.WriteString(w, "end")
	})
	url, stop, ended := serving(t, mux, time.Minute)
	request, stream := fetch(t, url+"/request"), fetch(t, url+"/stream")
	<-entered
	<-entered
	stop()
	<-told
	if r := <-stream; r.err != nil || r.body != "end" {
		t.Errorf("%+v", r)
	}
	if r := <-fetch(t, url+"/stream"); r.err == nil {
		t.Errorf("taken during the drain: %+v", r)
	}
	select {
	case err := <-ended:
		t.Errorf("it did not wait for the request: %v", err)
	default:
	}
	close(leave)
	if r := <-request; r.err != nil || r.body != "whole" {
		t.Errorf("%+v", r)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestADrainThatTakesTooLongCutsOff(t *testing.T) {
	entered, cut := make(chan struct{}), make(chan struct{})
	url, stop, ended := serving(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done() // the connection breaks
		close(cut)
	}), time.Millisecond)
	request := fetch(t, url)
	<-entered
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	<-cut
	if r := <-request; r.err == nil {
		t.Errorf("%+v", r)
	}
}

func TestAServerThatCannotGoOnSaysSo(t *testing.T) {
	l, err := Listen("127.0.0.1:0", "--http")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := Serve(t.Context(), l, http.NotFoundHandler(), time.Second); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v", err)
	}
}

func TestOutsideAServerNothingDrains(t *testing.T) {
	if Draining(t.Context()) != nil {
		t.Error("a channel that nobody closes")
	}
}
