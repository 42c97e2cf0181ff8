package httpapi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/internal/opshttp"
)

const (
	// watchEvery is how late a change may be told to those that wait for it.
	watchEvery = 20 * time.Millisecond
	// watchTime bounds one question to the database.
	watchTime = 2 * time.Second
)

// Watch tells requests of the changes that they wait for, whichever process makes these: it asks the database
// every 20 ms for the versions of all rows that are waited for, with one query. While nobody waits, nobody
// asks.
//
// It has no goroutine of its own. One of those that wait leads: it asks for all. When it goes, because its row
// changed or its client left, another takes the lead; the lead is a token in a channel, so that there is one
// leader at most, and one as long as somebody waits.
//
// When the database does not answer, everybody that waits gets the error.
type Watch struct {
	api      *API
	versions func(ctx context.Context, ids []string) (map[string]int64, error)
	lead     chan struct{} // holds the token of the leader, or nothing
	next     time.Time     // when to ask again, no sooner. Invariant: only the leader touches it

	mu      sync.Mutex
	waiters map[*waiter]struct{}
}

// waiter waits for its row to have a version above from.
type waiter struct {
	id    string
	from  int64
	woken chan error // of one place: who wakes does not wait
}

// Watch returns a watch over the rows of which versionsSQL returns id and version. $1 is their ids. Versions of a
// row must not go back.
func (a *API) Watch(pool *pgxpool.Pool, versionsSQL string) *Watch {
	return newWatch(a, func(ctx context.Context, ids []string) (map[string]int64, error) {
		rows, err := pool.Query(ctx, versionsSQL, ids)
		if err != nil {
			return nil, fmt.Errorf("asking for versions: %w", err)
		}
		found := map[string]int64{}
		var id string
		var version int64
		if _, err := pgx.ForEachRow(rows, []any{&id, &version}, func() error {
			found[id] = version
			return nil
		}); err != nil {
			return nil, fmt.Errorf("asking for versions: %w", err)
		}
		return found, nil
	})
}

func newWatch(a *API, versions func(context.Context, []string) (map[string]int64, error)) *Watch {
	return &Watch{api: a, versions: versions, lead: make(chan struct{}, 1), waiters: map[*waiter]struct{}{}}
}

// errDraining says that the server is about to stop: who waits answers with what is there.
var errDraining = errors.New("the server is draining")

// changed returns nil once the row has a version above from, errDraining when draining is closed before, and
// otherwise the database's error or that of ctx.
//
// A change between the caller's reading of from and this call is not missed. Say that the caller reads version
// 1, another process commits version 2, and then the caller comes here: nothing is told at the moment of a
// change, what is compared is the version that the caller saw with the one that is there when the database is
// asked next. And an answer that was on its way when the caller came, and is older than what it saw, wakes
// nobody: only a greater version does.
func (w *Watch) changed(ctx context.Context, draining <-chan struct{}, id string, from int64) error {
	me := &waiter{id: id, from: from, woken: make(chan error, 1)}
	w.mu.Lock()
	w.waiters[me] = struct{}{}
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		delete(w.waiters, me)
		w.mu.Unlock()
	}()
	lead := w.lead
	timer := time.NewTimer(0) // of the leader
	timer.Stop()
	defer timer.Stop()
	for {
		select { // what is there wins over a time that is over
		case err := <-me.woken:
			return err
		default:
		}
		select {
		case err := <-me.woken:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-draining:
			return errDraining
		case lead <- struct{}{}:
			defer func() { <-w.lead }() // once: the channel is left out from here on
			lead = nil
			timer.Reset(time.Until(w.next))
		case <-timer.C:
			w.ask(ctx)
			w.next = time.Now().Add(watchEvery)
			timer.Reset(watchEvery)
		}
	}
}

// ask wakes those whose row has changed, and everybody when the database does not answer. A leader that leaves
// meanwhile waits for the answer: cancelling a query costs its connection, which others want.
func (w *Watch) ask(ctx context.Context) {
	w.mu.Lock()
	set := map[string]bool{}
	for one := range w.waiters {
		set[one.id] = true
	}
	w.mu.Unlock()
	ids := slices.Collect(maps.Keys(set))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), watchTime)
	defer cancel()
	found, err := w.versions(ctx, ids)
	w.mu.Lock()
	defer w.mu.Unlock()
	for one := range w.waiters {
		// Who came after the question is told of trouble too, and of a version if another asked for its row.
		if err == nil && found[one.id] <= one.from {
			continue
		}
		delete(w.waiters, one)
		one.woken <- err
	}
}

// Await waits, if the request says Prefer: wait=N, until the row has a version above the one that was read: for
// N seconds at most, not when If-None-Match names another version, and not when the resource is at rest and will
// never have one. It sets Preference-Applied. When it has waited, what was read is to be read again.
func (w *Watch) Await(rw http.ResponseWriter, r *http.Request, id string, version int64, atRest bool) (waited bool, err error) {
	p := ReadPreference(r)
	p.Waited(rw)
	if !p.Waits || p.Wait == 0 || atRest || r.Header.Get("If-None-Match") != "" && !noneMatches(r, version) {
		return false, nil
	}
	_, err = w.above(r, id, version, p.Wait)
	return err == nil, err
}

// Reach reports whether the row has the version or a newer one, and waits until it has, at most as long as
// given. Who reads the row after true sees that version or a newer one.
func (w *Watch) Reach(r *http.Request, id string, version int64, wait time.Duration) (reached bool, err error) {
	found, err := w.versions(r.Context(), []string{id})
	if err != nil || found[id] >= version || wait == 0 {
		return err == nil && found[id] >= version, err
	}
	return w.above(r, id, version-1, wait)
}

// above reports whether the row has had a version above from before the time was over, the client left or the
// server began to drain.
//
// A request that waits counts among [Config.MaxWaiting] and no longer among [Config.MaxInFlight]; one too many
// is too-many-requests.
func (w *Watch) above(r *http.Request, id string, from int64, wait time.Duration) (bool, error) {
	leave, err := w.api.wait(r)
	if err != nil {
		return false, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	err = w.changed(ctx, opshttp.Draining(ctx), id, from)
	switch {
	case r.Context().Err() != nil:
		return false, r.Context().Err()
	case errors.Is(err, errDraining), ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return false, nil
	}
	return err == nil, err
}

// place is what a request takes of the API's bounds.
type place struct {
	inFlight bool // it counts among those that are processed
	waited   bool // it has waited for something to happen: how long it took says nothing of this API
}

type placeKey struct{}

// wait takes the request from those that are processed to those that wait; it does not come back.
func (a *API) wait(r *http.Request) (leave func(), err error) {
	select {
	case a.waiting <- struct{}{}:
	default:
		return nil, Fail(TooManyRequests, "too many requests wait for a change").retryAfter(1)
	}
	if p, ok := r.Context().Value(placeKey{}).(*place); ok {
		p.waited = true
		a.leave(p)
	}
	a.metrics.waiting.Inc()
	return func() {
		a.metrics.waiting.Dec()
		<-a.waiting
	}, nil
}

// leave gives back the place among those that are processed, if the request has one.
func (a *API) leave(p *place) {
	if p.inFlight {
		p.inFlight = false
		<-a.slots
	}
}
