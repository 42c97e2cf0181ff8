package bench

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/internal/database"
	"converge/producers/httpapi"
	"converge/producers/outbox"
	"converge/producers/payments"
	"converge/schemas"
)

// What is measured on one connection.
const (
	bare     = "bare INSERT of the payment"
	sqlAlone = "idempotent POST, in the database"
	handler  = "idempotent POST, whole handler"
	chatty   = "the same steps, one by one"
	replayed = "replay, whole handler"
)

var kinds = []string{bare, sqlAlone, handler, chatty, replayed}

// inSQL lets the kinds take turns, request by request, on a connection each.
func (b *bench) inSQL() {
	t := b.t
	module := database.Module{Service: "payments", Sets: []database.Set{{Name: "outbox", FS: outbox.Migrations},
		{Name: "httpapi", FS: httpapi.Migrations}, {Name: "payments", FS: payments.Migrations}}}
	must(t, database.Migrate(t.Context(), b.server.URL(), module))
	pool, posts := b.pool("payments")
	plain, _ := b.pool("payments")
	service := payments.New(payments.Config{Pool: pool, Outbox: outbox.New(schemas.NewCodec(schemas.JSON, schemas.IDs{}))})
	open := func() *httpapi.API { // each knows only its own requests
		api, err := httpapi.New(httpapi.Config{})
		must(t, err)
		service.Routes(api)
		return api
	}
	first, again := open(), open()
	post := func(api *httpapi.API, key string, want int) float64 {
		r := httptest.NewRequest("POST", "http://localhost/payments", strings.NewReader(payment))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Idempotency-Key", key)
		w := httptest.NewRecorder()
		ms := lap(func() { api.ServeHTTP(w, r) })
		if w.Code != want {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		return ms
	}
	post(again, "warm", http.StatusCreated)
	for round := -1; round < *rounds; round++ { // the first one warms up
		times, trips := map[string][]float64{}, map[string]int{}
		add := func(kind string, ms float64) { times[kind] = append(times[kind], ms) }
		_, err := b.root.Exec(t.Context(), "CHECKPOINT")
		must(t, err)
		for n := range *requests {
			key := fmt.Sprintf("sql-%d-%d", round, n)
			add(bare, lap(func() { b.bare(plain) }))
			trips[bare]++
			posts.reset()
			add(handler, post(first, key, http.StatusCreated))
			add(sqlAlone, posts.took.Seconds()*1000)
			trips[handler] += posts.trips
			trips[sqlAlone] += posts.trips
			add(chatty, lap(func() { trips[chatty] += b.chatty(plain, key) }))
			posts.reset()
			add(replayed, post(again, key, http.StatusOK))
			trips[replayed] += posts.trips
		}
		if round < 0 {
			continue
		}
		for _, kind := range kinds {
			middle, _, _ := median(times[kind])
			b.found.SQL[kind] = append(b.found.SQL[kind], middle)
			b.found.Trips[kind] = float64(trips[kind]) / float64(*requests)
		}
	}
}

// lap returns how long do takes, in milliseconds.
func lap(do func()) float64 {
	began := time.Now()
	do()
	return time.Since(began).Seconds() * 1000
}

const payment = `{"order_id":42,"amount":100}`

// pool returns one connection and what watches it.
func (b *bench) pool(service string) (*pgxpool.Pool, *watch) {
	b.t.Helper()
	pool, err := database.Open(b.t.Context(), b.server.URL(), service, 1)
	must(b.t, err)
	cfg, w := pool.Config(), &watch{}
	pool.Close()
	cfg.ConnConfig.Tracer = w
	pool, err = pgxpool.NewWithConfig(b.t.Context(), cfg)
	must(b.t, err)
	b.t.Cleanup(pool.Close)
	return pool, w
}

// watch adds up how long one connection waited for the database, and how often. It is for one goroutine.
type watch struct {
	began time.Time
	took  time.Duration
	trips int
}

func (w *watch) reset() { *w = watch{} }
func (w *watch) start(ctx context.Context) context.Context {
	w.began = time.Now()
	w.trips++
	return ctx
}
func (w *watch) end() { w.took += time.Since(w.began) }

func (w *watch) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return w.start(ctx)
}
func (w *watch) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) { w.end() }
func (w *watch) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return w.start(ctx)
}
func (w *watch) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (w *watch) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     { w.end() }

const paySQL = `
INSERT INTO payments (id, order_id, saga, state, amount, currency, payment_method, version, history, created_at, updated_at)
VALUES ($1, $2, false, 'AUTHORIZED', $3, $4, $5, 1, '[{"state": "AUTHORIZED", "at": "2026-03-01T12:00:00.123456Z"}]', $6, $6)`

func payArguments() []any {
	return []any{uuid.Must(uuid.NewV7()), "42", int64(100), "USD", "card-ok", time.Now()}
}

func (b *bench) bare(pool *pgxpool.Pool) {
	_, err := pool.Exec(b.t.Context(), paySQL, payArguments()...)
	must(b.t, err)
}

// chatty is how the steps are usually written down. It returns how often it waited.
func (b *bench) chatty(pool *pgxpool.Pool, key string) int {
	ctx := b.t.Context()
	tx, err := pool.Begin(ctx)
	must(b.t, err)
	defer tx.Rollback(context.WithoutCancel(ctx)) // after a commit it does nothing
	var there int
	must(b.t, tx.QueryRow(ctx, "SELECT count(*) FROM idempotency_keys WHERE tenant = '' AND operation = 'chatty' AND key = $1", key).Scan(&there))
	_, err = tx.Exec(ctx, "INSERT INTO idempotency_keys (operation, key, fingerprint) VALUES ('chatty', $1, $2)", key, []byte(key))
	must(b.t, err)
	_, err = tx.Exec(ctx, paySQL, payArguments()...)
	must(b.t, err)
	_, err = tx.Exec(ctx, "UPDATE idempotency_keys SET status = 201, headers = $2, body = $3 WHERE tenant = '' AND operation = 'chatty' AND key = $1",
		key, `{"Location":"/payments/0197a1b2-0000-7000-8000-000000000009"}`, []byte(strings.Repeat("x", 250)))
	must(b.t, err)
	must(b.t, tx.Commit(ctx))
	return 6
}
