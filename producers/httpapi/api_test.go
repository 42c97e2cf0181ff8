package httpapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/producers/outbox"
	"converge/schemas"
)

func nothing(w http.ResponseWriter, _ *http.Request) error {
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func TestWhatHasNoRouteIsAProblem(t *testing.T) {
	w := newWorld(t, Config{})
	w.api.Handle("GET /things/{id}", nothing)
	w.api.Handle("PUT /things/{id}", nothing)
	w.api.Handle("POST /things", nothing)
	for _, step := range []struct{ method, path, want, allow string }{
		{"GET", "/", NotFound, ""},
		{"GET", "/nothing", NotFound, ""},
		{"GET", "/things/", NotFound, ""},
		{"GET", "/things/1/2", NotFound, ""},
		{"GET", "/Things/1", NotFound, ""},
		{"POST", "/%2e%2e/things", NotFound, ""},
		{"GET", "/things", MethodNotAllowed, "POST"},
		{"DELETE", "/things/1", MethodNotAllowed, "GET, HEAD, PUT"},
		{"POST", "/things/1", MethodNotAllowed, "GET, HEAD, PUT"},
		{"OPTIONS", "/things", MethodNotAllowed, "POST"},
		{"BREW", "/things", MethodNotAllowed, "POST"},
		{"get", "/things/1", MethodNotAllowed, "GET, HEAD, PUT"},
		{"GET", "/problems/nope", NotFound, ""},
		{"GET", "/problems/%00", NotFound, ""},
	} {
		a := w.do(step.method, step.path, "")
		a.wants(t, step.want)
		if a.header.Get("Allow") != step.allow || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s %s: %v", step.method, step.path, a.header)
		}
	}
	if a := w.do("HEAD", "/nothing", ""); a.code != 404 || a.body != "" || a.header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("HEAD: %d %v", a.code, a.header)
	}
	if a := w.do("HEAD", "/things/1", ""); a.code != 204 {
		t.Errorf("HEAD: %d", a.code)
	}
	if diff := cmp.Diff([]string{"GET /problems/{type}", "GET /things/{id}", "PUT /things/{id}", "POST /things"}, w.api.Routes()); diff != "" {
		t.Error(diff)
	}
	if log := w.log.String(); log != "" {
		t.Errorf("logged: %s", log)
	}
}

// Whatever a client would rather have, it gets JSON: its problems, too.
func TestAnUnknownAcceptGetsTheDefault(t *testing.T) {
	w := newWorld(t, Config{})
	w.api.Handle("GET /thing", func(rw http.ResponseWriter, _ *http.Request) error {
		return Response{Status: 200, Body: []byte(`{}`)}.Write(rw)
	})
	for _, accept := range []string{"", "text/html", "application/xml;q=0.5, image/*", "application/json;q=0", "nonsense;;q=x", "*/*"} {
		if a := w.do("GET", "/thing", "", "Accept", accept); a.code != 200 || a.header.Get("Content-Type") != "application/json" || a.body != "{}" {
			t.Errorf("%q: %d %v %s", accept, a.code, a.header, a.body)
		}
		w.do("GET", "/nothing", "", "Accept", accept).wants(t, NotFound)
	}
}

// Each type is a page, so that whoever meets a problem can follow its type.
func TestEveryProblemTypeHasItsPage(t *testing.T) {
	w := newWorld(t, Config{})
	for _, name := range Problems() {
		a := w.do("GET", "/problems/"+name, "")
		if a.code != 200 || a.header.Get("Content-Type") != "text/html; charset=utf-8" || !strings.Contains(a.body, "<h1>") {
			t.Errorf("%s: %d %v %s", name, a.code, a.header, a.body)
		}
	}
	want := []string{"account-closed", "account-not-found", "cancelled", "conflict", "dependency-unavailable", "forbidden-origin",
		"idempotency-key-expired", "idempotency-key-in-flight", "idempotency-key-invalid", "idempotency-key-missing", "idempotency-key-reused",
		"insufficient-funds", "insufficient-inventory", "internal", "invalid-token", "malformed-request", "method-not-allowed", "not-found",
		"payload-too-large", "payment-declined", "precondition-failed", "precondition-required", "read-model-lagging", "request-timeout",
		"shipment-refused", "timed-out", "too-late-to-cancel", "too-many-requests", "unauthorized", "unsupported-media-type", "validation-failed"}
	if diff := cmp.Diff(want, Problems()); diff != "" {
		t.Errorf("the types (-want +got):\n%s", diff)
	}
	for _, reason := range []string{"insufficient_inventory", "payment_declined", "shipment_refused", "timed_out", "cancelled",
		"insufficient_funds", "account_not_found", "account_closed"} {
		if p := Outcome(reason); p.Type != "/problems/"+strings.ReplaceAll(reason, "_", "-") || p.Status != 0 || p.Title == "" {
			t.Errorf("%s: %+v", reason, p)
		}
	}
	if p := Outcome("bad_weather"); p.Type != "" {
		t.Errorf("%+v", p)
	}
}

// Pages of other origins, and names that were made to point here, get nothing.
func TestOnlyThisMachineIsAnswered(t *testing.T) {
	handle := func(cfg Config) http.Handler {
		api, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		api.Handle("POST /things", nothing)
		return api
	}
	closed, open := handle(Config{}), handle(Config{AllowRemote: true})
	for _, step := range []struct {
		host          string
		headers       []string
		closed, open_ int
	}{
		{"localhost", nil, 204, 204},
		{"LOCALHOST:8080", nil, 204, 204},
		{"shop.localhost:1", nil, 204, 204},
		{"127.0.0.1:8080", nil, 204, 204},
		{"127.1.2.3", nil, 204, 204},
		{"[::1]:8080", nil, 204, 204},
		{"[::1]", nil, 204, 204},
		{"", nil, 403, 204},
		{"evil.example", nil, 403, 204},
		{"localhost.evil.example:8080", nil, 403, 204},
		{"notlocalhost", nil, 403, 204},
		{"10.0.0.1:8080", nil, 403, 204},
		{"0.0.0.0", nil, 403, 204},
		{"127.0.0.1.evil.example", nil, 403, 204},
		{"localhost:8080", []string{"Sec-Fetch-Site", "cross-site"}, 403, 403},
		{"localhost:8080", []string{"Origin", "http://evil.example"}, 403, 403},
		{"localhost:8080", []string{"Origin", "null"}, 403, 403},
		{"localhost:8080", []string{"Origin", "http://localhost:8080"}, 204, 204},
		{"localhost:8080", []string{"Sec-Fetch-Site", "same-origin"}, 204, 204},
	} {
		for name, want := range map[string]int{"closed": step.closed, "open": step.open_} {
			api := closed
			if name == "open" {
				api = open
			}
			r := httptest.NewRequest("POST", "/things", nil)
			r.Host = step.host
			for i := 0; i < len(step.headers); i += 2 {
				r.Header.Set(step.headers[i], step.headers[i+1])
			}
			rec := httptest.NewRecorder()
			api.ServeHTTP(rec, r)
			if rec.Code != want || (want == 403) != strings.Contains(rec.Body.String(), "/problems/forbidden-origin") {
				t.Errorf("%s: %q %q: %d %s", name, step.host, step.headers, rec.Code, rec.Body)
			}
		}
	}
}

func TestAPanicIsAnAnswerAndALine(t *testing.T) {
	w := newWorld(t, Config{})
	w.api.Handle("GET /panic", func(rw http.ResponseWriter, _ *http.Request) error {
		rw.Header().Set("ETag", `"1"`)
		panic("secret")
	})
	a := w.do("GET", "/panic", "")
	a.wants(t, Internal)
	if strings.Contains(a.body, "secret") || a.header.Get("ETag") != "" {
		t.Errorf("%v %s", a.header, a.body)
	}
	if log := w.log.String(); !strings.Contains(log, a.header.Get("X-Request-Id")) || !strings.Contains(log, "GET /panic") || strings.Count(log, "\n") != 1 {
		t.Errorf("%s", log)
	}
	if n := testutil.ToFloat64(w.api.metrics.requests.WithLabelValues("/panic", "GET", "500")); n != 1 {
		t.Errorf("counted %v", n)
	}
}

// Half an answer must not look whole: the connection breaks instead.
func TestHalfAnAnswerIsAborted(t *testing.T) {
	w := newWorld(t, Config{})
	w.api.Handle("GET /half", func(rw http.ResponseWriter, _ *http.Request) error {
		_, _ = io.WriteString(rw, `{"items":[`)
		_ = http.NewResponseController(rw).Flush()
		panic("halfway")
	})
	if a, err := w.try("GET", "/half", nil); err == nil {
		t.Errorf("an answer came whole: %d %s", a.code, a.body)
	}
	if n := testutil.ToFloat64(w.api.metrics.requests.WithLabelValues("/half", "GET", "200")); n != 1 {
		t.Errorf("counted %v", n)
	}
	if a := w.do("GET", "/problems/internal", ""); a.code != 200 {
		t.Errorf("%d", a.code)
	}
}

// What a handler had said of its answer is not said of the problem that comes instead.
func TestAProblemDoesNotInheritTheHeadersOfAnAnswer(t *testing.T) {
	w := newWorld(t, Config{})
	w.api.Handle("GET /thing", func(rw http.ResponseWriter, r *http.Request) error {
		NotModified(rw, r, 3)
		rw.Header().Set("Content-Length", "7")
		rw.Header().Set("Content-Encoding", "gzip")
		return errors.New("no")
	})
	a := w.do("GET", "/thing", "")
	a.wants(t, Internal)
	for _, name := range []string{"ETag", "Content-Encoding"} {
		if a.header.Get(name) != "" {
			t.Errorf("%s: %s", name, a.header.Get(name))
		}
	}
}

// dial opens a raw connection, for clients that misbehave.
func (w *world) dial() net.Conn {
	w.t.Helper()
	conn, err := (&net.Dialer{}).DialContext(w.t.Context(), "tcp", w.server.Listener.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second)) // against a test that hangs
	return conn
}

// A client that stalls in the middle of its body is told so, and its connection ends: it holds nothing.
func TestAClientThatStallsIsCutOff(t *testing.T) {
	w := bodyWorld(t, Config{BodyTime: 50 * time.Millisecond, MaxBody: 1000})
	for name, step := range map[string]struct {
		head string
		code int
	}{
		"in a body":              {"PUT /order HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{", 408},
		"in a chunk":             {"PUT /order HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n{", 408},
		"before its body":        {"PUT /order HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n", 408},
		"in a body too large":    {"PUT /order HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000\r\n\r\n" + strings.Repeat(" ", 1500), 413},
		"at no resource":         {"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{", 404},
		"with a wrong method":    {"POST /order HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{", 405},
		"with a wrong host":      {"PUT /order HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 100\r\n\r\n{", 403},
		"where no body is read":  {"GET /problems/internal HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{", 200},
		"in chunks, unread":      {"GET /problems/internal HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n{", 200},
		"large, and never comes": {"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n", 404},
	} {
		t.Run(name, func(t *testing.T) {
			conn := w.dial()
			if _, err := io.WriteString(conn, step.head); err != nil {
				t.Fatal(err)
			}
			reader := bufio.NewReader(conn)
			res, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatalf("no answer: %v", err)
			}
			_, _ = io.Copy(io.Discard, res.Body)
			if res.StatusCode != step.code {
				t.Errorf("got %d, want %d", res.StatusCode, step.code)
			}
			if _, err := reader.ReadByte(); err == nil || errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
				t.Errorf("the connection goes on: %v", err)
			}
		})
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// The time for a body is not time for the next request on the connection.
func TestAConnectionOutlivesTheTimeForABody(t *testing.T) {
	w := bodyWorld(t, Config{BodyTime: 20 * time.Millisecond})
	entered := make(chan struct{})
	w.api.Handle("PUT /slow", func(rw http.ResponseWriter, r *http.Request) error {
		if _, err := w.api.ReadBody(rw, r); err != nil {
			return err
		}
		close(entered)
		select {
		case <-r.Context().Done():
			return r.Context().Err()
		case <-time.After(60 * time.Millisecond): // three times as long as a body may take
		}
		return nothing(rw, r)
	})
	conn := w.dial()
	reader := bufio.NewReader(conn)
	for _, path := range []string{"/order", "/slow", "/order"} {
		body := anOrder()
		fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
		res, err := http.ReadResponse(reader, nil)
		if err != nil || res.StatusCode != 204 {
			t.Fatalf("%s: %v %v", path, err, res)
		}
	}
	<-entered
}

// A client that hangs up in the middle is counted as gone, and gets nothing that looks like an answer: one
// that has only stopped sending still reads.
func TestAClientThatLeavesGetsNoEmptyAnswer(t *testing.T) {
	w := newWorld(t, Config{})
	w.api.Handle("GET /wait", func(_ http.ResponseWriter, r *http.Request) error {
		<-r.Context().Done()
		return fmt.Errorf("waiting: %w", r.Context().Err())
	})
	conn := w.dial()
	if _, err := io.WriteString(conn, "GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if len(got) != 0 || isTimeout(err) {
		t.Errorf("%v %q", err, got)
	}
	if n := testutil.ToFloat64(w.api.metrics.requests.WithLabelValues("/wait", "GET", "499")); n != 1 {
		t.Errorf("counted %v", n)
	}
	if log := w.log.String(); log != "" {
		t.Errorf("logged: %s", log)
	}
}

// Requests beyond the bound are told to come back at once rather than queued.
func TestTooManyAtOnceAreToldToComeBack(t *testing.T) {
	w := newWorld(t, Config{MaxInFlight: 1})
	entered, leave, left := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	w.api.Handle("GET /wait", func(rw http.ResponseWriter, r *http.Request) error {
		close(entered)
		<-leave
		return nothing(rw, r)
	})
	go func() {
		_, err := w.try("GET", "/wait", nil)
		left <- err
	}()
	<-entered
	a := w.do("GET", "/wait", "")
	a.wants(t, TooManyRequests)
	if a.header.Get("Retry-After") != "1" {
		t.Errorf("%v", a.header)
	}
	close(leave)
	if err := <-left; err != nil {
		t.Fatal(err)
	}
	if a := w.do("GET", "/problems/internal", ""); a.code != 200 {
		t.Errorf("the slot was not given back: %d", a.code)
	}
}

// The cause of a request reaches the outbox row: the client's trace and correlation where they are well
// formed, the request's id where not.
func TestTheCauseOfARequestReachesItsEvents(t *testing.T) {
	url := pgtest.Database(t, "httpapi outbox", func(ctx context.Context, url string) error {
		return database.Migrate(ctx, url, database.Module{Service: "shop", Sets: []database.Set{
			{Name: "outbox", FS: outbox.Migrations}, {Name: "httpapi", FS: Migrations}}})
	})
	pool, err := database.Open(t.Context(), url, "shop", 2)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	events := outbox.New(schemas.NewCodec(schemas.JSON, schemas.IDs{}))
	w := newWorld(t, Config{})
	w.api.Handle("POST /cancellations", w.api.Idempotent(pool, "cancel", func(ctx context.Context, tx pgx.Tx, _ *http.Request, _ *Body) (Response, error) {
		if err := events.Append(ctx, tx, outbox.Event{Type: "OrderCancelled", AggregateType: "order", AggregateID: "o-1", AggregateVersion: 1,
			Data: schemas.OrderCancelled{OrderID: "o-1"}}); err != nil {
			return Response{}, err
		}
		return JSON(http.StatusCreated, struct{}{}, nil)
	}))
	const id, trace = "4bf92f3577b34da6a3ce929d0e0e4736", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for name, step := range map[string]struct{ parent, correlation, wantParent, wantCorrelation string }{
		"nothing given":        {"", "", "", ""},
		"a trace":              {trace, "", trace, id},
		"a correlation":        {"", "op-1", "", "op-1"},
		"both":                 {trace, "op-1", trace, "op-1"},
		"a trace of zeros":     {"00-00000000000000000000000000000000-00f067aa0ba902b7-01", "", "", ""},
		"a parent of zeros":    {"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", "", "", ""},
		"capitals":             {strings.ToUpper(trace), "", "", ""},
		"version ff":           {"ff" + trace[2:], "", "", ""},
		"more behind":          {trace + "-x", "", "", ""},
		"nonsense":             {"<script>", "not an id", "", ""},
		"a long correlation":   {"", strings.Repeat("x", 65), "", ""},
		"a hostile one":        {"", `x"}`, "", ""},
		"the trace, and worse": {trace, "a b", trace, id},
	} {
		t.Run(name, func(t *testing.T) {
			a := w.do("POST", "/cancellations", `{}`, "Idempotency-Key", name, "Traceparent", step.parent, "X-Correlation-Id", step.correlation)
			if a.code != 201 {
				t.Fatalf("%d %s", a.code, a.body)
			}
			var parent, correlation, causation string
			if err := pool.QueryRow(t.Context(), `
SELECT coalesce(headers->>'traceparent', ''), headers->>'correlation_id', headers->>'causation_id'
FROM outbox
ORDER BY seq DESC
LIMIT 1`).Scan(&parent, &correlation, &causation); err != nil {
				t.Fatal(err)
			}
			request := a.header.Get("X-Request-Id")
			if step.wantCorrelation == "" {
				step.wantCorrelation = request
			}
			if parent != step.wantParent || correlation != step.wantCorrelation || causation != request || request == "" {
				t.Errorf("got %q %q %q for request %q", parent, correlation, causation, request)
			}
		})
	}
}

// Metrics exist before the first request, and no client can make a label.
func TestMetricsAreThereFromTheStartAndBounded(t *testing.T) {
	w := newWorld(t, Config{})
	w.api.Handle("POST /things", nothing)
	w.api.Handle("GET /things/{id}", nothing)
	for _, result := range []string{keyFresh, keyReplayed, keyReused, keyInFlight, keyExpired} {
		if n := testutil.ToFloat64(w.api.metrics.idempotency.WithLabelValues("/things", result)); n != 0 {
			t.Errorf("%s: %v", result, n)
		}
	}
	series := func() int {
		n, err := testutil.GatherAndCount(w.reg)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	request := func(i int) {
		w.do("GET", fmt.Sprintf("/things/%d", i), "")
		w.do("GET", fmt.Sprintf("/nothing/%d", i), "")
		w.do(fmt.Sprintf("M%d", i), "/things", "")
		w.do(fmt.Sprintf("M%d", i), fmt.Sprintf("/%d", i), "")
	}
	request(0)
	before := series()
	for i := range 20 {
		request(i + 1)
	}
	if after := series(); after != before {
		t.Errorf("%d series became %d", before, after)
	}
	if n := testutil.ToFloat64(w.api.metrics.requests.WithLabelValues("/things/{id}", "GET", "204")); n != 21 {
		t.Errorf("counted %v", n)
	}
	if n := testutil.ToFloat64(w.api.metrics.requests.WithLabelValues("none", "other", "404")); n != 21 {
		t.Errorf("counted %v", n)
	}
	problems, err := testutil.GatherAndLint(w.reg)
	if err != nil || len(problems) != 0 {
		t.Errorf("%v %v", err, problems)
	}
}

func TestTwoAPIsCannotShareTheirMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	if _, err := New(Config{Registerer: reg}); err != nil {
		t.Fatal(err)
	}
	var taken prometheus.AlreadyRegisteredError
	if _, err := New(Config{Registerer: reg}); !errors.As(err, &taken) {
		t.Errorf("%v", err)
	}
}
