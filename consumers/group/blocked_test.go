package group_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/event"
	"converge/consumers/retry"
)

// holding is the quick policy with dead letters that hold their keys.
var holding = retry.Policy{Rungs: quick.Rungs, MaxAttempts: quick.MaxAttempts, HoldDead: true}

// blocked waits until n keys are, and everything else is taken on.
func (w *world) blocked(n int) {
	w.t.Helper()
	eventually(w.t, "keys are blocked", func() error {
		if got := ask[int](w, "SELECT count(*) FROM held_keys WHERE state = 'blocked'"); got != n {
			return fmt.Errorf("%d keys", got)
		}
		if waiting := ask[int](w, "SELECT count(*) FROM held_keys WHERE state = 'waiting'"); waiting > 0 {
			return fmt.Errorf("%d keys wait", waiting)
		}
		return nil
	})
}

// A consumer may say that nothing behind a dead letter is to be applied before somebody has decided about it.
func TestADeadLetterMayHoldItsKey(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		no     error
		batch  int // events of a poll: the followers come with the dead one, or later
		decide func(w *world, l retry.Ladder, dead fact) error
		gone   bool
	}{
		"discarded": {event.Permanentf("no"), 0, func(w *world, l retry.Ladder, dead fact) error {
			return l.Discard(w.t.Context(), w.pool, dead.id, retry.Decision{})
		}, true},
		"redriven": {event.Permanentf("no"), 3, func(w *world, l retry.Ladder, dead fact) error {
			ids, err := l.Redrive(w.t.Context(), w.pool, topic, dead.key, retry.Decision{})
			if err == nil && (len(ids) != 1 || ids[0] != dead.id) {
				err = fmt.Errorf("redrove %v", ids)
			}
			return err
		}, false},
		"redriven after all its tries": {errors.New("not yet"), 3, func(w *world, l retry.Ladder, dead fact) error {
			_, err := l.Redrive(w.t.Context(), w.pool, topic, dead.key, retry.Decision{})
			return err
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1)
			w.relay()
			list := facts(60, 3, 1)
			dead := list[9] // key-0, its fourth
			var mended atomic.Bool
			cfg := w.config(tally{"a", func(_ context.Context, e *event.Event) error {
				if e.ID == dead.id && !mended.Load() {
					return c.no
				}
				return nil
			}})
			cfg.Retry, cfg.MaxEvents = holding, c.batch
			ladder := retry.Ladder{Consumer: service, Policy: holding}
			w.produce(list...)
			m := w.start(cfg)
			eventually(t, "all is taken on", func() error {
				if at := w.stored(0); at != int64(len(list)) {
					return fmt.Errorf("%d", at)
				}
				return nil
			})
			behind := func() {
				t.Helper()
				for _, e := range w.effects() {
					if e.Key == dead.key && e.Seq >= dead.seq {
						t.Fatalf("%s/%d is applied with a dead letter in front of it", e.Key, e.Seq)
					}
				}
			}
			behind()
			w.blocked(1)
			if n := len(w.effects()); n != 43 { // two keys whole, and three of this one
				t.Errorf("%d effects", n)
			}
			// It dies once more, and another member finds the key as it is.
			if _, err := ladder.Redrive(t.Context(), w.pool, topic, dead.key, retry.Decision{}); err != nil {
				t.Fatal(err)
			}
			m.counts(t, 2, "converge_consumer_events_total", "outcome", "dead")
			w.blocked(1)
			must(t, m.stop())
			w.start(cfg)
			behind()
			if letter, err := retry.Show(t.Context(), w.pool, service, dead.id); err != nil || letter.State != "dead" || letter.Deaths != 2 {
				t.Errorf("the letter is %+v, %v", letter, err)
			}
			mended.Store(true)
			must(t, c.decide(w, ladder, dead))
			w.settled()
			gone := map[uuid.UUID]bool{}
			if c.gone {
				gone[dead.id] = true
			}
			w.check(list, gone)
		})
	}
}

// What no handler is asked about may stand behind an event that waits, in one batch: that one is tried first.
func TestADeadLetterOfNoTypeHoldsItsKeyInItsTurn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.relay()
	list := facts(4, 1, 1)
	untyped := uuid.New()
	w.produce(list[:2]...)
	w.produceRecords(&kgo.Record{Topic: topic, Key: []byte(list[0].key), Value: []byte("?"),
		Headers: []kgo.RecordHeader{{Key: "event_id", Value: []byte(untyped.String())}}})
	w.produce(list[2:]...)
	cfg := w.config(tally{"a", func(_ context.Context, e *event.Event) error {
		if e.ID == list[1].id && e.Attempt == 0 {
			return errors.New("not yet")
		}
		return nil
	}})
	cfg.Retry = holding
	w.start(cfg)
	w.settled()
	w.check(list, nil)
	if letters := w.letters(); len(letters) != 1 || letters[untyped] != "permanent" {
		t.Errorf("dead letters: %v", letters)
	}
}
