package retry_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"converge/consumers/event"
	"converge/consumers/retry"
)

func TestHeadAndFollowersWaitAndTheWakeUpTravelsTheFirstRung(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	events := newEvents("a", 3)
	hold(t, pool, l, events...)
	var held map[string]bool
	must(t, transact(t, pool, func(tx pgx.Tx) (err error) {
		held, err = l.Held(t.Context(), tx, topic, []string{"a", "b"})
		return err
	}))
	if diff := cmp.Diff(map[string]bool{"a": true}, held); diff != "" {
		t.Error(diff)
	}
	records := outboxRows(t, pool)
	if len(records) != 1 {
		t.Fatalf("%d records in the outbox, want the head's wake-up alone", len(records))
	}
	w, r := current(t, pool, "a"), records[0]
	want := map[string]string{"hold_key": "a", "token": strconv.FormatInt(w.Token, 10), "attempt": "1",
		"event_id": events[0].ID.String(), "event_type": "OrderPlaced", "error": "no stock", "error_class": "retriable",
		"origin_topic": topic, "origin_partition": "1", "origin_offset": strconv.FormatInt(events[0].Offset, 10),
		"not_before": r.Headers["not_before"]}
	if diff := cmp.Diff(want, r.Headers); diff != "" {
		t.Error(diff)
	}
	if r.Topic != "orders.billing.retry.1s" || r.Key != "a" || string(r.Value) != string(events[0].Value) {
		t.Errorf("the wake-up is %s %s %s", r.Topic, r.Key, r.Value)
	}
	var waiting []retry.Waiting
	must(t, transact(t, pool, func(tx pgx.Tx) (err error) {
		waiting, err = l.Waiting(t.Context(), tx, w, 0, 10)
		return err
	}))
	var back []*event.Event
	for _, held := range waiting {
		back = append(back, held.Event)
	}
	if diff := cmp.Diff(events, back); diff != "" {
		t.Errorf("what waits is not what was held: %s", diff)
	}
}

func TestAStaleTokenClaimsNothing(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	hold(t, pool, l, newEvent("a"))
	stale := current(t, pool, "a")
	if applied := drain(t, pool, l, stale, 10, func(*event.Event) error { return errors.New("again") }); len(applied) != 0 {
		t.Fatalf("applied %d", len(applied))
	}
	if fresh := current(t, pool, "a"); fresh.Token == stale.Token {
		t.Fatal("another wait has the same token")
	}
	must(t, transact(t, pool, func(tx pgx.Tx) error {
		for name, w := range map[string]retry.Wake{"stale": stale, "unknown key": {Topic: topic, Key: "b", Token: stale.Token}} {
			if _, ok, err := l.Claim(t.Context(), tx, w); ok || err != nil {
				t.Errorf("%s: claimed is %v, error %v", name, ok, err)
			}
		}
		return nil
	}))
	if released, err := l.Release(t.Context(), pool, stale); err != nil || ask[int](t, pool, "SELECT count(*) FROM held_keys") != 1 {
		t.Errorf("a stale token released the key: %v %v", released, err)
	}
}

// Two processes are handed one wake-up: the second waits for the first's transaction, and then finds what
// the first left, never the same events.
func TestASecondClaimWaitsAndSeesWhatTheFirstLeft(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	hold(t, pool, l, newEvents("a", 2)...)
	w := current(t, pool, "a")
	claimed, proceed, seen := make(chan struct{}), make(chan struct{}), make(chan int, 1)
	go func() {
		<-claimed
		if err := pgx.BeginFunc(context.Background(), pool, func(tx pgx.Tx) error {
			_, ok, err := l.Claim(context.Background(), tx, w)
			if err != nil || !ok {
				return err
			}
			waiting, err := l.Waiting(context.Background(), tx, w, 0, 10)
			seen <- len(waiting)
			return err
		}); err != nil {
			t.Error(err)
			seen <- -1
		}
	}()
	go func() {
		defer close(proceed)
		waitForLock(t, pool)
	}()
	must(t, transact(t, pool, func(tx pgx.Tx) error {
		turn, ok, err := l.Claim(t.Context(), tx, w)
		if err != nil || !ok {
			t.Fatalf("claim: %v %v", ok, err)
		}
		close(claimed)
		<-proceed
		waiting, err := l.Waiting(t.Context(), tx, w, 0, 1)
		if err != nil {
			return err
		}
		return l.Settle(t.Context(), tx, turn, retry.Result{Done: waiting})
	}))
	if n := <-seen; n != 1 {
		t.Errorf("the second saw %d events, want the one that is left", n)
	}
}

// The interleaving behind the foreign key: main sees the key held, the drain finishes and releases, and
// only then main inserts its follower. The follower must not be orphaned.
func TestAFollowerThatComesAfterTheReleaseIsALostRace(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	hold(t, pool, l, newEvent("a"))
	err := transact(t, pool, func(tx pgx.Tx) error {
		held, err := l.Held(t.Context(), tx, topic, []string{"a"})
		if err != nil || !held["a"] {
			t.Fatalf("held: %v %v", held, err)
		}
		drain(t, pool, l, current(t, pool, "a"), 10, func(*event.Event) error { return nil })
		return l.Hold(t.Context(), tx, topic, nil, []*event.Event{newEvent("a")})
	})
	if !retry.LostRace(err) {
		t.Fatalf("got %v, want a lost race", err)
	}
	if n := ask[int](t, pool, "SELECT count(*) FROM held_events"); n != 0 {
		t.Errorf("%d orphans wait", n)
	}
}

func TestAKeyThatSomebodyElseHoldsIsALostRace(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	hold(t, pool, l, newEvent("a"))
	err := transact(t, pool, func(tx pgx.Tx) error {
		e := newEvent("a")
		return l.Hold(t.Context(), tx, topic, []retry.Failure{{Event: e, Err: errors.New("no"), Attempts: 1, FirstAt: time.Now()}}, []*event.Event{e})
	})
	if !retry.LostRace(err) {
		t.Fatalf("got %v, want a lost race", err)
	}
	if retry.LostRace(nil) || retry.LostRace(errors.New("other")) {
		t.Error("anything is a lost race")
	}
}

// A follower is on its way while the drain has nothing left: the release waits for it and yields.
func TestReleaseYieldsToAFollowerOnItsWay(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	hold(t, pool, l, newEvent("a"))
	w := current(t, pool, "a")
	must(t, transact(t, pool, func(tx pgx.Tx) error {
		turn, _, err := l.Claim(t.Context(), tx, w)
		if err != nil {
			return err
		}
		waiting, err := l.Waiting(t.Context(), tx, w, 0, 10)
		if err != nil {
			return err
		}
		return l.Settle(t.Context(), tx, turn, retry.Result{Done: waiting})
	}))
	outcome := make(chan bool, 1)
	follower := newEvent("a")
	must(t, transact(t, pool, func(tx pgx.Tx) error {
		if err := l.Hold(t.Context(), tx, topic, nil, []*event.Event{follower}); err != nil {
			return err
		}
		go func() {
			released, err := l.Release(context.Background(), pool, w)
			if err != nil {
				t.Error(err)
			}
			outcome <- released
		}()
		waitForLock(t, pool)
		return nil
	}))
	if <-outcome {
		t.Fatal("the key was released over a waiting follower")
	}
	applied := drain(t, pool, l, w, 10, func(*event.Event) error { return nil })
	if diff := cmp.Diff(ids([]*event.Event{follower}), ids(applied)); diff != "" {
		t.Errorf("with the same token the follower is next: %s", diff)
	}
}

// Whatever a record holds, holding it must work: an event that cannot be written down would stop its
// partition for good.
func TestAnyRecordCanBeHeldAndBuried(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	incompressible := make([]byte, 1<<16)
	noise := rand.NewChaCha8([32]byte{1})
	for i := range incompressible {
		incompressible[i] = byte(33 + noise.Uint64()%90)
	}
	for name, key := range map[string][]byte{
		"none": nil, "empty": {}, "NUL": []byte("a\x00b"), "not UTF-8": {0xff, 0xfe}, "64 kB": incompressible,
		"long and not UTF-8": []byte(strings.Repeat("\xff\x01\x80z", 3000)),
	} {
		for _, policy := range []retry.Policy{{}, {Unordered: true}} {
			l.Policy = policy
			t.Run(name, func(t *testing.T) {
				held, buried := newEvent(""), newEvent("")
				for _, e := range []*event.Event{held, buried} {
					e.Key, e.Value = key, nil
					e.Headers = append(e.Headers, event.Header{Key: "bad\x00\xff", Value: []byte("\x00\xff")}, event.Header{Key: "content-type", Value: []byte("\xff\x00")},
						event.Header{Key: "event_type", Value: []byte("\x00")}, event.Header{Key: "none"}, event.Header{Key: "empty", Value: []byte{}})
					e.Identify()
				}
				must(t, transact(t, pool, func(tx pgx.Tx) error {
					f := retry.Failure{Event: held, Err: errors.New("bad \x00\xff text"), Attempts: 1, FirstAt: time.Now()}
					if err := l.Hold(t.Context(), tx, topic, []retry.Failure{f}, []*event.Event{held}); err != nil {
						return err
					}
					f.Event = buried
					return l.Bury(t.Context(), tx, []retry.Failure{f})
				}))
				w := current(t, pool, l.KeyOf(held))
				var back *event.Event
				drain(t, pool, l, w, 10, func(e *event.Event) error { back = e; return nil })
				held.Headers[2].Key = back.Headers[2].Key // a header's name is text for PostgreSQL's sake
				if diff := cmp.Diff(held, back); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

// What waits is the record, byte for byte.
func TestHeldEventsComeBackAsTheyWere(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{})
	rapid.Check(t, func(r *rapid.T) {
		e := newEvent("")
		bytes := rapid.OneOf(rapid.SliceOfN(rapid.Byte(), 0, 40), rapid.Just([]byte(nil)))
		e.Key, e.Value = bytes.Draw(r, "key"), bytes.Draw(r, "value")
		for range rapid.IntRange(0, 4).Draw(r, "headers") {
			e.Headers = append(e.Headers, event.Header{Key: rapid.StringMatching(`[a-z_]{1,8}`).Draw(r, "name"), Value: bytes.Draw(r, "header")})
		}
		e.Identify()
		hold(t, pool, l, e)
		var back *event.Event
		drain(t, pool, l, current(t, pool, l.KeyOf(e)), 10, func(e *event.Event) error { back = e; return nil })
		if diff := cmp.Diff(e, back); diff != "" {
			r.Fatal(diff)
		}
	})
}

func TestKeysOfAConsumerWithoutOrderAreItsEvents(t *testing.T) {
	pool, l := tables(t), ladder(retry.Policy{Unordered: true})
	first, second := newEvent("a"), newEvent("a")
	hold(t, pool, l, first)
	var batch pgx.Batch
	var held bool
	l.QueueAnyHeld(&batch, topic, &held)
	if batch.Len() != 0 {
		t.Error("a consumer without order asks for held keys")
	}
	hold(t, pool, l, second)
	if n := ask[int](t, pool, "SELECT count(*) FROM held_keys"); n != 2 {
		t.Errorf("%d keys held, want one for each event", n)
	}
}
