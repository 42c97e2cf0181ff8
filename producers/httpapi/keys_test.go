package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
)

// age makes the key older.
func age(t *testing.T, pool *pgxpool.Pool, key string, by time.Duration) {
	t.Helper()
	tag, err := pool.Exec(t.Context(), "UPDATE idempotency_keys SET created_at = created_at - $2::interval WHERE key = $1", digest(key), by)
	if err != nil || tag.RowsAffected() == 0 {
		t.Fatalf("aging %s: %v, %d rows", key, err, tag.RowsAffected())
	}
}

func purge(t *testing.T, pool *pgxpool.Pool, retention time.Duration, want int64) {
	t.Helper()
	purged, err := Keys{Pool: pool, Retention: retention}.Purge(t.Context())
	if err != nil || purged != want {
		t.Errorf("purged %d, %v; want %d", purged, err, want)
	}
}

// The answer of an old key is gone, the key is not: what comes late is told where the resource is, whatever it
// asks for, and before a purge as after.
func TestALateRetryIsToldThatItsKeyHasExpired(t *testing.T) {
	pool := openPool(t, 4)
	w := newWorld(t, Config{KeyRetention: time.Hour})
	w.api.Handle("POST /charges", w.api.Idempotent(pool, "charge", charge))
	w.api.Handle("POST /refusals", w.api.Idempotent(pool, "refuse", func(context.Context, pgx.Tx, *http.Request, *Body) (Response, error) {
		return Refusal("payment-declined", "")
	}))
	w.do("POST", "/charges", `{"amount":5}`, "Idempotency-Key", "old")
	w.do("POST", "/charges", `{"amount":5}`, "Idempotency-Key", "young")
	w.do("POST", "/refusals", `{"amount":5}`, "Idempotency-Key", "refused")
	age(t, pool, "old", time.Hour)
	age(t, pool, "refused", time.Hour)
	age(t, pool, "young", 59*time.Minute)
	late := func(when string) {
		t.Helper()
		for _, body := range []string{`{"amount":5}`, `{"amount":6}`, `{"amount":"nonsense"}`, `{}`} {
			a := w.do("POST", "/charges", body, "Idempotency-Key", "old")
			a.wants(t, KeyExpired)
			if a.problem.Resource != "/charges/1" || a.problem.Detail != "answers are kept for 1h0m0s" || a.header.Get("Idempotency-Replayed") != "" {
				t.Errorf("%s: %s %s", when, a.header, a.body)
			}
		}
		if a := w.do("POST", "/refusals", `{"amount":5}`, "Idempotency-Key", "refused"); a.code != 410 || strings.Contains(a.body, "resource") {
			t.Errorf("%s: %d %s", when, a.code, a.body)
		}
		w.do("POST", "/charges", `{`, "Idempotency-Key", "old").wants(t, MalformedRequest)
		if a := w.do("POST", "/charges", `{"amount":5}`, "Idempotency-Key", "young"); a.code != 200 {
			t.Errorf("%s: a young key: %d %s", when, a.code, a.body)
		}
		if n := count(t, pool, "SELECT count(*) FROM charges"); n != 2 {
			t.Errorf("%s: %d charges", when, n)
		}
	}
	late("before the purge")
	purge(t, pool, time.Hour, 2)
	purge(t, pool, time.Hour, 0)
	late("after the purge")
	if n := count(t, pool, "SELECT count(*) FROM idempotency_keys WHERE body IS NOT NULL OR fingerprint <> '' OR headers ? 'ETag'"); n != 1 {
		t.Errorf("%d answers are kept", n)
	}
	if n := w.keyMetric(keyExpired); n != 8 {
		t.Errorf("counted %v expired", n)
	}
}

// Whoever keeps answers longer than the process that purged them has no answer to give either.
func TestAPurgedKeyIsExpiredForEverybody(t *testing.T) {
	pool := openPool(t, 2)
	w := newWorld(t, Config{}) // 72 h
	w.api.Handle("POST /charges", w.api.Idempotent(pool, "charge", charge))
	w.do("POST", "/charges", `{"amount":5}`, "Idempotency-Key", "k")
	age(t, pool, "k", 71*time.Hour)
	if a := w.do("POST", "/charges", `{"amount":5}`, "Idempotency-Key", "k"); a.code != 200 {
		t.Errorf("%d %s", a.code, a.body)
	}
	purge(t, pool, 0, 0) // 72 h
	purge(t, pool, time.Hour, 1)
	w.do("POST", "/charges", `{"amount":5}`, "Idempotency-Key", "k").wants(t, KeyExpired)
}

// fill writes keys of an hour's age, each with an answer.
func fill(t *testing.T, pool *pgxpool.Pool, keys int) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), `
INSERT INTO idempotency_keys (operation, key, fingerprint, status, headers, body, created_at)
SELECT 'charge', 'k-' || n, '\x01', 201, '{"Location":"/charges/1"}', '{}', now() - interval '1 hour'
FROM generate_series(1, $1) n`, keys); err != nil {
		t.Fatal(err)
	}
}

// Purging goes in steps, so that no retry waits long for one, and several processes share the work.
func TestAPurgeIsBoundedAndShared(t *testing.T) {
	pool := openPool(t, 8)
	fill(t, pool, 2500)
	purge(t, pool, time.Minute, purgeAtOnce)
	holder, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := holder.Exec(t.Context(), "SELECT FROM idempotency_keys WHERE key = 'k-2500' FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	var g errgroup.Group
	var purged [4]int64
	for i := range purged {
		g.Go(func() (err error) {
			for err == nil {
				n, e := Keys{Pool: pool, Retention: time.Minute}.Purge(t.Context())
				if purged[i] += n; n == 0 {
					return e
				}
				err = e
			}
			return err
		})
	}
	if err := errors.Join(g.Wait(), holder.Rollback(t.Context())); err != nil {
		t.Fatal(err)
	}
	if sum := purged[0] + purged[1] + purged[2] + purged[3]; sum != 1499 {
		t.Errorf("purged %v", purged)
	}
	purge(t, pool, time.Minute, 1)
	if n := count(t, pool, "SELECT count(*) FROM idempotency_keys"); n != 2500 {
		t.Errorf("%d keys are left", n)
	}
}

// A table of old keys, all of them purged, costs a purge nothing: it looks at what is kept only.
func TestAPurgeReadsOnlyWhatIsKept(t *testing.T) {
	pool := openPool(t, 2)
	fill(t, pool, 3000)
	for range 3 {
		purge(t, pool, time.Minute, purgeAtOnce)
	}
	if _, err := pool.Exec(t.Context(), "ANALYZE idempotency_keys"); err != nil {
		t.Fatal(err)
	}
	rows, err := pool.Query(t.Context(), "EXPLAIN "+purgeKeysSQL, time.Minute, purgeAtOnce)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if text := strings.Join(plan, "\n"); !strings.Contains(text, "idempotency_keys_kept") || strings.Contains(text, "Seq Scan") {
		t.Errorf("the plan:\n%s", text)
	}
}

// The keys' owner runs until it is told to stop, and goes on at once while there is more to forget.
func TestTheKeysAreLookedAfterUntilTheEnd(t *testing.T) {
	pool := openPool(t, 4)
	fill(t, pool, 2*purgeAtOnce+1)
	ctx, stop := context.WithCancel(t.Context())
	log := &logbook{}
	ended := make(chan error, 1)
	go func() {
		ended <- Keys{Pool: pool, Retention: time.Minute, Logger: slog.New(slog.NewTextHandler(log, nil))}.Run(ctx)
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for count(t, pool, "SELECT count(*) FROM idempotency_keys WHERE fingerprint <> ''") > 0 {
		select {
		case <-tick.C:
		case err := <-ended:
			t.Fatalf("ended: %v %s", err, log)
		}
	}
	stop()
	if err := <-ended; err != nil || log.String() != "" {
		t.Errorf("%v %s", err, log)
	}
}

// The answer is stored in place: neither index gets a second entry for it.
func TestStoringAnAnswerTouchesNoIndex(t *testing.T) {
	pool := openPool(t, 1)
	w := newWorld(t, Config{})
	w.api.Handle("POST /charges", w.api.Idempotent(pool, "charge", charge))
	for i := range 20 {
		w.do("POST", "/charges", `{"amount":5}`, "Idempotency-Key", fmt.Sprint("k-", i))
	}
	if _, err := pool.Exec(t.Context(), "SELECT pg_stat_force_next_flush()"); err != nil { // the pool's one connection counted
		t.Fatal(err)
	}
	var hot, all int
	if err := pool.QueryRow(t.Context(), "SELECT n_tup_hot_upd, n_tup_upd FROM pg_stat_user_tables WHERE relname = 'idempotency_keys'").Scan(&hot, &all); err != nil {
		t.Fatal(err)
	}
	if hot != 20 || all != 20 {
		t.Errorf("%d of %d updates were in place", hot, all)
	}
}
