package group

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"

	"converge/consumers/event"
	"converge/consumers/retry"
)

// promisesOfBatches are those of the fence, the inbox and the transaction of a batch.
var promisesOfBatches = map[string]func(*testing.T, house){
	"a partition begins at 0 and moves with its batches": func(t *testing.T, h house) {
		p := partition{storeTopic, 3}
		stored, err := h.readStored(t.Context(), []partition{p})
		ok(t, err)
		same(t, "at first", map[partition]int64{p: 0}, stored)
		e := storeEvent("a")
		took := h.took(t, batchOf(3, 0, e))
		ok(t, addEffect(t.Context(), took.tx, e, "me"))
		same(t, "before COMMIT", []uuid.UUID(nil), nilWhenEmpty(h.effects()))
		ok(t, took.tx.Commit(t.Context()))
		stored, err = h.readStored(t.Context(), []partition{p})
		ok(t, err)
		same(t, "after", map[partition]int64{p: 1}, stored)
		same(t, "effects", idsOf(e), h.effects())
	},
	"a batch that expects another offset is fenced": func(t *testing.T, h house) {
		ok(t, h.took(t, batchOf(0, 0, storeEvent("a"), storeEvent("a"))).tx.Commit(t.Context()))
		for _, b := range []batch{batchOf(0, 0, storeEvent("b")), batchOf(0, 1, storeEvent("b")), batchOf(0, 3, storeEvent("b")), batchOf(0, 2)} {
			if _, err := h.takeOn(t.Context(), b); !errors.Is(err, errFenced) {
				t.Errorf("from %d to %d: %v", b.expected, b.next, err)
			}
		}
	},
	"a second owner waits and is fenced when the first commits": func(t *testing.T, h house) {
		e := storeEvent("a")
		first := h.took(t, batchOf(0, 0, e))
		second := h.takeOnLater(t, batchOf(0, 0, e))
		h.blocked(1)
		ok(t, first.tx.Commit(t.Context()))
		if got := <-second; !errors.Is(got.err, errFenced) {
			t.Errorf("the second owner: %v", got.err)
		}
	},
	"a second owner goes on when the first rolls back": func(t *testing.T, h house) {
		e := storeEvent("a")
		first := h.took(t, batchOf(0, 0, e))
		second := h.takeOnLater(t, batchOf(0, 0, e))
		h.blocked(1)
		ok(t, first.tx.Rollback(t.Context()))
		got := <-second
		ok(t, got.err)
		same(t, "fresh", map[uuid.UUID]bool{e.ID: true}, got.taken.fresh)
		ok(t, got.tx.Commit(t.Context()))
	},
	"reading offsets waits for a batch that is open": func(t *testing.T, h house) {
		first := h.took(t, batchOf(0, 0, storeEvent("a")))
		read := make(chan error, 1)
		go func() {
			_, err := h.readStored(context.WithoutCancel(t.Context()), []partition{{storeTopic, 0}})
			read <- err
		}()
		h.blocked(1)
		ok(t, first.tx.Commit(t.Context()))
		ok(t, <-read)
	},
	"only what was moved back is said to be": func(t *testing.T, h house) {
		ok(t, h.took(t, batchOf(0, 0, storeEvent("a"), storeEvent("a"))).tx.Commit(t.Context()))
		ok(t, h.took(t, batchOf(1, 0, storeEvent("b"))).tx.Commit(t.Context()))
		back, err := h.movedBack(t.Context(), map[partition]int64{{storeTopic, 0}: 5, {storeTopic, 1}: 1, {storeTopic, 2}: 9})
		ok(t, err)
		same(t, "moved back", map[partition]int64{{storeTopic, 0}: 2}, back)
	},
	"an event is fresh once": func(t *testing.T, h house) {
		e, other := storeEvent("a"), storeEvent("a")
		took := h.took(t, batchOf(0, 0, e, e))
		same(t, "fresh", map[uuid.UUID]bool{e.ID: true}, took.fresh)
		fresh, duplicates := took.first([]*event.Event{e, e})
		same(t, "the first of a batch", idsOf(e), idsOf(fresh...))
		same(t, "duplicates in a batch", 1, duplicates)
		ok(t, took.tx.Commit(t.Context()))
		took = h.took(t, batchOf(1, 0, e, other))
		same(t, "fresh on another partition", map[uuid.UUID]bool{other.ID: true}, took.fresh)
		ok(t, took.tx.Rollback(t.Context()))
		took = h.took(t, batchOf(1, 0, other))
		same(t, "fresh after a rollback", map[uuid.UUID]bool{other.ID: true}, took.fresh)
		ok(t, took.tx.Commit(t.Context()))
	},
	"an event on two partitions at a time is fresh for one": func(t *testing.T, h house) {
		_, err := h.readStored(t.Context(), []partition{{storeTopic, 0}, {storeTopic, 1}})
		ok(t, err)
		for _, commit := range []bool{true, false} {
			a, b := storeEvent("a"), storeEvent("b")
			stored, err := h.readStored(t.Context(), []partition{{storeTopic, 0}, {storeTopic, 1}})
			ok(t, err)
			first := h.took(t, batchOf(0, stored[partition{storeTopic, 0}], a, b))
			second := h.takeOnLater(t, batchOf(1, stored[partition{storeTopic, 1}], b, a)) // no deadlock: by id
			h.blocked(1)
			want := map[uuid.UUID]bool{}
			if commit {
				ok(t, first.tx.Commit(t.Context()))
			} else {
				ok(t, first.tx.Rollback(t.Context()))
				want = map[uuid.UUID]bool{a.ID: true, b.ID: true}
			}
			got := <-second
			ok(t, got.err)
			same(t, "fresh for the second", want, got.taken.fresh)
			ok(t, got.tx.Commit(t.Context()))
		}
	},
	"a savepoint undoes what stands behind it, errors too": func(t *testing.T, h house) {
		kept, undone, later := storeEvent("a"), storeEvent("a"), storeEvent("a")
		took := h.took(t, batchOf(0, 0, kept, undone, later))
		ok(t, addEffect(t.Context(), took.tx, kept, "me"))
		s, err := took.tx.Begin(t.Context())
		ok(t, err)
		ok(t, addEffect(t.Context(), s, undone, "me"))
		if _, err := s.Exec(t.Context(), "nonsense"); err == nil || event.Classify(err) != event.ClassRetriable {
			t.Errorf("nonsense is %v", err)
		}
		if err := addEffect(t.Context(), s, undone, "me"); err == nil {
			t.Error("a statement behind an error")
		}
		ok(t, s.Rollback(t.Context()))
		s, err = took.tx.Begin(t.Context())
		ok(t, err)
		ok(t, addEffect(t.Context(), s, later, "me"))
		ok(t, s.Commit(t.Context()))
		ok(t, took.tx.Commit(t.Context()))
		same(t, "effects", idsOf(kept, later), h.effects())
	},
	"a transaction with an error in it is rolled back by COMMIT": func(t *testing.T, h house) {
		e := storeEvent("a")
		took := h.took(t, batchOf(0, 0, e))
		ok(t, addEffect(t.Context(), took.tx, e, "me"))
		if _, err := took.tx.Exec(t.Context(), "nonsense"); err == nil {
			t.Error("nonsense is understood")
		}
		if err := took.tx.Commit(t.Context()); !rolledBack(err) {
			t.Errorf("COMMIT: %v", err)
		}
		same(t, "effects", []uuid.UUID(nil), nilWhenEmpty(h.effects()))
		took = h.took(t, batchOf(0, 0, e))
		same(t, "fresh again", map[uuid.UUID]bool{e.ID: true}, took.fresh)
		rollback(took.tx)
	},
	"an event that dies twice is one letter": func(t *testing.T, h house) {
		e := storeEvent("a")
		h.bury(t, e)
		h.bury(t, e)
		same(t, "letters", map[uuid.UUID]fateOf{e.ID: {"dead", 2, 2}}, h.letters())
		same(t, "gauges", gauges{letters: 1}, h.gauges(t))
	},
}

func nilWhenEmpty(ids []uuid.UUID) []uuid.UUID {
	if len(ids) == 0 {
		return nil
	}
	return ids
}

type takenOrNot struct {
	taken
	err error
}

func (h house) takeOnLater(t *testing.T, b batch) <-chan takenOrNot {
	c := make(chan takenOrNot, 1)
	ctx := context.WithoutCancel(t.Context())
	go func() {
		took, err := h.takeOn(ctx, b)
		c <- takenOrNot{took, err}
	}()
	return c
}

// promisesOfHeldKeys are those of what waits for another try.
var promisesOfHeldKeys = map[string]func(*testing.T, house){
	"head and followers wait in order for the wake-up": func(t *testing.T, h house) {
		a, b := []*event.Event{storeEvent("a"), storeEvent("a"), storeEvent("a")}, storeEvent("b")
		h.hold(t, a[0], a[1], b)
		tx, err := h.begin(t.Context())
		ok(t, err)
		held, err := h.Held(t.Context(), tx, storeTopic, []string{"a", "b", "c"})
		ok(t, err)
		same(t, "held", map[string]bool{"a": true, "b": true}, held)
		ok(t, h.Hold(t.Context(), tx, storeTopic, nil, a[2:]))
		ok(t, tx.Commit(t.Context()))
		same(t, "gauges", gauges{waiting: 4, keys: 2}, h.gauges(t))
		wakes := h.wakes()
		if len(wakes) != 2 || wakes[0].Key != "a" || wakes[1].Key != "b" || wakes[0].Token == wakes[1].Token {
			t.Fatalf("wake-ups %v", wakes)
		}
		same(t, "in two chunks", idsOf(a[:2]...), h.drain(t, wakes[0], 2))
		same(t, "in two chunks", idsOf(a[2:]...), h.drain(t, wakes[0], 2))
		released, err := h.release(t.Context(), wakes[0])
		if err != nil || !released {
			t.Errorf("release: %v %v", released, err)
		}
		same(t, "gauges", gauges{waiting: 1, keys: 1}, h.gauges(t))
		took := h.took(t, batchOf(0, 0, storeEvent("c")))
		if !took.anyHeld {
			t.Error("a batch is not told that a key is held")
		}
		rollback(took.tx)
	},
	"another try has another token": func(t *testing.T, h house) {
		e := storeEvent("a")
		h.hold(t, e)
		first := h.last(t)
		tx, err := h.begin(t.Context())
		ok(t, err)
		turn, fits, err := h.Claim(t.Context(), tx, first)
		if err != nil || !fits || turn.Attempt != 1 {
			t.Fatalf("claim: %+v %v %v", turn, fits, err)
		}
		again := retry.Failure{Event: e, Err: event.RetryAfter(errors.New("busy"), 10*time.Minute), Attempts: 2, FirstAt: turn.FirstAt}
		ok(t, h.Settle(t.Context(), tx, turn, retry.Result{Again: &again}))
		ok(t, tx.Commit(t.Context()))
		second := h.last(t)
		if second.Token == first.Token || time.Until(second.NotBefore) < 9*time.Minute {
			t.Errorf("the second wake-up: %+v, the first: %+v", second, first)
		}
		if ids := h.drain(t, first, 9); len(ids) > 0 {
			t.Errorf("a stale token ran the key")
		}
		if _, err := h.release(t.Context(), first); err != nil {
			t.Error(err)
		}
		same(t, "a stale token releases nothing", gauges{waiting: 1, keys: 1}, h.gauges(t))
		same(t, "the head", idsOf(e), h.drain(t, second, 9))
	},
	"a second claim waits and sees what the first left": func(t *testing.T, h house) {
		a, b := storeEvent("a"), storeEvent("a")
		h.hold(t, a, b)
		w := h.last(t)
		tx, err := h.begin(t.Context())
		ok(t, err)
		turn, _, err := h.Claim(t.Context(), tx, w)
		ok(t, err)
		seen := make(chan []uuid.UUID, 1)
		go func() { seen <- h.drain(t, w, 9) }()
		h.blocked(1)
		waiting, err := h.Waiting(t.Context(), tx, w, 0, 1)
		ok(t, err)
		ok(t, h.Settle(t.Context(), tx, turn, retry.Result{Done: waiting}))
		ok(t, tx.Commit(t.Context()))
		same(t, "left for the second", idsOf(b), <-seen)
	},
	"a follower that comes after the release has lost a race": func(t *testing.T, h house) {
		h.hold(t, storeEvent("a"))
		w := h.last(t)
		tx, err := h.begin(t.Context())
		ok(t, err)
		held, err := h.Held(t.Context(), tx, storeTopic, []string{"a"})
		if err != nil || !held["a"] {
			t.Fatalf("held: %v %v", held, err)
		}
		h.drain(t, w, 9)
		if released, err := h.release(t.Context(), w); !released || err != nil {
			t.Fatalf("release: %v %v", released, err)
		}
		if err := h.Hold(t.Context(), tx, storeTopic, nil, []*event.Event{storeEvent("a")}); !retry.LostRace(err) {
			t.Errorf("the follower: %v", err)
		}
		rollback(tx)
		same(t, "nothing is orphaned", gauges{}, h.gauges(t))
	},
	"a key that somebody else holds is a lost race": func(t *testing.T, h house) {
		a, b := storeEvent("a"), storeEvent("a")
		tx, err := h.begin(t.Context())
		ok(t, err)
		ok(t, h.Hold(t.Context(), tx, storeTopic, []retry.Failure{refused(a)}, []*event.Event{a}))
		lost := make(chan error, 1)
		go func() {
			other, err := h.begin(t.Context())
			if err == nil {
				err = h.Hold(t.Context(), other, storeTopic, []retry.Failure{refused(b)}, []*event.Event{b})
				rollback(other)
			}
			lost <- err
		}()
		h.blocked(1)
		ok(t, tx.Commit(t.Context()))
		if err := <-lost; !retry.LostRace(err) {
			t.Errorf("the second: %v", err)
		}
	},
	"the release waits for a follower on its way and yields": func(t *testing.T, h house) {
		h.hold(t, storeEvent("a"))
		w := h.last(t)
		h.drain(t, w, 9)
		follower := storeEvent("a")
		tx, err := h.begin(t.Context())
		ok(t, err)
		ok(t, h.Hold(t.Context(), tx, storeTopic, nil, []*event.Event{follower}))
		released := h.releaseLater(t, w)
		h.blocked(1)
		ok(t, tx.Commit(t.Context()))
		if <-released {
			t.Error("the key was released over a follower")
		}
		same(t, "with the same token", idsOf(follower), h.drain(t, w, 9))
	},
	"the release goes on when a follower is rolled back": func(t *testing.T, h house) {
		h.hold(t, storeEvent("a"))
		w := h.last(t)
		h.drain(t, w, 9)
		tx, err := h.begin(t.Context())
		ok(t, err)
		ok(t, h.Hold(t.Context(), tx, storeTopic, nil, []*event.Event{storeEvent("a")}))
		released := h.releaseLater(t, w)
		h.blocked(1)
		ok(t, tx.Rollback(t.Context()))
		if !<-released {
			t.Error("the key is held by nothing")
		}
		same(t, "nothing is held", gauges{}, h.gauges(t))
	},
	"a follower does not wait for who runs the key": func(t *testing.T, h house) {
		h.hold(t, storeEvent("a"))
		w := h.last(t)
		running, err := h.begin(t.Context())
		ok(t, err)
		_, _, err = h.Claim(t.Context(), running, w)
		ok(t, err)
		tx, err := h.begin(t.Context())
		ok(t, err)
		ok(t, h.Hold(t.Context(), tx, storeTopic, nil, []*event.Event{storeEvent("a")}))
		ok(t, tx.Commit(t.Context()))
		ok(t, running.Rollback(t.Context()))
		same(t, "gauges", gauges{waiting: 2, keys: 1}, h.gauges(t))
	},
	"what waited and is gone is a broken promise": func(t *testing.T, h house) {
		h.hold(t, storeEvent("a"))
		w := h.last(t)
		tx, err := h.begin(t.Context())
		ok(t, err)
		turn, _, err := h.Claim(t.Context(), tx, w)
		ok(t, err)
		err = h.Settle(t.Context(), tx, turn, retry.Result{Done: []retry.Waiting{{Seq: 1 << 40, Event: storeEvent("a")}}})
		if !errors.Is(err, retry.ErrHeldEvents) {
			t.Errorf("settle: %v", err)
		}
		rollback(tx)
	},
	"a late wake-up is repeated with its token, later each time": func(t *testing.T, h house) {
		h.hold(t, storeEvent("a"))
		w := h.last(t)
		for i, c := range []struct {
			older time.Duration
			want  int
		}{{0, 0}, {6 * time.Second, 1}, {0, 0}, {6 * time.Second, 0}, {6 * time.Second, 1}, {time.Hour, 1}} {
			h.age(c.older)
			if n, err := h.sweep(t.Context()); n != c.want || err != nil {
				t.Errorf("sweep %d: %d %v, want %d", i, n, err, c.want)
			}
		}
		if wakes := h.wakes(); len(wakes) != 4 || wakes[3].Token != w.Token {
			t.Errorf("wake-ups %v", wakes)
		}
		h.age(time.Hour)
		tx, err := h.begin(t.Context())
		ok(t, err)
		_, _, err = h.Claim(t.Context(), tx, w)
		ok(t, err)
		if n, err := h.sweep(t.Context()); n != 0 || err != nil {
			t.Errorf("a key that is run was called for: %d %v", n, err)
		}
		rollback(tx)
	},
	"a redriven key comes behind what waits, oldest first": func(t *testing.T, h house) {
		dead, held := []*event.Event{storeEvent("a"), storeEvent("a")}, storeEvent("a")
		h.bury(t, dead...)
		h.bury(t, storeEvent("b"))
		h.hold(t, held)
		ids, err := h.redrive(t.Context(), storeTopic, "a")
		ok(t, err)
		same(t, "redriven", idsOf(dead...), ids)
		if wakes := h.wakes(); len(wakes) != 1 {
			t.Errorf("%d wake-ups for a key that is held", len(wakes))
		}
		again, err := h.redrive(t.Context(), storeTopic, "a")
		ok(t, err)
		same(t, "redriven twice", 0, len(again))
		same(t, "in order", idsOf(held, dead[0], dead[1]), h.drain(t, h.last(t), 9))
		for _, e := range dead {
			same(t, "the letter", fateOf{"resolved", 1, 1}, h.letters()[e.ID])
		}
		same(t, "gauges", gauges{keys: 1, letters: 1}, h.gauges(t))
	},
	"a redrive waits for the batches of its topic": func(t *testing.T, h house) {
		dead := storeEvent("a")
		h.bury(t, dead)
		took := h.took(t, batchOf(0, 0, storeEvent("a")))
		type answer struct {
			ids []uuid.UUID
			err error
		}
		answered := make(chan answer, 1)
		go func() {
			ids, err := h.redrive(context.WithoutCancel(t.Context()), storeTopic, "a")
			answered <- answer{ids, err}
		}()
		h.blocked(1)
		ok(t, took.tx.Commit(t.Context()))
		got := <-answered
		ok(t, got.err)
		same(t, "redriven", idsOf(dead), got.ids)
		same(t, "called for at once", idsOf(dead), h.drain(t, h.last(t), 9))
	},
	"two that wait for each other do not wait for ever": func(t *testing.T, h house) {
		h.hold(t, storeEvent("a"))
		a := h.last(t)
		h.hold(t, storeEvent("b"))
		b := h.last(t)
		first, err := h.begin(t.Context())
		ok(t, err)
		second, err := h.begin(t.Context())
		ok(t, err)
		_, _, err = h.Claim(t.Context(), first, a)
		ok(t, err)
		_, _, err = h.Claim(t.Context(), second, b)
		ok(t, err)
		ended := make(chan error, 1)
		go func() {
			_, _, err := h.Claim(t.Context(), first, b)
			rollback(first)
			ended <- err
		}()
		h.blocked(1)
		_, _, err = h.Claim(t.Context(), second, a)
		rollback(second)
		if err = errors.Join(err, <-ended); err == nil || event.Classify(err) != event.ClassContention {
			t.Errorf("the deadlock: %v", err)
		}
	},
}

func (h house) releaseLater(t *testing.T, w retry.Wake) <-chan bool {
	c := make(chan bool, 1)
	go func() {
		released, err := h.release(t.Context(), w)
		if err != nil {
			t.Error(err)
		}
		c <- released
	}()
	return c
}
