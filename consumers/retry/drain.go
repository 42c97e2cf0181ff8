package retry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"converge/consumers/event"
	"converge/producers/outbox"
)

// Wake is a wake-up call for one held key, as a record of a retry topic carries it.
type Wake struct {
	Topic     string // the topic that the key belongs to
	Key       string
	Token     int64
	NotBefore time.Time
}

// Waiting is an event that waits behind a held key.
type Waiting struct {
	Seq      int64
	Redriven bool
	Event    *event.Event
}

// Turn is the right to run a held key, for as long as its transaction is open.
type Turn struct {
	Wake
	Attempt int       // how often the head has failed
	FirstAt time.Time // when it failed first
}

const claimSQL = `
SELECT attempt, failed_at
FROM held_keys
WHERE consumer = $1 AND topic = $2 AND key = $3 AND token = $4 AND state = 'waiting'
FOR NO KEY UPDATE`

// Claim locks the key for the wake-up. ok is false when the token no longer fits: the call is stale. It
// waits for whoever else has the key locked.
func (l Ladder) Claim(ctx context.Context, tx pgx.Tx, w Wake) (turn Turn, ok bool, err error) {
	turn.Wake = w
	err = tx.QueryRow(ctx, claimSQL, l.Consumer, w.Topic, w.Key, w.Token).Scan(&turn.Attempt, &turn.FirstAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return Turn{}, false, nil
	}
	if err != nil {
		return Turn{}, false, fmt.Errorf("claiming a held key: %w", err)
	}
	return turn, true, nil
}

const waitingSQL = `
SELECT seq, redriven, event_id, partition, "offset", recorded_at, record_key, headers, payload
FROM held_events
WHERE consumer = $1 AND topic = $2 AND key = $3 AND seq > $4
ORDER BY seq
LIMIT $5`

// Waiting returns what waits behind the key, in order, at most limit events after the seq.
func (l Ladder) Waiting(ctx context.Context, tx pgx.Tx, w Wake, after int64, limit int) ([]Waiting, error) {
	rows, err := tx.Query(ctx, waitingSQL, l.Consumer, w.Topic, w.Key, after, limit)
	if err != nil {
		return nil, fmt.Errorf("reading held events: %w", err)
	}
	waiting, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Waiting, error) {
		held := Waiting{Event: &event.Event{Topic: w.Topic}}
		var id uuid.UUID
		var headers []byte
		e := held.Event
		err := row.Scan(&held.Seq, &held.Redriven, &id, &e.Partition, &e.Offset, &e.RecordedAt, &e.Key, &headers, &e.Value)
		if err == nil {
			e.Headers, err = unmarshalHeaders(headers)
		}
		if err == nil {
			e.Identify()
			e.ID = id
		}
		return held, err
	})
	if err != nil {
		return nil, fmt.Errorf("reading held events: %w", err)
	}
	return waiting, nil
}

// Result is what became of a chunk of held events.
type Result struct {
	Done    []Waiting // applied, in order
	Dead    []Failure // dead, already buried in the same transaction
	DeadSeq []int64
	Again   *Failure // the event that failed and will be tried again; nil when none
	Blocked *Failure // the last of Dead, when it holds its key; its seq is not in DeadSeq
}

const (
	forgetSQL  = `DELETE FROM held_events WHERE consumer = $1 AND topic = $2 AND key = $3 AND seq = ANY($4)`
	resolveSQL = `UPDATE dead_letters SET state = 'resolved' WHERE consumer = $1 AND event_id = ANY($2) AND state = 'redriving'`
	againSQL   = `
UPDATE held_keys
SET attempt = $4, token = nextval('wake_token'), due_at = $5, failed_at = $6, nudges = 0, nudged_at = now()
WHERE consumer = $1 AND topic = $2 AND key = $3
RETURNING token`
	blockSQL = `
UPDATE held_keys
SET attempt = $4, token = nextval('wake_token'), state = 'blocked', failed_at = $5
WHERE consumer = $1 AND topic = $2 AND key = $3`
	cleanSQL = `UPDATE held_keys SET attempt = 0, failed_at = now() WHERE consumer = $1 AND topic = $2 AND key = $3`
)

// ErrHeldEvents means that events which waited behind a key that this transaction has locked are gone. It is
// a broken invariant, not a race: the transaction must roll back.
var ErrHeldEvents = errors.New("held events are gone behind the back of who holds their key")

// Settle writes down what became of a chunk: what is done or dead waits no more; an event that is tried
// again gives the key a new token and a wake-up on its rung.
func (l Ladder) Settle(ctx context.Context, tx pgx.Tx, turn Turn, r Result) error {
	gone := append([]int64{}, r.DeadSeq...)
	var redriven []uuid.UUID
	for _, w := range r.Done {
		gone = append(gone, w.Seq)
		if w.Redriven {
			redriven = append(redriven, w.Event.ID)
		}
	}
	tag, err := tx.Exec(ctx, forgetSQL, l.Consumer, turn.Topic, turn.Key, gone)
	if err != nil {
		return fmt.Errorf("forgetting held events: %w", err)
	}
	if tag.RowsAffected() != int64(len(gone)) {
		return fmt.Errorf("forgetting held events: %d of %d were there: %w", tag.RowsAffected(), len(gone), ErrHeldEvents)
	}
	if len(redriven) > 0 {
		if _, err := tx.Exec(ctx, resolveSQL, l.Consumer, redriven); err != nil {
			return fmt.Errorf("resolving redriven dead letters: %w", err)
		}
	}
	if r.Blocked != nil {
		if _, err := tx.Exec(ctx, blockSQL, l.Consumer, turn.Topic, turn.Key, r.Blocked.Attempts, r.Blocked.FirstAt); err != nil {
			return fmt.Errorf("blocking a held key: %w", err)
		}
		return nil
	}
	if r.Again == nil {
		if len(gone) == 0 {
			return nil
		}
		if _, err := tx.Exec(ctx, cleanSQL, l.Consumer, turn.Topic, turn.Key); err != nil {
			return fmt.Errorf("resetting a held key: %w", err)
		}
		return nil
	}
	due := time.Now().Add(l.Policy.delay(r.Again.Attempts, event.Delay(r.Again.Err)))
	var token int64
	err = tx.QueryRow(ctx, againSQL, l.Consumer, turn.Topic, turn.Key, r.Again.Attempts, due, r.Again.FirstAt).Scan(&token)
	if err != nil {
		return fmt.Errorf("scheduling another try: %w", err)
	}
	return outbox.AppendRecords(ctx, tx, l.wake(*r.Again, turn.Key, token, due))
}

// querier is a pool, a connection or a transaction.
type querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

const releaseSQL = `DELETE FROM held_keys WHERE consumer = $1 AND topic = $2 AND key = $3 AND token = $4`

// Release lets the key go. It must be a transaction of its own, behind those that ran the handlers. It
// returns false when followers came meanwhile: the next chunk is due.
func (l Ladder) Release(ctx context.Context, db querier, w Wake) (released bool, err error) {
	_, err = db.Exec(ctx, releaseSQL, l.Consumer, w.Topic, w.Key, w.Token)
	if LostRace(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("releasing a held key: %w", err)
	}
	return true, nil
}

// LostRace reports whether err says that a held key came or went while a transaction looked at it: the
// transaction must run again.
func LostRace(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	return pg.Code == "23503" && pg.ConstraintName == "held_events_key_fkey" ||
		pg.Code == "23505" && pg.ConstraintName == "held_keys_pkey"
}

// sweepGrace is how late a wake-up may be before it is repeated; each repeat of a token doubles it.
const sweepGrace = 5 * time.Second

const sweepSQL = `
WITH late AS (
    SELECT consumer, topic, key
    FROM held_keys
    WHERE consumer = $1 AND state = 'waiting'
      AND greatest(due_at, nudged_at) < now() - $2::interval * (1 << least(nudges, 7))
    ORDER BY due_at
    LIMIT 100
    FOR NO KEY UPDATE SKIP LOCKED)
UPDATE held_keys h
SET nudged_at = now(), nudges = h.nudges + 1
FROM late
WHERE (h.consumer, h.topic, h.key) = (late.consumer, late.topic, late.key)
RETURNING h.topic, h.key, h.token, h.due_at,
          coalesce((SELECT e.event_id
                    FROM held_events e
                    WHERE (e.consumer, e.topic, e.key) = (h.consumer, h.topic, h.key)
                    ORDER BY e.seq
                    LIMIT 1), gen_random_uuid())`

// Sweep repeats the wake-ups that are late, with their tokens, so that one that is merely slow stays
// valid. It returns how many. Several processes may sweep at once.
func (l Ladder) Sweep(ctx context.Context, tx pgx.Tx) (int, error) {
	rows, err := tx.Query(ctx, sweepSQL, l.Consumer, sweepGrace)
	if err != nil {
		return 0, fmt.Errorf("looking for late wake-ups: %w", err)
	}
	type late struct {
		Wake
		head uuid.UUID // of no event for a moment, between the last drain and the release
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l late, err error) {
		return l, row.Scan(&l.Topic, &l.Key, &l.Token, &l.NotBefore, &l.head)
	})
	if err != nil {
		return 0, fmt.Errorf("looking for late wake-ups: %w", err)
	}
	wakes := make([]outbox.Record, len(found))
	for i, f := range found {
		wakes[i] = l.nudge(f.Topic, f.Key, f.head, f.Token, f.NotBefore)
	}
	return len(wakes), outbox.AppendRecords(ctx, tx, wakes...)
}

// nudge returns a wake-up that says no more of the head than who it is.
func (l Ladder) nudge(topic, key string, head uuid.UUID, token int64, due time.Time) outbox.Record {
	e := &event.Event{ID: head, Topic: topic, Key: []byte(key), Headers: []event.Header{}}
	return l.wake(Failure{Event: e, Attempts: 1}, key, token, due)
}
