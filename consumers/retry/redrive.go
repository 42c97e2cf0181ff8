package retry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/consumers/event"
	"converge/producers/outbox"
)

// Decision says who decides about dead letters, and why. It is kept with them.
type Decision struct {
	By  string
	Why string
}

// The acts of decisions.
const (
	redriven  = "redriven"
	discarded = "discarded"
	edited    = "edited"
)

const decideSQL = `
INSERT INTO dead_letter_decisions (consumer, event_id, act, decided_by, why)
SELECT $1, id, $3, $4, $5
FROM unnest($2::uuid[]) AS id`

func (l Ladder) decide(ctx context.Context, tx pgx.Tx, act string, d Decision, ids ...uuid.UUID) error {
	if _, err := tx.Exec(ctx, decideSQL, l.Consumer, ids, act, d.By, d.Why); err != nil {
		return fmt.Errorf("noting a decision: %w", err)
	}
	return nil
}

// Decided is a decision that was made about a dead letter.
type Decided struct {
	At     time.Time `json:"at"`
	Act    string    `json:"act"` // redriven, discarded or edited
	By     string    `json:"by"`
	Why    string    `json:"why"`
	Before []byte    `json:"-"` // the value that was edited
	After  []byte    `json:"-"`
}

const decisionsSQL = `
SELECT decided_at, act, decided_by, why, payload_before, payload_after
FROM dead_letter_decisions
WHERE consumer = $1 AND event_id = $2
ORDER BY seq`

// Decisions returns what was decided about a dead letter, in order.
func Decisions(ctx context.Context, pool *pgxpool.Pool, consumer string, id uuid.UUID) ([]Decided, error) {
	rows, err := pool.Query(ctx, decisionsSQL, consumer, id)
	if err != nil {
		return nil, fmt.Errorf("reading decisions: %w", err)
	}
	decisions, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Decided])
	if err != nil {
		return nil, fmt.Errorf("reading decisions: %w", err)
	}
	return decisions, nil
}

// Redrive puts the dead letters of one key back behind whatever waits for that key, oldest first, for the
// consumer alone, and calls for them at once. It returns their ids, for [States]. Calling it for a key without
// dead letters changes nothing.
func (l Ladder) Redrive(ctx context.Context, pool *pgxpool.Pool, topic, key string, d Decision) ([]uuid.UUID, error) {
	for range maxRaces {
		ids, err := l.redriveOnce(ctx, pool, topic, key, d)
		if !LostRace(err) {
			return ids, err
		}
	}
	return nil, fmt.Errorf("redriving %s: the key was held and released %d times meanwhile: try again", topic, maxRaces)
}

const maxRaces = 20

const (
	fenceAllSQL = `
SELECT 1
FROM consumer_offsets
WHERE consumer = $1 AND topic = $2
ORDER BY partition
FOR UPDATE`
	redrivingSQL = `
WITH chosen AS (
    UPDATE dead_letters
    SET state = 'redriving'
    WHERE consumer = $1 AND topic = $2 AND key = $3 AND state = 'dead'
    RETURNING seq, event_id, partition, "offset", recorded_at, record_key, headers, payload)
SELECT event_id, partition, "offset", recorded_at, record_key, headers, payload
FROM chosen
ORDER BY seq`
	holdAgainSQL = `
INSERT INTO held_keys (consumer, topic, key, token, attempt, state, due_at)
VALUES ($1, $2, $3, nextval('wake_token'), 0, 'waiting', now())
ON CONFLICT DO NOTHING
RETURNING token, due_at`
)

func (l Ladder) redriveOnce(ctx context.Context, pool *pgxpool.Pool, topic, key string, d Decision) (ids []uuid.UUID, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		// With every fence row locked no main batch of the topic is in flight: none can hold the key meanwhile.
		if _, err := tx.Exec(ctx, fenceAllSQL, l.Consumer, topic); err != nil {
			return fmt.Errorf("locking the consumer's position: %w", err)
		}
		ids = ids[:0]
		if head, ok, err := l.redriveHead(ctx, tx, topic, key); err != nil {
			return err
		} else if ok {
			ids = append(ids, head)
			if err := l.decide(ctx, tx, redriven, d, head); err != nil {
				return err
			}
		}
		letters, err := l.takeLetters(ctx, tx, topic, key)
		if err != nil || len(letters) == 0 {
			return err
		}
		first := len(ids)
		for _, e := range letters {
			ids = append(ids, e.ID)
		}
		if err := l.decide(ctx, tx, redriven, d, ids[first:]...); err != nil {
			return err
		}
		var token int64
		var due time.Time
		err = tx.QueryRow(ctx, holdAgainSQL, l.Consumer, topic, key).Scan(&token, &due)
		switch {
		case errors.Is(err, pgx.ErrNoRows): // held already: its own wake-up comes
		case err != nil:
			return fmt.Errorf("holding the key of dead letters: %w", err)
		default:
			if err := outbox.AppendRecords(ctx, tx, l.wake(Failure{Event: letters[0], Attempts: 1}, key, token, due)); err != nil {
				return err
			}
		}
		return l.insertWaiting(ctx, tx, letters, true)
	})
	if err != nil {
		return nil, err
	}
	return ids, nil
}

const (
	lockBlockedSQL = `
SELECT 1
FROM held_keys
WHERE consumer = $1 AND topic = $2 AND key = $3 AND state = 'blocked'
FOR NO KEY UPDATE`
	// What was edited meanwhile is in the letter.
	redriveHeadSQL = `
WITH head AS (
    SELECT seq, event_id
    FROM held_events
    WHERE consumer = $1 AND topic = $2 AND key = $3
    ORDER BY seq
    LIMIT 1),
letter AS (
    UPDATE dead_letters d
    SET state = 'redriving'
    FROM head
    WHERE d.consumer = $1 AND d.event_id = head.event_id AND d.state = 'dead'
    RETURNING head.seq, d.headers, d.payload)
UPDATE held_events e
SET redriven = true, headers = letter.headers, payload = letter.payload
FROM letter
WHERE e.consumer = $1 AND e.topic = $2 AND e.key = $3 AND e.seq = letter.seq
RETURNING e.event_id`
	unblockSQL = `
UPDATE held_keys
SET state = 'waiting', attempt = 0, token = nextval('wake_token'), due_at = now(), nudges = 0, nudged_at = now()
WHERE consumer = $1 AND topic = $2 AND key = $3
RETURNING token, due_at`
	dropHeadSQL = `DELETE FROM held_events WHERE consumer = $1 AND topic = $2 AND key = $3 AND event_id = $4`
)

// lockBlocked reports whether the key is blocked, and then keeps it so for the transaction.
func (l Ladder) lockBlocked(ctx context.Context, tx pgx.Tx, topic, key string) (bool, error) {
	tag, err := tx.Exec(ctx, lockBlockedSQL, l.Consumer, topic, key)
	if err != nil {
		return false, fmt.Errorf("looking for a blocked key: %w", err)
	}
	return tag.RowsAffected() == 1, nil
}

// redriveHead lets a blocked key run, its dead head first; ok is false when the key is not blocked.
func (l Ladder) redriveHead(ctx context.Context, tx pgx.Tx, topic, key string) (head uuid.UUID, ok bool, err error) {
	if ok, err = l.lockBlocked(ctx, tx, topic, key); err != nil || !ok {
		return head, false, err
	}
	if err := tx.QueryRow(ctx, redriveHeadSQL, l.Consumer, topic, key).Scan(&head); err != nil {
		return head, false, fmt.Errorf("redriving the head of a blocked key: %w", err)
	}
	return head, true, l.unblock(ctx, tx, topic, key, head)
}

// unblock calls for a key that was blocked.
func (l Ladder) unblock(ctx context.Context, tx pgx.Tx, topic, key string, head uuid.UUID) error {
	var token int64
	var due time.Time
	if err := tx.QueryRow(ctx, unblockSQL, l.Consumer, topic, key).Scan(&token, &due); err != nil {
		return fmt.Errorf("unblocking a held key: %w", err)
	}
	return outbox.AppendRecords(ctx, tx, l.nudge(topic, key, head, token, due))
}

func (l Ladder) takeLetters(ctx context.Context, tx pgx.Tx, topic, key string) ([]*event.Event, error) {
	rows, err := tx.Query(ctx, redrivingSQL, l.Consumer, topic, key)
	if err != nil {
		return nil, fmt.Errorf("taking dead letters: %w", err)
	}
	letters, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*event.Event, error) {
		e := &event.Event{Topic: topic}
		var id uuid.UUID
		var headers []byte
		err := row.Scan(&id, &e.Partition, &e.Offset, &e.RecordedAt, &e.Key, &headers, &e.Value)
		if err == nil {
			e.Headers, err = unmarshalHeaders(headers)
		}
		if err == nil {
			e.Identify()
			e.ID = id
		}
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("taking dead letters: %w", err)
	}
	return letters, nil
}

const statesSQL = `
SELECT state, count(*)
FROM dead_letters
WHERE consumer = $1 AND event_id = ANY($2)
GROUP BY state`

// States counts the letters by what has become of them: resolved when they were applied, redriving while they
// wait or climb the ladder, dead (again) or discarded.
func States(ctx context.Context, pool *pgxpool.Pool, consumer string, ids []uuid.UUID) (map[string]int, error) {
	rows, err := pool.Query(ctx, statesSQL, consumer, ids)
	if err != nil {
		return nil, fmt.Errorf("looking after redriven letters: %w", err)
	}
	counts := map[string]int{}
	var state string
	var n int
	if _, err := pgx.ForEachRow(rows, []any{&state, &n}, func() error { counts[state] = n; return nil }); err != nil {
		return nil, fmt.Errorf("looking after redriven letters: %w", err)
	}
	return counts, nil
}

const discardSQL = `
UPDATE dead_letters
SET state = 'discarded'
WHERE consumer = $1 AND event_id = $2 AND state = 'dead'
RETURNING topic, key`

// Discard gives a dead letter up for good; [ErrNoLetter] when there is none that is dead. If it held its key, its
// followers go on.
func (l Ladder) Discard(ctx context.Context, pool *pgxpool.Pool, id uuid.UUID, d Decision) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		var topic, key string
		err := tx.QueryRow(ctx, discardSQL, l.Consumer, id).Scan(&topic, &key)
		if errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("event %s: %w", id, ErrNoLetter)
		}
		if err != nil {
			return fmt.Errorf("discarding a dead letter: %w", err)
		}
		if err := l.decide(ctx, tx, discarded, d, id); err != nil {
			return err
		}
		if held, err := l.lockBlocked(ctx, tx, topic, key); err != nil || !held {
			return err
		}
		tag, err := tx.Exec(ctx, dropHeadSQL, l.Consumer, topic, key, id)
		if err != nil {
			return fmt.Errorf("dropping the head of a blocked key: %w", err)
		}
		if tag.RowsAffected() == 0 {
			return nil // it is another one that blocks
		}
		return l.unblock(ctx, tx, topic, key, id)
	})
}

const (
	lockLetterSQL = `
SELECT headers
FROM dead_letters
WHERE consumer = $1 AND event_id = $2 AND state = 'dead'
FOR UPDATE`
	editSQL = `
WITH noted AS (
    INSERT INTO dead_letter_decisions (consumer, event_id, act, decided_by, why, payload_before, payload_after)
    SELECT consumer, event_id, $5, $6, $7, payload, $3
    FROM dead_letters
    WHERE consumer = $1 AND event_id = $2)
UPDATE dead_letters
SET payload = $3, headers = $4::jsonb
WHERE consumer = $1 AND event_id = $2`
)

// Edit replaces the value of a dead letter, for a redrive to take; the value before is kept with the decision.
// A content type that is not "" replaces the letter's. [ErrNoLetter] when there is none that is dead.
func (l Ladder) Edit(ctx context.Context, pool *pgxpool.Pool, id uuid.UUID, value []byte, contentType string, d Decision) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		var stored []byte
		err := tx.QueryRow(ctx, lockLetterSQL, l.Consumer, id).Scan(&stored)
		if errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("event %s: %w", id, ErrNoLetter)
		}
		if err != nil {
			return fmt.Errorf("editing a dead letter: %w", err)
		}
		headers := string(stored)
		if contentType != "" {
			if headers, err = withContentType(stored, contentType); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, editSQL, l.Consumer, id, value, headers, edited, d.By, d.Why); err != nil {
			return fmt.Errorf("editing a dead letter: %w", err)
		}
		return nil
	})
}

// withContentType returns stored headers with another content type.
func withContentType(stored []byte, contentType string) (string, error) {
	const name = "content-type"
	headers, err := unmarshalHeaders(stored)
	if err != nil {
		return "", err
	}
	headers = slices.DeleteFunc(headers, func(h event.Header) bool { return h.Key == name })
	return marshalHeaders(append(headers, event.Header{Key: name, Value: []byte(contentType)}))
}
