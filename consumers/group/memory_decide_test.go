package group

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"converge/consumers/event"
	"converge/consumers/retry"
)

// redrive is what Ladder.Redrive does.
func (m *memory) redrive(ctx context.Context, topic, key string) (ids []uuid.UUID, err error) {
	for {
		ids, err = m.redriveOnce(ctx, topic, key)
		if !retry.LostRace(err) {
			return ids, err
		}
	}
}

func (m *memory) redriveOnce(ctx context.Context, topic, key string) (ids []uuid.UUID, err error) {
	err = m.statement(ctx, "redrive", func(t *memTx) error {
		var fences []partition
		for p := range m.offsets {
			if p.topic == topic {
				fences = append(fences, p)
			}
		}
		slices.SortFunc(fences, func(a, b partition) int { return int(a.id - b.id) })
		for _, p := range fences {
			if err := t.lock(ctx, offsetRow(p), exclusive); err != nil {
				return err
			}
		}
		head, unblocked, err := t.redriveHead(ctx, holdKey{topic, key})
		if err != nil {
			return err
		}
		if ids = ids[:0]; unblocked {
			ids = append(ids, head)
		}
		var dead []letter
		for _, l := range m.letters {
			if l.event.Topic == topic && l.key == key && l.state == "dead" && l.event.ID != head {
				dead = append(dead, l)
			}
		}
		slices.SortFunc(dead, func(a, b letter) int { return int(a.seq - b.seq) })
		var events []*event.Event
		for _, l := range dead {
			if err := t.lock(ctx, letterRow(l.event.ID), noKeyUpdate); err != nil {
				return err
			}
			if m.letters[l.event.ID].state != "dead" {
				continue
			}
			ids, events = append(ids, l.event.ID), append(events, l.event)
			t.write(func(db *memoryDB) { db.decide(l.event.ID, "redriving") })
		}
		if len(events) == 0 {
			return nil
		}
		k := holdKey{topic, key}
		taken, err := t.insertKey(ctx, k)
		if err != nil {
			return err
		}
		if !taken {
			t.insertHeld(k, heldKey{dueAt: time.Now(), failedAt: time.Now()}, retry.Failure{Event: events[0], Attempts: 1})
		}
		return t.insertWaiting(ctx, events, true)
	})
	return ids, err
}

// redriveHead lets a blocked key run, its dead head first; ok is false when the key is not blocked.
func (t *memTx) redriveHead(ctx context.Context, k holdKey) (head uuid.UUID, ok bool, err error) {
	m := t.store
	if ok, err = t.lockBlocked(ctx, k); err != nil || !ok {
		return head, false, err
	}
	if len(m.waiting[k]) == 0 {
		return head, false, fmt.Errorf("nothing waits behind the blocked key %s", k.key)
	}
	head = m.waiting[k][0].event.ID
	if err := t.lock(ctx, letterRow(head), noKeyUpdate); err != nil {
		return head, false, err
	}
	if state := m.letters[head].state; state != "dead" {
		return head, false, fmt.Errorf("the head of a blocked key is a letter that is %q", state)
	}
	t.write(func(db *memoryDB) {
		db.decide(head, "redriving")
		db.waiting[k][0].redriven = true
	})
	t.unblock(k, head)
	return head, true, nil
}

// lockBlocked reports whether the key is blocked, and then keeps it so for the transaction.
func (t *memTx) lockBlocked(ctx context.Context, k holdKey) (bool, error) {
	if !t.store.held[k].blocked {
		return false, nil
	}
	err := t.lock(ctx, heldRow(k), noKeyUpdate)
	return err == nil && t.store.held[k].blocked, err
}

// unblock calls for a key that was blocked.
func (t *memTx) unblock(k holdKey, head uuid.UUID) {
	m := t.store
	m.sequence++
	h := m.held[k]
	h.blocked, h.attempt, h.token, h.nudges, h.dueAt, h.nudgedAt = false, 0, m.sequence, 0, time.Now(), time.Now()
	t.write(func(db *memoryDB) {
		db.held[k] = h
		db.outbox = append(db.outbox, m.wake(retry.Failure{Event: &event.Event{ID: head}, Attempts: 1}, k, h))
	})
}

func (db *memoryDB) decide(id uuid.UUID, state string) {
	l := db.letters[id]
	l.state = state
	db.letters[id] = l
}

// discard is what Ladder.Discard does.
func (m *memory) discard(ctx context.Context, id uuid.UUID) error {
	return m.statement(ctx, "discard", func(t *memTx) error {
		if err := t.lock(ctx, letterRow(id), noKeyUpdate); err != nil {
			return err
		}
		l, ok := m.letters[id]
		if !ok || l.state != "dead" {
			return retry.ErrNoLetter
		}
		t.write(func(db *memoryDB) { db.decide(id, "discarded") })
		k := holdKey{l.event.Topic, l.key}
		if held, err := t.lockBlocked(ctx, k); err != nil || !held {
			return err
		}
		if !slices.ContainsFunc(m.waiting[k], func(h heldEvent) bool { return h.event.ID == id }) {
			return nil // it is another one that blocks
		}
		t.write(func(db *memoryDB) {
			if db.waiting[k] = slices.DeleteFunc(db.waiting[k], func(h heldEvent) bool { return h.event.ID == id }); len(db.waiting[k]) == 0 {
				delete(db.waiting, k)
			}
		})
		t.unblock(k, id)
		return nil
	})
}
