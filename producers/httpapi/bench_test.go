package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"converge/internal/database"
	"converge/internal/sandbox"
)

// durablePool is on a server that flushes at COMMIT: what is measured here is mostly that.
func durablePool(b *testing.B) *pgxpool.Pool {
	b.Helper()
	server, err := sandbox.StartPostgres(b.Context(), sandbox.PostgresConfig{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := server.Stop(context.WithoutCancel(b.Context())); err != nil {
			b.Log(err)
		}
	})
	module := database.Module{Service: "shop", Sets: []database.Set{{Name: "httpapi", FS: Migrations}, {Name: "charges", FS: charges}}}
	if err := database.Migrate(b.Context(), server.URL(), module); err != nil {
		b.Fatal(err)
	}
	pool, err := database.Open(b.Context(), server.URL(), "shop", 4)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(pool.Close)
	return pool
}

// BenchmarkIdempotentPost compares a fresh POST and a replay, from the handler's call to its return, with a
// bare durable INSERT. All three take turns within one run, so that a machine that slows down slows them
// down alike: "fresh/insert" and "replay/insert" are the ratios of their mean times.
func BenchmarkIdempotentPost(b *testing.B) {
	pool := durablePool(b)
	api, err := New(Config{})
	if err != nil {
		b.Fatal(err)
	}
	api.Handle("POST /charges", api.Idempotent(pool, "charge", charge))
	post := func(key string, want int) {
		r := httptest.NewRequest("POST", "http://localhost/charges", strings.NewReader(`{"amount":5}`))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Idempotency-Key", key)
		w := httptest.NewRecorder()
		if api.ServeHTTP(w, r); w.Code != want {
			b.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	insert := func() {
		if _, err := pool.Exec(b.Context(), "INSERT INTO charges (amount) VALUES ($1)", 5); err != nil {
			b.Fatal(err)
		}
	}
	post("warm", http.StatusCreated)
	insert()
	var bare, fresh, replay time.Duration
	lap := func(total *time.Duration, do func()) {
		began := time.Now()
		do()
		*total += time.Since(began)
	}
	run := 0
	for b.Loop() {
		run++
		key := fmt.Sprint("k-", run)
		lap(&bare, insert)
		lap(&fresh, func() { post(key, http.StatusCreated) })
		lap(&replay, func() { post(key, http.StatusOK) })
	}
	per := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / float64(run) }
	b.ReportMetric(per(bare), "insert-ns")
	b.ReportMetric(per(fresh), "fresh-ns")
	b.ReportMetric(per(replay), "replay-ns")
	b.ReportMetric(per(fresh)/per(bare), "fresh/insert")
	b.ReportMetric(per(replay)/per(bare), "replay/insert")
}
