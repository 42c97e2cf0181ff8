package group

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"converge/consumers/event"
	"converge/consumers/retry"
)

// Bury implements store.
func (m *memory) Bury(ctx context.Context, tx pgx.Tx, dead []retry.Failure) error {
	for _, f := range dead {
		if err := m.in(ctx, tx, "bury", func(t *memTx) error {
			if err := t.lock(ctx, letterRow(f.Event.ID), noKeyUpdate); err != nil {
				return err
			}
			m.sequence++
			seq := m.sequence
			t.write(func(db *memoryDB) {
				l, ok := db.letters[f.Event.ID]
				if db.diesAgain != nil && ok {
					db.diesAgain(f.Event.ID, l)
				}
				if !ok {
					l = letter{seq: seq, key: m.ladder.KeyOf(f.Event), firstAt: f.FirstAt}
				}
				l.event, l.state, l.class = f.Event, "dead", event.Classify(f.Err).String()
				l.attempts += f.Attempts
				l.deaths++
				db.letters[f.Event.ID] = l
				topics := retry.Topics(f.Event.Topic, m.ladder.Consumer, m.ladder.Policy)
				db.outbox = append(db.outbox, outgoing{f.Event.ID, topics[len(topics)-1], string(f.Event.Key), f.Event.Value, nil})
			})
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// Hold implements store.
func (m *memory) Hold(ctx context.Context, tx pgx.Tx, topic string, heads []retry.Failure, waiting []*event.Event) error {
	if len(heads) > 0 {
		heads = slices.Clone(heads)
		slices.SortFunc(heads, func(a, b retry.Failure) int {
			return slices.Compare([]byte(m.ladder.KeyOf(a.Event)), []byte(m.ladder.KeyOf(b.Event)))
		})
		if err := m.in(ctx, tx, "hold", func(t *memTx) error {
			for _, f := range heads {
				k := holdKey{topic, m.ladder.KeyOf(f.Event)}
				taken, err := t.insertKey(ctx, k)
				if err != nil {
					return err
				}
				if taken {
					return sqlState("23505", "held_keys_pkey")
				}
				due := time.Now().Add(m.delay(f.Attempts, event.Delay(f.Err)))
				t.insertHeld(k, heldKey{attempt: f.Attempts, dueAt: due, failedAt: f.FirstAt, blocked: f.Blocks}, f)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return m.in(ctx, tx, "wait", func(t *memTx) error { return t.insertWaiting(ctx, waiting, false) })
}

// insertKey meets the unique key: taken says that the key is held already.
func (t *memTx) insertKey(ctx context.Context, k holdKey) (taken bool, err error) {
	for against := t.others(heldRow(k), exclusive); len(against) > 0; against = t.others(heldRow(k), exclusive) {
		if err := t.await(ctx, against); err != nil {
			return false, err
		}
	}
	if _, ok := t.store.held[k]; ok {
		return true, nil
	}
	t.holds[k] = true
	return false, t.lock(ctx, heldRow(k), exclusive)
}

// insertHeld writes a held key with a new token, and its wake-up unless a dead letter blocks it.
func (t *memTx) insertHeld(k holdKey, h heldKey, f retry.Failure) {
	m := t.store
	m.sequence++
	h.token, h.nudgedAt = m.sequence, time.Now()
	t.write(func(db *memoryDB) {
		if _, ok := db.held[k]; ok {
			db.violated(fmt.Sprintf("%v is held twice", k))
		}
		db.held[k] = h
		if !h.blocked {
			db.outbox = append(db.outbox, m.wake(f, k, h))
		}
	})
}

// insertWaiting meets the foreign key.
func (t *memTx) insertWaiting(ctx context.Context, events []*event.Event, redriven bool) error {
	m := t.store
	for _, e := range events {
		m.sequence++
		h := heldEvent{m.sequence, redriven, e}
		k := holdKey{e.Topic, m.ladder.KeyOf(e)}
		t.write(func(db *memoryDB) {
			db.waiting[k] = append(db.waiting[k], h)
			slices.SortFunc(db.waiting[k], func(a, b heldEvent) int { return int(a.seq - b.seq) })
		})
	}
	for _, e := range events {
		k := holdKey{e.Topic, m.ladder.KeyOf(e)}
		if t.holds[k] {
			continue
		}
		if err := t.lock(ctx, heldRow(k), keyShare); err != nil {
			return err
		}
		if _, ok := m.held[k]; !ok {
			return sqlState("23503", "held_events_key_fkey")
		}
	}
	return nil
}

func (m *memory) rung(attempts int) int {
	return min(max(attempts, 1), len(m.ladder.Policy.RungNames())) - 1
}

func (m *memory) delay(attempts int, least time.Duration) time.Duration {
	rung, err := time.ParseDuration(m.ladder.Policy.RungNames()[m.rung(attempts)])
	if err != nil {
		panic(err)
	}
	return max(least, time.Duration(m.random.Int64N(int64(rung)))+time.Millisecond)
}

func (m *memory) wake(f retry.Failure, k holdKey, h heldKey) outgoing {
	return outgoing{f.Event.ID, retry.WakeTopics(k.topic, m.ladder.Consumer, m.ladder.Policy)[m.rung(f.Attempts)], k.key, f.Event.Value,
		map[string]string{"origin_topic": k.topic, "hold_key": k.key, "token": strconv.FormatInt(h.token, 10),
			"not_before": h.dueAt.UTC().Format(time.RFC3339Nano), "event_id": f.Event.ID.String()}}
}

// Claim implements store.
func (m *memory) Claim(ctx context.Context, tx pgx.Tx, w retry.Wake) (turn retry.Turn, ok bool, err error) {
	k := holdKey{w.Topic, w.Key}
	err = m.in(ctx, tx, "claim", func(t *memTx) error {
		if h, there := m.held[k]; !there || h.token != w.Token || h.blocked {
			return nil
		}
		if err := t.lock(ctx, heldRow(k), noKeyUpdate); err != nil {
			return err
		}
		if h, there := m.held[k]; there && h.token == w.Token && !h.blocked {
			turn, ok = retry.Turn{Wake: w, Attempt: h.attempt, FirstAt: h.failedAt}, true
		}
		return nil
	})
	return turn, ok, err
}

// Waiting implements store.
func (m *memory) Waiting(ctx context.Context, tx pgx.Tx, w retry.Wake, after int64, limit int) (found []retry.Waiting, err error) {
	err = m.in(ctx, tx, "waiting", func(*memTx) error {
		for _, h := range m.waiting[holdKey{w.Topic, w.Key}] {
			if h.seq > after && len(found) < limit {
				e := *h.event
				e.Attempt = 0
				found = append(found, retry.Waiting{Seq: h.seq, Redriven: h.redriven, Event: &e})
			}
		}
		return nil
	})
	return found, err
}

// Settle implements store.
func (m *memory) Settle(ctx context.Context, tx pgx.Tx, turn retry.Turn, r retry.Result) error {
	k := holdKey{turn.Topic, turn.Key}
	gone := map[int64]bool{}
	for _, seq := range r.DeadSeq {
		gone[seq] = true
	}
	for _, w := range r.Done {
		gone[w.Seq] = true
	}
	if err := m.in(ctx, tx, "settle", func(t *memTx) error {
		there := 0
		for _, h := range m.waiting[k] {
			if gone[h.seq] {
				there++
			}
		}
		if there != len(gone) {
			return fmt.Errorf("forgetting held events: %d of %d were there: %w", there, len(gone), retry.ErrHeldEvents)
		}
		t.write(func(db *memoryDB) {
			if db.waiting[k] = slices.DeleteFunc(db.waiting[k], func(h heldEvent) bool { return gone[h.seq] }); len(db.waiting[k]) == 0 {
				delete(db.waiting, k)
			}
		})
		return nil
	}); err != nil {
		return err
	}
	if err := m.resolve(ctx, tx, r.Done); err != nil {
		return err
	}
	if r.Again == nil && r.Blocked == nil && len(gone) == 0 {
		return nil
	}
	return m.in(ctx, tx, "settle the key", func(t *memTx) error {
		if err := t.lock(ctx, heldRow(k), noKeyUpdate); err != nil {
			return err
		}
		m.sequence++
		token, now := m.sequence, time.Now()
		var due time.Time
		if r.Again != nil {
			due = now.Add(m.delay(r.Again.Attempts, event.Delay(r.Again.Err)))
		}
		t.write(func(db *memoryDB) {
			h := db.held[k]
			switch {
			case r.Blocked != nil:
				h.attempt, h.token, h.blocked, h.failedAt = r.Blocked.Attempts, token, true, r.Blocked.FirstAt
			case r.Again == nil:
				h.attempt, h.failedAt = 0, now
			default:
				h = heldKey{token: token, attempt: r.Again.Attempts, dueAt: due, nudgedAt: now, failedAt: r.Again.FirstAt}
				db.outbox = append(db.outbox, m.wake(*r.Again, k, h))
			}
			db.held[k] = h
		})
		return nil
	})
}

func (m *memory) resolve(ctx context.Context, tx pgx.Tx, done []retry.Waiting) error {
	for _, w := range done {
		if !w.Redriven {
			continue
		}
		if err := m.in(ctx, tx, "resolve", func(t *memTx) error {
			if err := t.lock(ctx, letterRow(w.Event.ID), noKeyUpdate); err != nil {
				return err
			}
			t.write(func(db *memoryDB) {
				if l, ok := db.letters[w.Event.ID]; ok && l.state == "redriving" {
					l.state = "resolved"
					db.letters[w.Event.ID] = l
				}
			})
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) release(ctx context.Context, w retry.Wake) (bool, error) {
	k := holdKey{w.Topic, w.Key}
	err := m.statement(ctx, "release", func(t *memTx) error {
		if h, ok := m.held[k]; !ok || h.token != w.Token {
			return nil
		}
		if err := t.lock(ctx, heldRow(k), exclusive); err != nil {
			return err
		}
		if h, ok := m.held[k]; !ok || h.token != w.Token {
			return nil
		}
		if len(m.waiting[k]) > 0 {
			return sqlState("23503", "held_events_key_fkey")
		}
		t.write(func(db *memoryDB) { delete(db.held, k) })
		return nil
	})
	if retry.LostRace(err) {
		return false, nil
	}
	return err == nil, err
}

// memoryGrace is how late a wake-up may be before it is repeated.
const memoryGrace = 5 * time.Second

func (m *memory) sweep(ctx context.Context) (repeated int, err error) {
	err = m.statement(ctx, "sweep", func(t *memTx) error {
		for k, h := range m.held {
			late := h.dueAt
			if h.nudgedAt.After(late) {
				late = h.nudgedAt
			}
			if h.blocked || !late.Before(time.Now().Add(-memoryGrace<<min(h.nudges, 7))) || len(t.others(heldRow(k), noKeyUpdate)) > 0 {
				continue
			}
			if err := t.lock(ctx, heldRow(k), noKeyUpdate); err != nil {
				return err
			}
			head := &event.Event{ID: uuid.New()}
			if len(m.waiting[k]) > 0 {
				head = m.waiting[k][0].event
			}
			repeated++
			t.write(func(db *memoryDB) {
				h := db.held[k]
				h.nudgedAt, h.nudges = time.Now(), h.nudges+1
				db.held[k] = h
				db.outbox = append(db.outbox, m.wake(retry.Failure{Event: head, Attempts: 1}, k, h))
			})
		}
		return nil
	})
	return repeated, err
}

func (m *memory) sample(ctx context.Context) (now gauges, err error) {
	err = m.statement(ctx, "sample", func(*memTx) error {
		now.keys = int64(len(m.held))
		for _, waiting := range m.waiting {
			now.waiting += int64(len(waiting))
		}
		for _, l := range m.letters {
			if l.state == "dead" || l.state == "redriving" {
				now.letters++
				now.oldest = max(now.oldest, time.Since(l.firstAt).Seconds())
			}
		}
		return nil
	})
	return now, err
}

func (m *memory) makeDays(context.Context, time.Time) error               { return nil }
func (m *memory) forgetDays(context.Context, time.Time) ([]string, error) { return nil, nil }
