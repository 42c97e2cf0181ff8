package group

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/event"
	"converge/consumers/inbox"
	"converge/consumers/retry"
	"converge/internal/pipeline"
)

var (
	// errFenced: the stored offset is not the expected one; somebody else moved it.
	errFenced = errors.New("the partition has moved on")
	// errRefused: an event failed in a batch without savepoints; the batch runs again, with care.
	errRefused = errors.New("an event was refused")
	// errNoType is why a record without a type is dead.
	errNoType = event.Permanentf("the record has no event_type header: nobody can know what it means")
	// errOverdue: a transaction took longer than its time. With fewer events the next one may not.
	errOverdue error = overdue{errors.New("a transaction took longer than its time")}
	// errForgotten is why an event from before the inbox's time is dead. A redrive does not ask the inbox: it
	// is a person's word.
	errForgotten = event.Permanent(inbox.ErrForgotten)
)

type overdue struct{ error }

// Infrastructure implements what [event.Classify] looks for: a slow handler is no fault of an event's.
func (overdue) Infrastructure() bool { return true }

const (
	// maxPassed bounds the records that are passed over without moving the stored offset.
	maxPassed = 2000
	// careful is the batch with savepoints: PostgreSQL keeps 64 open subtransactions in fast memory.
	careful = 50
	// drainTime bounds the held keys of one poll: the others of its partitions wait for it, and a rebalance does.
	drainTime = 2 * time.Second
	// maxRaces bounds how often a batch that loses races runs again before it counts as an outage.
	maxRaces = 25
)

// applyEvents applies the records of one partition of an event topic, in order.
func (g *Group) applyEvents(ctx context.Context, p partition, records []*kgo.Record) (rewind int64, err error) {
	g.mu.Lock()
	at, owned := g.owned[p]
	g.mu.Unlock()
	if !owned {
		return -1, nil // revoked since the poll
	}
	if records[0].Offset < at.stored {
		if err := g.checkEnd(ctx, p, at.stored); err != nil {
			return at.stored, err
		}
	}
	b := batch{partition: p, expected: at.stored, next: records[len(records)-1].Offset + 1, events: g.wanted(records)}
	end := b.next
	if ripe := g.ripe(p, b.events); ripe < len(b.events) {
		if b.next, b.events = b.events[ripe].Offset, b.events[:ripe]; ripe == 0 {
			return b.next, nil
		}
	}
	if len(b.events) == 0 {
		if at.passed += len(records); at.passed < maxPassed {
			g.reached(p, position{stored: at.stored, passed: at.passed, most: at.most}, b.next)
			return -1, nil
		}
	}
	if at.most > 0 && at.most < len(b.events) {
		b.next, b.events = b.events[at.most].Offset, b.events[:at.most]
	}
	stored, err := g.applyBatch(ctx, b)
	if err != nil {
		if errors.Is(err, errOverdue) {
			at.most = max(1, len(b.events)/2)
		}
		g.reached(p, position{stored: stored, most: at.most}, -1)
		return max(stored, 0), err
	}
	if at.most > 0 {
		if at.most += 1 + at.most/8; at.most >= g.cfg.MaxEvents {
			at.most = 0
		}
	}
	g.reached(p, position{stored: stored, most: at.most}, stored)
	if stored < end {
		return stored, nil // there is more of it, or somebody moved the offset back
	}
	return -1, nil
}

// reached notes how far a partition is; hint is what to tell Kafka, -1 for nothing.
func (g *Group) reached(p partition, at position, hint int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.owned[p] = at
	if hint >= 0 {
		g.hints[p] = hint
	}
}

// wanted returns the records that are the handler's, as events. Records without a type are wanted, to be
// dead, but for tombstones: those only tell compaction what to drop.
func (g *Group) wanted(records []*kgo.Record) []*event.Event {
	events := make([]*event.Event, 0, len(records))
	for _, r := range records {
		e := fromRecord(r)
		if g.cfg.Handler.Handles(e.Type) || (e.Type == "" && e.Value != nil) {
			events = append(events, e)
		}
	}
	return events
}

func fromRecord(r *kgo.Record) *event.Event {
	e := &event.Event{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, RecordedAt: r.Timestamp, Key: r.Key, Value: r.Value}
	if len(r.Headers) > 0 {
		e.Headers = make([]event.Header, len(r.Headers))
		for i, h := range r.Headers {
			e.Headers[i] = event.Header{Key: h.Key, Value: h.Value}
		}
	}
	e.Identify()
	return e
}

// batch is events of one partition that one transaction takes on.
type batch struct {
	partition
	expected int64 // the stored offset before
	next     int64 // and after
	events   []*event.Event
	careful  bool // a savepoint around each event
}

// applyBatch applies the events and returns the stored offset after them, or the one that it last saw
// with an error that is the database's.
func (g *Group) applyBatch(ctx context.Context, b batch) (stored int64, err error) {
	for races := 0; ; {
		err := g.inTime(ctx, func(ctx context.Context) error { return g.transact(ctx, b) })
		switch {
		case err == nil:
			return b.next, nil
		case errors.Is(err, errRefused):
			return g.applyCarefully(ctx, b)
		case errors.Is(err, errFenced):
			g.metrics.fenced.Inc()
			fresh, err := g.store.readStored(ctx, []partition{b.partition})
			if err != nil {
				return b.expected, err
			}
			at := fresh[b.partition]
			if at >= b.next || at < b.expected {
				return at, nil
			}
			b.expected, b.events = at, from(b.events, at)
		case retry.LostRace(err) || event.Classify(err) == event.ClassContention:
			if races++; races > maxRaces {
				return b.expected, fmt.Errorf("a batch lost %d races in a row: %w", races, err)
			}
			sleep(ctx, time.Millisecond+rand.N(time.Duration(min(races, 10))*10*time.Millisecond))
		default:
			return b.expected, err
		}
	}
}

// from returns the events at and after the offset.
func from(events []*event.Event, offset int64) []*event.Event {
	for i, e := range events {
		if e.Offset >= offset {
			return events[i:]
		}
	}
	return nil
}

// applyCarefully applies a batch in which some event fails: in small transactions, a savepoint an event.
func (g *Group) applyCarefully(ctx context.Context, b batch) (stored int64, err error) {
	stored = b.expected
	began := time.Now()
	for rest := b.events; ; {
		n := min(careful, len(rest))
		part := batch{partition: b.partition, expected: stored, next: b.next, events: rest[:n], careful: true}
		if rest = rest[n:]; len(rest) > 0 {
			part.next = rest[0].Offset
		}
		if stored, err = g.applyBatch(ctx, part); err != nil || len(rest) == 0 || stored != part.next || time.Since(began) > g.cfg.BatchTime {
			return stored, err
		}
	}
}

// outcome is what became of the events of a batch.
type outcome struct {
	applied    []*event.Event
	duplicates int
	heads      []retry.Failure // failed, and held from here on
	waiting    []*event.Event  // heads and followers, in order
	dead       []retry.Failure
}

const fenceSQL = `
UPDATE consumer_offsets
SET next_offset = $5
WHERE consumer = $1 AND topic = $2 AND partition = $3 AND next_offset = $4 AND $5 > $4`

// inTime runs a transaction, which is finished once it has begun, within the time of a batch. errOverdue stands
// for any error of one that took longer.
func (g *Group) inTime(ctx context.Context, transact func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.cfg.BatchTime)
	defer cancel()
	err := transact(ctx)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: %v", errOverdue, err) //nolint:errorlint // what it says of an event is the clock's doing
	}
	return err
}

// transact runs the one transaction of a batch.
func (g *Group) transact(ctx context.Context, b batch) error {
	began := time.Now()
	took, err := g.store.takeOn(ctx, b)
	if err != nil {
		return err
	}
	tx := took.tx
	defer rollback(tx)
	events, duplicates := took.first(b.events)
	var held map[string]bool
	if took.anyHeld {
		keys := make([]string, len(events))
		for i, e := range events {
			keys[i] = g.ladder.KeyOf(e)
		}
		if held, err = g.store.Held(ctx, tx, b.topic, keys); err != nil {
			return err
		}
	}
	result, err := g.handle(ctx, tx, events, took.forgotten, held, b.careful)
	if err != nil {
		return err
	}
	result.duplicates = duplicates
	if err := g.admit(len(result.applied), append(result.heads[:len(result.heads):len(result.heads)], result.dead...)...); err != nil {
		return err
	}
	if err := g.store.Bury(ctx, tx, result.dead); err != nil {
		return err
	}
	if err := g.store.Hold(ctx, tx, b.topic, result.heads, result.waiting); err != nil {
		return err
	}
	if err := g.commitBatch(ctx, tx, b); err != nil {
		return err
	}
	g.count(b, result, time.Since(began))
	return nil
}

// admit asks the guard whether a transaction may blame events.
func (g *Group) admit(applied int, failures ...retry.Failure) error {
	return g.guard.admit(time.Now(), applied, func(f retry.Failure) string { return g.ladder.KeyOf(f.Event) }, failures...)
}

// taken is a batch's transaction, once it has moved the fence.
type taken struct {
	tx        pgx.Tx
	fresh     map[uuid.UUID]bool // were not in the inbox
	forgotten map[uuid.UUID]bool // those of them that are older than the inbox remembers
	anyHeld   bool               // a key of the topic's is held
}

// first returns the events that are not duplicates, in order.
func (t taken) first(events []*event.Event) (fresh []*event.Event, duplicates int) {
	for _, e := range events {
		if !t.fresh[e.ID] {
			duplicates++
			continue
		}
		delete(t.fresh, e.ID) // the batch may hold it twice
		fresh = append(fresh, e)
	}
	return fresh, duplicates
}

// takeOn takes one round trip.
func (t tables) takeOn(ctx context.Context, b batch) (taken, error) {
	var moved int64
	took := taken{fresh: map[uuid.UUID]bool{}, forgotten: map[uuid.UUID]bool{}}
	tx, err := t.open(ctx, func(queries *pgx.Batch) {
		queries.Queue(fenceSQL, t.Consumer, b.topic, b.id, b.expected, b.next).Exec(func(tag pgconn.CommandTag) error {
			moved = tag.RowsAffected()
			return nil
		})
		if len(b.events) > 0 {
			entries := make([]inbox.Entry, len(b.events))
			for i, e := range b.events {
				entries[i] = inbox.Entry{ID: e.ID, Day: inbox.Day(e.ID, e.OccurredAt)}
			}
			inbox.Queue(queries, t.Consumer, entries, func(ids, old []uuid.UUID) {
				for _, id := range ids {
					took.fresh[id] = true
				}
				for _, id := range old {
					took.fresh[id], took.forgotten[id] = true, true
				}
			})
			t.QueueAnyHeld(queries, b.topic, &took.anyHeld)
		}
	})
	if err != nil {
		return taken{}, fmt.Errorf("taking a batch on: %w", err)
	}
	if moved == 0 {
		rollback(tx)
		return taken{}, errFenced
	}
	took.tx = tx
	return took, nil
}

// commitBatch commits. When the reply is lost, the stored offset tells whether it happened.
func (g *Group) commitBatch(ctx context.Context, tx pgx.Tx, b batch) error {
	err := tx.Commit(ctx)
	if err == nil {
		return nil
	}
	if rolledBack(err) {
		if !b.careful && !ofTheDatabase(err) {
			return errRefused
		}
		return fmt.Errorf("committing a batch: %w", err)
	}
	stored, readErr := g.store.readStored(ctx, []partition{b.partition})
	if readErr != nil {
		return fmt.Errorf("committing a batch: %w", errors.Join(err, readErr))
	}
	if stored[b.partition] == b.next {
		return nil
	}
	return fmt.Errorf("committing a batch: %w", err)
}

// rolledBack reports whether the server has said no to a COMMIT. It may be for what a handler has put off, a
// statement or a constraint's check: with care it shows whose that was.
func rolledBack(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) || errors.Is(err, pgx.ErrTxCommitRollback)
}

// open begins a transaction that the server ends when this process falls silent. A machine that dies
// closes no connection: its transaction would keep the fence locked until TCP gives up, hours later.
func (t tables) open(ctx context.Context, queue func(*pgx.Batch)) (*pipeline.Tx, error) {
	return pipeline.Begin(ctx, t.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(batch *pgx.Batch) {
		batch.Queue(fmt.Sprintf("SET LOCAL idle_in_transaction_session_timeout = %d", (t.batchTime + graceTime).Milliseconds()))
		queue(batch)
	})
}

// graceTime is how much longer than a batch's own bound the server waits.
const graceTime = 2 * time.Second

// rollback ends a transaction that was not committed; after a commit it does nothing.
func rollback(tx pgx.Tx) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = tx.Rollback(ctx) // a connection that cannot even roll back is closed by the pool
}

func (g *Group) count(b batch, r outcome, took time.Duration) {
	g.metrics.events.WithLabelValues(b.topic, applied).Add(float64(len(r.applied)))
	g.metrics.events.WithLabelValues(b.topic, duplicate).Add(float64(r.duplicates))
	g.metrics.failed(&g.cfg, r.heads, r.dead)
	g.metrics.process.Observe(took.Seconds())
	g.metrics.batch.Observe(float64(len(b.events)))
	g.metrics.observeConsistency(r.applied)
	for _, f := range r.dead {
		g.cfg.Logger.Warn("event is a dead letter", "group", g.cfg.Name, "event_id", f.Event.ID, "event_type", f.Event.Type,
			"topic", f.Event.Topic, "partition", f.Event.Partition, "offset", f.Event.Offset, "attempts", f.Attempts, "error", f.Err)
	}
}
