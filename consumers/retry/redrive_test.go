package retry_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/consumers/event"
	"converge/consumers/retry"
)

var errBad = event.Permanent(errors.New("address unknown"))

// bury makes the events dead letters, as a batch of main's does.
func bury(t testing.TB, pool *pgxpool.Pool, l retry.Ladder, events ...*event.Event) {
	t.Helper()
	var dead []retry.Failure
	for _, e := range events {
		dead = append(dead, retry.Failure{Event: e, Err: errBad, Attempts: 1, FirstAt: time.Now()})
	}
	must(t, transact(t, pool, func(tx pgx.Tx) error { return l.Bury(t.Context(), tx, dead) }))
}

func ok(*event.Event) error { return nil }

func TestADeadLetterIsOnItsTopicAndInItsTableFromOneTransaction(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	e := newEvent("a")
	undone := errors.New("undone")
	if err := transact(t, pool, func(tx pgx.Tx) error {
		if err := l.Bury(t.Context(), tx, []retry.Failure{{Event: newEvent("b"), Err: errBad, Attempts: 1, FirstAt: time.Now()}}); err != nil {
			return err
		}
		return undone
	}); !errors.Is(err, undone) {
		t.Fatal(err)
	}
	bury(t, pool, l, e)
	letters, err := retry.List(t.Context(), pool, retry.Filter{})
	must(t, err)
	records := outboxRows(t, pool)
	if len(letters) != 1 || len(records) != 1 {
		t.Fatalf("%d rows and %d records, want one of each", len(letters), len(records))
	}
	got := letters[0]
	want := retry.Letter{Consumer: consumer, EventID: e.ID, EventType: "OrderPlaced", Topic: topic, Key: "a", Partition: 1, Offset: e.Offset,
		ErrorClass: "permanent", Error: "address unknown", State: "dead", Attempts: 1, Deaths: 1, FirstFailedAt: got.FirstFailedAt,
		LastFailedAt: got.LastFailedAt, Headers: e.Headers, Payload: e.Value}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	r := records[0]
	for _, name := range []string{"event_id", "error", "error_class", "attempts", "origin_topic", "origin_partition", "origin_offset",
		"first_failed_at", "last_failed_at"} {
		if r.Headers[name] == "" {
			t.Errorf("the record has no header %s", name)
		}
	}
	if r.Topic != "orders.billing.dlq" || r.Key != "a" || string(r.Value) != string(e.Value) {
		t.Errorf("the record is %+v", r)
	}
}

func TestAnEventThatDiesTwiceIsOneLetterWithTwoDeaths(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	e := newEvent("a")
	bury(t, pool, l, e)
	e.Value = []byte("its other content")
	bury(t, pool, l, e)
	letters, err := retry.List(t.Context(), pool, retry.Filter{Consumer: consumer})
	if err != nil {
		t.Fatal(err)
	}
	if len(letters) != 1 || letters[0].Deaths != 2 || letters[0].Attempts != 2 || string(letters[0].Payload) != "its other content" {
		t.Errorf("the letters are %+v", letters)
	}
}

func TestRedriveRunsAWholeKeyInOrderBehindWhatWaits(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	dead, other, waiting := newEvents("a", 3), newEvent("b"), newEvents("a", 2)
	bury(t, pool, l, dead[0], other, dead[1], dead[2])
	hold(t, pool, l, waiting...)
	redriven, err := l.Redrive(t.Context(), pool, topic, "a", retry.Decision{})
	must(t, err)
	if diff := cmp.Diff([]uuid.UUID{dead[0].ID, dead[1].ID, dead[2].ID}, redriven); diff != "" {
		t.Error(diff)
	}
	if again, err := l.Redrive(t.Context(), pool, topic, "a", retry.Decision{}); len(again) != 0 || err != nil {
		t.Errorf("redriving again: %d, %v", len(again), err)
	}
	states := func(want map[string]int) {
		t.Helper()
		got, err := retry.States(t.Context(), pool, consumer, redriven)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Error(diff, err)
		}
	}
	states(map[string]int{"redriving": 3})
	applied := drain(t, pool, l, current(t, pool, "a"), 2, ok)
	if diff := cmp.Diff(ids(slices.Concat(waiting, dead)), ids(applied)); diff != "" {
		t.Error(diff)
	}
	for state, want := range map[string]int{"resolved": 3, "dead": 1, "redriving": 0} {
		if got := ask[int](t, pool, "SELECT count(*) FROM dead_letters WHERE state = $1", state); got != want {
			t.Errorf("%d letters are %s, want %d", got, state, want)
		}
	}
	states(map[string]int{"resolved": 3})
}

func TestRedriveOfAFreeKeyCallsForItAtOnce(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	bury(t, pool, l, newEvent("a"))
	_, err := l.Redrive(t.Context(), pool, topic, "a", retry.Decision{})
	must(t, err)
	records := outboxRows(t, pool)
	wake := records[len(records)-1]
	if wake.Topic != "orders.billing.retry.1s" || wake.Headers["hold_key"] != "a" {
		t.Errorf("the last record is %+v, want a wake-up", wake)
	}
	if due := current(t, pool, "a").NotBefore; time.Until(due) > 0 {
		t.Errorf("it is due in %v", time.Until(due))
	}
}

func TestAnEventThatDiesAgainKeepsItsHistory(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	e := newEvent("a")
	bury(t, pool, l, e)
	_, err := l.Redrive(t.Context(), pool, topic, "a", retry.Decision{})
	must(t, err)
	drain(t, pool, l, current(t, pool, "a"), 10, func(*event.Event) error { return event.Permanent(errors.New("still unknown")) })
	letter, err := retry.Show(t.Context(), pool, consumer, e.ID)
	must(t, err)
	if letter.State != "dead" || letter.Deaths != 2 || letter.Attempts != 2 || letter.Error != "still unknown" {
		t.Errorf("got %+v", letter)
	}
	if n := ask[int](t, pool, "SELECT count(*) FROM held_keys"); n != 0 {
		t.Errorf("%d keys are held", n)
	}
}

// While the redrive looks at the key somebody releases it: nothing may be left redriving for ever.
func TestRedriveSurvivesTheReleaseOfItsKey(t *testing.T) {
	for range 20 {
		pool, l := tables(t), ladder(retry.Policy{})
		dead := newEvent("a")
		bury(t, pool, l, dead)
		hold(t, pool, l, newEvent("a"))
		w, done := current(t, pool, "a"), make(chan error, 1)
		go func() {
			_, err := l.Redrive(context.Background(), pool, topic, "a", retry.Decision{})
			done <- err
		}()
		drain(t, pool, l, w, 1, ok)
		must(t, <-done)
		if ask[int](t, pool, "SELECT count(*) FROM held_keys") == 1 {
			drain(t, pool, l, current(t, pool, "a"), 1, ok)
		}
		if state := ask[string](t, pool, "SELECT state FROM dead_letters"); state != "resolved" {
			t.Fatalf("the letter is %s", state)
		}
	}
}

func TestRedriveWaitsForTheBatchInFlight(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	bury(t, pool, l, newEvent("a"))
	_, err := pool.Exec(t.Context(), "INSERT INTO consumer_offsets VALUES ($1, $2, 0, 5)", consumer, topic)
	must(t, err)
	done := make(chan error, 1)
	must(t, transact(t, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), "UPDATE consumer_offsets SET next_offset = 6"); err != nil {
			return err
		}
		go func() {
			_, err := l.Redrive(context.Background(), pool, topic, "a", retry.Decision{})
			done <- err
		}()
		waitForLock(t, pool)
		return nil
	}))
	must(t, <-done)
}

func TestADiscardedLetterStaysAway(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	e := newEvent("a")
	bury(t, pool, l, e)
	must(t, l.Discard(t.Context(), pool, e.ID, retry.Decision{}))
	if err := l.Discard(t.Context(), pool, e.ID, retry.Decision{}); !errors.Is(err, retry.ErrNoLetter) {
		t.Errorf("discarding again: %v", err)
	}
	if redriven, err := l.Redrive(t.Context(), pool, topic, "a", retry.Decision{}); len(redriven) != 0 || err != nil {
		t.Errorf("redrove %d, %v", len(redriven), err)
	}
	if letter, err := retry.Show(t.Context(), pool, consumer, e.ID); err != nil || letter.State != "discarded" {
		t.Errorf("%+v, %v", letter, err)
	}
	if _, err := retry.Show(t.Context(), pool, consumer, uuid.New()); !errors.Is(err, retry.ErrNoLetter) {
		t.Errorf("an unknown letter: %v", err)
	}
}

func TestFiltersChooseLetters(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	events := newEvents("a", 4)
	events = append(events, newEvent("b"))
	bury(t, pool, l, events...)
	must(t, l.Discard(t.Context(), pool, events[0].ID, retry.Decision{}))
	for name, c := range map[string]struct {
		filter retry.Filter
		want   int
	}{
		"unresolved":       {retry.Filter{}, 4},
		"discarded":        {retry.Filter{State: "discarded"}, 1},
		"a key":            {retry.Filter{Key: "a"}, 3},
		"a limit":          {retry.Filter{Limit: 2}, 2},
		"an event":         {retry.Filter{EventID: events[2].ID}, 1},
		"another consumer": {retry.Filter{Consumer: "analytics"}, 0},
		"a class":          {retry.Filter{Class: "permanent"}, 4},
		"another class":    {retry.Filter{Class: "retriable"}, 0},
		"a cause":          {retry.Filter{Cause: "address"}, 4},
		"no pattern":       {retry.Filter{Cause: "%"}, 0},
		"a type":           {retry.Filter{Type: "OrderPlaced"}, 4},
		"the future":       {retry.Filter{Since: time.Now().Add(time.Hour)}, 0},
		"the past":         {retry.Filter{Until: time.Now().Add(-time.Hour)}, 0},
	} {
		letters, err := retry.List(t.Context(), pool, c.filter)
		if err != nil || len(letters) != c.want {
			t.Errorf("%s: %d letters, want %d (%v)", name, len(letters), c.want, err)
		}
	}
}

// A letter that is mended by hand reaches its handler as it is now, and what it was is kept.
func TestAnEditedLetterIsRedrivenAsItIsNow(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	e := newEvent("a")
	e.Headers = append(e.Headers, event.Header{Key: "content-type", Value: []byte("avro/binary")})
	bury(t, pool, l, e)
	must(t, l.Edit(t.Context(), pool, e.ID, []byte(`{"address":"known"}`), "application/json", retry.Decision{By: "ada", Why: "the address was cut"}))
	_, err := l.Redrive(t.Context(), pool, topic, "a", retry.Decision{By: "ada", Why: "mended"})
	must(t, err)
	if err := l.Edit(t.Context(), pool, e.ID, nil, "", retry.Decision{}); !errors.Is(err, retry.ErrNoLetter) {
		t.Errorf("editing what is on its way: %v", err)
	}
	applied := drain(t, pool, l, current(t, pool, "a"), 2, ok)
	if len(applied) != 1 || string(applied[0].Value) != `{"address":"known"}` || applied[0].ContentType != "application/json" || applied[0].ID != e.ID {
		t.Errorf("applied %+v", applied)
	}
	got, err := retry.Decisions(t.Context(), pool, consumer, e.ID)
	must(t, err)
	want := []retry.Decided{
		{Act: "edited", By: "ada", Why: "the address was cut", Before: e.Value, After: []byte(`{"address":"known"}`)},
		{Act: "redriven", By: "ada", Why: "mended"}}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(retry.Decided{}, "At")); diff != "" {
		t.Error(diff)
	}
}

func TestStatsCountLettersByTheirCauses(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	bury(t, pool, l, append(newEvents("a", 2), newEvent("b"))...)
	must(t, transact(t, pool, func(tx pgx.Tx) error {
		return l.Bury(t.Context(), tx, []retry.Failure{{Event: newEvent("c"), Err: errors.New("no stock"), Attempts: 10, FirstAt: time.Now()}})
	}))
	got, err := retry.Stats(t.Context(), pool, retry.Filter{Consumer: consumer})
	must(t, err)
	want := []retry.Count{
		{Consumer: consumer, Topic: topic, EventType: "OrderPlaced", ErrorClass: "permanent", Error: "address unknown", Letters: 3, Keys: 2},
		{Consumer: consumer, Topic: topic, EventType: "OrderPlaced", ErrorClass: "retriable", Error: "no stock", Letters: 1, Keys: 1}}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(retry.Count{}, "Oldest", "Newest")); diff != "" {
		t.Error(diff)
	}
	if got, err := retry.Stats(t.Context(), pool, retry.Filter{Cause: "stock"}); len(got) != 1 || err != nil {
		t.Errorf("with a cause: %v, %v", got, err)
	}
}
