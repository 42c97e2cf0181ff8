package readmodel

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"converge/internal/pgtest"
)

func newWatch(t *testing.T) (*Watch, *pgxpool.Pool) {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if _, err := pool.Exec(t.Context(), "CREATE TABLE things (id text PRIMARY KEY, version bigint NOT NULL)"); err != nil {
		t.Fatal(err)
	}
	return NewWatch(pool, "things", "id", 0), pool
}

const long = time.Minute

// Who reads for all may leave, because its client does; another one takes its turn, and nobody misses its version.
func TestTheTurnIsHandedOnByWhoLeaves(t *testing.T) {
	watch, pool := newWatch(t)
	type outcome struct {
		shown bool
		err   error
	}
	done := make(chan outcome)
	leaving, leave := context.WithCancel(t.Context())
	wait := func(ctx context.Context, id string) {
		shown, err := watch.await(ctx, &waiter{id, 1, make(chan struct{})}, long)
		done <- outcome{shown, err}
	}
	go wait(leaving, "a")
	for held := false; !held; { // it has the turn
		select {
		case watch.turn <- struct{}{}:
			<-watch.turn
		default:
			held = true
		}
	}
	const others = 20
	for i := range others {
		go wait(t.Context(), fmt.Sprint("o", i))
	}
	leave()
	if o := <-done; o.shown || !errors.Is(o.err, context.Canceled) {
		t.Errorf("who left: %+v", o)
	}
	if _, err := pool.Exec(t.Context(), "INSERT INTO things SELECT 'o' || n, 1 FROM generate_series(0, $1 - 1) n", others); err != nil {
		t.Fatal(err)
	}
	for range others {
		if o := <-done; !o.shown || o.err != nil {
			t.Errorf("who stayed: %+v", o)
		}
	}
	if len(watch.waiting) != 0 || len(watch.turn) != 0 {
		t.Errorf("%d wait still, %d have the turn", len(watch.waiting), len(watch.turn))
	}
}

// Reads that wait hold places of the API's: beyond a bound a read is answered at once, with what is there.
func TestACrowdDoesNotWait(t *testing.T) {
	watch, pool := newWatch(t)
	for range mostWaiting {
		watch.join(&waiter{"crowd", 1, make(chan struct{})})
	}
	if shown, err := watch.await(t.Context(), &waiter{"a", 1, make(chan struct{})}, long); shown || err != nil {
		t.Errorf("%v %v", shown, err)
	}
	if _, err := pool.Exec(t.Context(), "INSERT INTO things VALUES ('a', 2)"); err != nil {
		t.Fatal(err)
	}
	if shown, err := watch.await(t.Context(), &waiter{"a", 1, make(chan struct{})}, long); !shown || err != nil {
		t.Errorf("what is there already: %v %v", shown, err)
	}
}
