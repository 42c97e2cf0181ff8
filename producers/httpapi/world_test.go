package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/internal/pipeline"
)

// charges is what the effects of these tests write. The deferred constraint breaks at the commit.
var charges = fstest.MapFS{"migrations/00001_charges.sql": {Data: []byte(`-- +goose Up
CREATE TABLE charges (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    amount bigint NOT NULL,
    late   int,
    CONSTRAINT charges_late UNIQUE (late) DEFERRABLE INITIALLY DEFERRED
);
`)}}

func openPool(t testing.TB, maxConns int32) *pgxpool.Pool {
	t.Helper()
	url := pgtest.Database(t, "httpapi", func(ctx context.Context, url string) error {
		return database.Migrate(ctx, url, database.Module{Service: "shop", Sets: []database.Set{
			{Name: "httpapi", FS: Migrations}, {Name: "charges", FS: charges}}})
	})
	pool, err := database.Open(t.Context(), url, "shop", maxConns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// world is an API on a real socket.
type world struct {
	t      testing.TB
	api    *API
	server *httptest.Server
	log    *logbook
	reg    *prometheus.Registry
}

func newWorld(t testing.TB, cfg Config) *world {
	t.Helper()
	w := &world{t: t, log: &logbook{}, reg: prometheus.NewRegistry()}
	cfg.Logger, cfg.Registerer = slog.New(slog.NewJSONHandler(w.log, nil)), w.reg
	api, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.api = api
	w.server = httptest.NewUnstartedServer(api)
	w.server.Config.ErrorLog = slog.NewLogLogger(slog.NewJSONHandler(w.log, nil), slog.LevelError)
	w.server.Start()
	t.Cleanup(w.server.Close)
	return w
}

// logbook holds what was logged.
type logbook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

type answer struct {
	code    int
	header  http.Header
	body    string
	problem Problem // the zero Problem when the answer is none
}

// do sends a JSON request; headers are names and values, and "" takes a header away.
func (w *world) do(method, path, body string, headers ...string) answer {
	w.t.Helper()
	a, err := w.try(method, path, strings.NewReader(body), headers...)
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

func (w *world) try(method, path string, body io.Reader, headers ...string) (answer, error) {
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.server.URL+path, body)
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		if headers[i+1] == "" {
			req.Header.Del(headers[i])
		} else {
			req.Header.Add(headers[i], headers[i+1])
		}
	}
	if values := req.Header.Values("Content-Type"); len(values) > 1 {
		req.Header["Content-Type"] = values[1:]
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		return answer{}, err
	}
	a := answer{code: res.StatusCode, header: res.Header, body: string(raw)}
	if res.Header.Get("Content-Type") == "application/problem+json" && len(raw) > 0 {
		if err := json.Unmarshal(raw, &a.problem); err != nil {
			return answer{}, err
		}
	}
	return a, nil
}

// wants checks that the answer is the named problem, whole.
func (a answer) wants(t testing.TB, name string) {
	t.Helper()
	want := NewProblem(name, "")
	if a.code != want.Status || a.problem.Type != want.Type || a.problem.Status != want.Status || a.problem.Title != want.Title {
		t.Errorf("got %d %s %s, want the problem %s", a.code, a.header, a.body, name)
	}
}

// charge is an effect that counts.
func charge(ctx context.Context, tx pgx.Tx, _ *http.Request, body *Body) (Response, error) {
	o := body.Object()
	amount := o.Int("amount", 1, MaxInt)
	if err := body.Err(); err != nil {
		return Response{}, err
	}
	var id int64
	if err := tx.QueryRow(ctx, "INSERT INTO charges (amount) VALUES ($1) RETURNING id", amount).Scan(&id); err != nil {
		return Response{}, err
	}
	return JSON(http.StatusCreated, map[string]int64{"id": id, "amount": amount},
		map[string]string{"Location": "/charges/1", "ETag": ETag(1), "Consistency-Token": "token"})
}

// blindCharge is an effect that waits for no statement, and tells of itself.
func blindCharge(told *atomic.Int64) Effect {
	return func(ctx context.Context, tx pgx.Tx, _ *http.Request, body *Body) (Response, error) {
		o := body.Object()
		amount := o.Int("amount", 1, MaxInt)
		if err := body.Err(); err != nil {
			return Response{}, err
		}
		pipeline.After(tx, func() { told.Add(1) })
		if err := pipeline.Exec(ctx, tx, "INSERT INTO charges (amount) VALUES ($1)", amount); err != nil {
			return Response{}, err
		}
		return JSON(http.StatusCreated, map[string]string{"id": uuid.NewString()}, map[string]string{"Location": "/charges/1"})
	}
}

func count(t testing.TB, pool *pgxpool.Pool, sql string) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func (w *world) keyMetric(result string) float64 {
	return testutil.ToFloat64(w.api.metrics.idempotency.WithLabelValues("/charges", result))
}
