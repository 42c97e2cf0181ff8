package group

import (
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"

	"converge/consumers/event"
	"converge/consumers/retry"
	"converge/producers/outbox"
)

// blocks makes the first event a dead letter that holds its key, with the others behind it.
func (h house) blocks(t *testing.T, events ...*event.Event) {
	t.Helper()
	tx, err := h.begin(t.Context())
	ok(t, err)
	dead := refused(events[0])
	dead.Blocks = true
	ok(t, h.Bury(t.Context(), tx, []retry.Failure{dead}))
	ok(t, h.Hold(t.Context(), tx, storeTopic, []retry.Failure{dead}, events))
	ok(t, tx.Commit(t.Context()))
}

// nobodyCalls makes sure that no wake-up is there, or will be.
func (h house) nobodyCalls(t *testing.T, so int) {
	t.Helper()
	h.age(24 * time.Hour)
	if n, err := h.sweep(t.Context()); n != 0 || err != nil {
		t.Errorf("a blocked key was called for: %d %v", n, err)
	}
	same(t, "wake-ups", so, len(h.wakes()))
}

// promisesOfBlockedKeys are those of keys that a dead letter holds, and of what handlers emit.
var promisesOfBlockedKeys = map[string]func(*testing.T, house){
	"a dead letter that holds its key waits for a person": func(t *testing.T, h house) {
		dead, follower, later := storeEvent("a"), storeEvent("a"), storeEvent("a")
		h.blocks(t, dead, follower)
		h.nobodyCalls(t, 0)
		tx, err := h.begin(t.Context())
		ok(t, err)
		ok(t, h.Hold(t.Context(), tx, storeTopic, nil, []*event.Event{later}))
		ok(t, tx.Commit(t.Context()))
		same(t, "gauges", gauges{waiting: 3, keys: 1, letters: 1}, h.gauges(t))
		ids, err := h.redrive(t.Context(), storeTopic, "a")
		ok(t, err)
		same(t, "redriven", idsOf(dead), ids)
		again, err := h.redrive(t.Context(), storeTopic, "a")
		ok(t, err)
		same(t, "redriven twice", 0, len(again))
		same(t, "in its place", idsOf(dead, follower, later), h.drain(t, h.last(t), 9))
		same(t, "the letter", fateOf{"resolved", 1, 1}, h.letters()[dead.ID])
	},
	"a discarded head lets its followers go on": func(t *testing.T, h house) {
		dead, follower := storeEvent("a"), storeEvent("a")
		h.blocks(t, dead, follower)
		other := storeEvent("a")
		h.bury(t, other)
		ok(t, h.discard(t.Context(), other.ID))
		h.nobodyCalls(t, 0) // it is not the one that blocks
		ok(t, h.discard(t.Context(), dead.ID))
		if err := h.discard(t.Context(), dead.ID); !errors.Is(err, retry.ErrNoLetter) {
			t.Errorf("discarded twice: %v", err)
		}
		same(t, "the follower", idsOf(follower), h.drain(t, h.last(t), 9))
		same(t, "the letter", fateOf{"discarded", 1, 1}, h.letters()[dead.ID])
		if released, err := h.release(t.Context(), h.last(t)); err != nil || !released {
			t.Errorf("release: %v %v", released, err)
		}
		same(t, "gauges", gauges{}, h.gauges(t))
	},
	"a head that dies blocks its key, and its old token runs nothing": func(t *testing.T, h house) {
		a, b, c := storeEvent("a"), storeEvent("a"), storeEvent("a")
		h.hold(t, a, b, c)
		w := h.last(t)
		tx, err := h.begin(t.Context())
		ok(t, err)
		turn, _, err := h.Claim(t.Context(), tx, w)
		ok(t, err)
		waiting, err := h.Waiting(t.Context(), tx, w, 0, 9)
		ok(t, err)
		dead := refused(b)
		ok(t, h.Bury(t.Context(), tx, []retry.Failure{dead}))
		ok(t, h.Settle(t.Context(), tx, turn, retry.Result{Done: waiting[:1], Dead: []retry.Failure{dead}, Blocked: &dead}))
		ok(t, tx.Commit(t.Context()))
		h.nobodyCalls(t, 1)
		same(t, "by the old token", 0, len(h.drain(t, w, 9)))
		same(t, "gauges", gauges{waiting: 2, keys: 1, letters: 1}, h.gauges(t))
		_, err = h.redrive(t.Context(), storeTopic, "a")
		ok(t, err)
		same(t, "by the new one", idsOf(b, c), h.drain(t, h.last(t), 9))
	},
	"what is emitted shares the fate of its transaction and its savepoint": func(t *testing.T, h house) {
		emit := func(name string, commit, release bool) {
			tx, err := h.begin(t.Context())
			ok(t, err)
			s, err := tx.Begin(t.Context())
			ok(t, err)
			ok(t, outbox.AppendRecords(t.Context(), s, outbox.Record{EventID: uuid.New(), Topic: "tally.retry.of-its-own", Key: "a",
				Headers: map[string]string{"origin_topic": name, "token": "7", "not_before": time.Now().Format(time.RFC3339Nano)}}))
			if release {
				ok(t, s.Commit(t.Context()))
			} else {
				ok(t, s.Rollback(t.Context()))
			}
			if commit {
				ok(t, tx.Commit(t.Context()))
			} else {
				ok(t, tx.Rollback(t.Context()))
			}
		}
		emit("undone", true, false)
		emit("rolled back", false, true)
		emit("kept", true, true)
		if wakes := h.wakes(); len(wakes) != 1 || wakes[0].Topic != "kept" || wakes[0].Token != 7 {
			t.Errorf("emitted: %v", wakes)
		}
	},
}
