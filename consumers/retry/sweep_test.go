package retry_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/consumers/event"
	"converge/consumers/retry"
)

// age moves everything about a held key back in time.
func age(t testing.TB, pool *pgxpool.Pool, by time.Duration) {
	t.Helper()
	_, err := pool.Exec(t.Context(), "UPDATE held_keys SET due_at = due_at - $1::interval, nudged_at = nudged_at - $1::interval", by)
	must(t, err)
}

func sweep(t testing.TB, pool *pgxpool.Pool, l retry.Ladder) (n int) {
	t.Helper()
	must(t, transact(t, pool, func(tx pgx.Tx) (err error) {
		n, err = l.Sweep(t.Context(), tx)
		return err
	}))
	return n
}

func TestTheSweeperRepeatsALostWakeUpWithItsToken(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	head := newEvent("a")
	hold(t, pool, l, head)
	if n := sweep(t, pool, l); n != 0 {
		t.Fatalf("%d wake-ups repeated that are not late", n)
	}
	age(t, pool, time.Minute)
	if n := sweep(t, pool, l); n != 1 {
		t.Fatalf("%d wake-ups repeated, want 1", n)
	}
	records := outboxRows(t, pool)
	repeated, w := records[len(records)-1], current(t, pool, "a")
	if repeated.Topic != "orders.billing.retry.1s" || repeated.Headers["hold_key"] != "a" || repeated.Headers["origin_topic"] != topic ||
		repeated.Headers["token"] != strconv.FormatInt(w.Token, 10) || repeated.Headers["event_id"] != head.ID.String() {
		t.Errorf("got %+v", repeated)
	}
	if diff := cmp.Diff([]string{head.ID.String()}, ids(drain(t, pool, l, w, 10, ok))); diff != "" {
		t.Error(diff)
	}
}

func TestEachRepeatDoublesTheWaitForTheNext(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	hold(t, pool, l, newEvent("a"))
	age(t, pool, time.Hour)
	if n := sweep(t, pool, l); n != 1 {
		t.Fatalf("%d wake-ups repeated, want 1", n)
	}
	for _, wait := range []time.Duration{10 * time.Second, 20 * time.Second, 40 * time.Second} {
		age(t, pool, wait-2*time.Second)
		if sweep(t, pool, l) != 0 {
			t.Fatalf("repeated before %v had passed", wait)
		}
		age(t, pool, 3*time.Second)
		if sweep(t, pool, l) != 1 {
			t.Fatalf("not repeated after %v", wait)
		}
	}
}

// A new wait begins with a fresh count: the patience learnt for the old token is not the new one's.
func TestANewTokenIsSweptEarlyAgain(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	hold(t, pool, l, newEvent("a"))
	for range 6 {
		age(t, pool, time.Hour)
		sweep(t, pool, l)
	}
	drain(t, pool, l, current(t, pool, "a"), 10, func(*event.Event) error { return errors.New("again") })
	age(t, pool, 10*time.Second+6*time.Second)
	if n := sweep(t, pool, l); n != 1 {
		t.Errorf("%d wake-ups repeated, want 1", n)
	}
}

func TestTheLadderClimbsToSuccessAndToDeath(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{Rungs: []time.Duration{time.Second, 10 * time.Second}, MaxAttempts: 4})
	events := newEvents("a", 3)
	hold(t, pool, l, events...)
	tries := map[string]int{}
	try := func(e *event.Event) error {
		tries[e.ID.String()]++
		switch e.ID {
		case events[0].ID: // main's try was the first: this one succeeds at the third
			if tries[e.ID.String()] < 2 {
				return errors.New("not yet")
			}
		case events[1].ID:
			return errors.New("never")
		}
		return nil
	}
	var applied []*event.Event
	for rounds := 0; ask[int](t, pool, "SELECT count(*) FROM held_keys") == 1; rounds++ {
		if rounds > 20 {
			t.Fatal("the key is held for ever")
		}
		applied = append(applied, drain(t, pool, l, current(t, pool, "a"), 10, try)...)
	}
	if diff := cmp.Diff(ids([]*event.Event{events[0], events[2]}), ids(applied)); diff != "" {
		t.Error(diff)
	}
	letter, err := retry.Show(t.Context(), pool, consumer, events[1].ID)
	must(t, err)
	if letter.Attempts != 4 || letter.ErrorClass != "retriable" || tries[events[1].ID.String()] != 4 {
		t.Errorf("died after %d tries: %+v", tries[events[1].ID.String()], letter)
	}
	var rungs []string
	for _, r := range outboxRows(t, pool) {
		rungs = append(rungs, r.Topic)
	}
	if want := []string{"orders.billing.retry.1s", "orders.billing.retry.10s", "orders.billing.retry.1s", "orders.billing.retry.10s",
		"orders.billing.retry.10s", "orders.billing.dlq"}; !slices.Equal(rungs, want) {
		t.Errorf("travelled %v", rungs)
	}
}

func TestTenThousandFollowersDrainQuickly(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	drainMany(t, pool, l)
}

// A snapshot that is held open keeps the deleted rows in the index: without seeking past them every chunk
// would walk all that were drained before it.
func TestAnOldSnapshotDoesNotStopTheDrain(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	tx, err := pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	must(t, err)
	defer tx.Rollback(context.Background())
	var n int
	must(t, tx.QueryRow(t.Context(), "SELECT count(*) FROM held_events").Scan(&n))
	drainMany(t, pool, l)
}

// drainMany holds a key with ten thousand events and drains it in chunks of 50.
func drainMany(t *testing.T, pool *pgxpool.Pool, l retry.Ladder) {
	t.Helper()
	events := newEvents("a", 10_000)
	hold(t, pool, l, events...)
	began := time.Now()
	applied := drain(t, pool, l, current(t, pool, "a"), 50, ok)
	took := time.Since(began)
	t.Logf("%d events in %v: %.0f events/s", len(applied), took, float64(len(applied))/took.Seconds())
	if diff := cmp.Diff(ids(events), ids(applied)); diff != "" {
		t.Error("not all of them, or not in order")
	}
	if took > patience {
		t.Errorf("took %v", took)
	}
}
