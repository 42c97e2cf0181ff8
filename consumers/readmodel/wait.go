package readmodel

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/internal/opshttp"
	"converge/producers/httpapi"
)

// DefaultWait is how long a read waits for what its token names.
const DefaultWait = 2 * time.Second

const (
	// pollTime is how often the versions that are waited for are read: all of a table's in one statement.
	pollTime = 20 * time.Millisecond
	// mostWaiting bounds the reads that wait for one table, for each holds one of the API's places. Another one
	// does not wait: it is answered as if its time were over.
	mostWaiting = 128
)

// Watch lets reads of a table wait until it shows a version. It starts no goroutine: of those that wait, one
// reads the versions for all, and hands that on when it leaves. It is safe for concurrent use.
type Watch struct {
	pool *pgxpool.Pool
	sql  string
	wait time.Duration
	turn chan struct{} // held by whoever reads for all

	mu      sync.Mutex // guards all below, and the versions of waiters
	waiting map[*waiter]bool
}

type waiter struct {
	id      string
	version int64
	done    chan struct{} // closed when the table shows the version
}

// NewWatch returns a watch over the column version of the table, whose rows are told apart by the column key.
// wait is for reads that do not say how long; 0 means [DefaultWait].
func NewWatch(pool *pgxpool.Pool, table, key string, wait time.Duration) *Watch {
	if wait == 0 {
		wait = DefaultWait
	}
	return &Watch{pool: pool, wait: wait, turn: make(chan struct{}, 1), waiting: map[*waiter]bool{},
		sql: "SELECT " + key + ", version FROM " + table + " WHERE " + key + " = ANY($1)"}
}

// Standing is where the model is, for a reader with a token.
type Standing int

const (
	Fresh   Standing = iota // it shows what the token names; or there is no token
	Behind                  // it does not, and the reader takes what is there
	Lagging                 // it does not, and the reader said handling=strict
)

// Await waits until the table shows the version of the row, at most as long as the reader prefers, and says in
// Preference-Applied what it went by. Version 0 is what there is without a token: it does not wait.
//
// A read that begins after Await has returned Fresh sees that version or a newer one: versions of a row do not go back.
func (v *Watch) Await(w http.ResponseWriter, r *http.Request, id string, version int64) (Standing, error) {
	if version == 0 {
		return Fresh, nil
	}
	p := httpapi.ReadPreference(r)
	wait := v.wait
	if p.Waits {
		wait = p.Wait
	}
	p.Waited(w)
	if p.Strict {
		w.Header().Add("Preference-Applied", "handling=strict")
	}
	shown, err := v.await(r.Context(), &waiter{id, version, make(chan struct{})}, wait)
	switch {
	case err != nil:
		return Behind, err
	case shown:
		return Fresh, nil
	case p.Strict:
		return Lagging, nil
	}
	return Behind, nil
}

// Refuse returns read-model-lagging when the reader is to have no answer: it is strict, or nothing is there yet.
func (s Standing) Refuse(there bool) error {
	if s == Lagging || s == Behind && !there {
		e := httpapi.Fail(httpapi.ReadModelLagging, "")
		e.Header = http.Header{"Retry-After": {"1"}}
		return e
	}
	return nil
}

func (v *Watch) await(ctx context.Context, me *waiter, wait time.Duration) (shown bool, err error) {
	v.join(me)
	defer v.leave(me)
	if err := v.look(ctx, []*waiter{me}); err != nil {
		return false, err
	}
	over := time.NewTimer(wait)
	defer over.Stop()
	if v.crowded() {
		over.Reset(0)
	}
	turn, tick := v.turn, (<-chan time.Time)(nil)
	for {
		select { // what is there wins over a time that is over
		case <-me.done:
			return true, nil
		default:
		}
		select {
		case <-me.done:
		case <-over.C:
			return v.reached(me), nil
		case <-opshttp.Draining(ctx): // the server stops: who waits gets what is there
			return v.reached(me), nil
		case <-ctx.Done():
			return false, ctx.Err()
		case turn <- struct{}{}:
			defer func() { <-v.turn }()
			ticker := time.NewTicker(pollTime)
			defer ticker.Stop()
			turn, tick = nil, ticker.C
		case <-tick:
			if err := v.look(ctx, v.all()); err != nil {
				return false, err
			}
		}
	}
}

// look reads the versions, and tells the waiters whose versions are there.
func (v *Watch) look(ctx context.Context, waiters []*waiter) error {
	ids := make([]string, len(waiters))
	for i, w := range waiters {
		ids[i] = w.id
	}
	rows, err := v.pool.Query(ctx, v.sql, ids)
	if err != nil {
		return fmt.Errorf("reading the versions of a read model: %w", err)
	}
	shown := map[string]int64{}
	var id string
	var version int64
	if _, err := pgx.ForEachRow(rows, []any{&id, &version}, func() error { shown[id] = version; return nil }); err != nil {
		return fmt.Errorf("reading the versions of a read model: %w", err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, w := range waiters {
		if v.waiting[w] && shown[w.id] >= w.version {
			delete(v.waiting, w)
			close(w.done)
		}
	}
	return nil
}

func (v *Watch) join(me *waiter) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.waiting[me] = true
}

func (v *Watch) leave(me *waiter) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.waiting, me)
}

func (v *Watch) reached(me *waiter) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return !v.waiting[me]
}

func (v *Watch) crowded() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.waiting) > mostWaiting
}

func (v *Watch) all() []*waiter {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := make([]*waiter, 0, len(v.waiting))
	for w := range v.waiting {
		all = append(all, w)
	}
	return all
}
