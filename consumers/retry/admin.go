package retry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/consumers/event"
	"converge/producers/outbox"
)

// ErrNoLetter means that there is no such dead letter.
var ErrNoLetter = errors.New("there is no such dead letter")

// Letter is a dead letter.
type Letter struct {
	Consumer      string         `json:"consumer"`
	EventID       uuid.UUID      `json:"event_id"`
	EventType     string         `json:"event_type"`
	Topic         string         `json:"topic"`
	Key           string         `json:"key"`
	Partition     int32          `json:"partition"`
	Offset        int64          `json:"offset"`
	ErrorClass    string         `json:"error_class"`
	Error         string         `json:"error"`
	State         string         `json:"state"`
	Attempts      int            `json:"attempts"`
	Deaths        int            `json:"deaths"`
	FirstFailedAt time.Time      `json:"first_failed_at"`
	LastFailedAt  time.Time      `json:"last_failed_at"`
	Headers       []event.Header `json:"-"`
	Payload       []byte         `json:"-"`
}

// Filter chooses dead letters; a zero member chooses all.
type Filter struct {
	Consumer string
	Topic    string
	Type     string
	Key      string
	Class    string // as [event.Class] is written
	Cause    string // a part of the error's text
	EventID  uuid.UUID
	State    string    // dead, redriving, resolved or discarded; "" means dead and redriving
	Since    time.Time // last failed at or after
	Until    time.Time // last failed before
	Limit    int       // 0 means 100
}

const listSQL = `
SELECT consumer, event_id, event_type, topic, key, partition, "offset", error_class, error, state, attempts, deaths,
       first_failed_at, last_failed_at, headers, payload
FROM dead_letters
WHERE ($1 = '' OR consumer = $1)
  AND ($2 = '' OR topic = $2)
  AND ($3 = '' OR event_type = $3)
  AND ($4 = '' OR key = $4)
  AND ($5 = '' OR error_class = $5)
  AND ($6 = '00000000-0000-0000-0000-000000000000'::uuid OR event_id = $6)
  AND CASE WHEN $7 = '' THEN state IN ('dead', 'redriving') ELSE state = $7 END
  AND last_failed_at >= $8
  AND ($9::timestamptz IS NULL OR last_failed_at < $9)
  AND ($10 = '' OR strpos(error, $10) > 0)
ORDER BY seq
LIMIT $11`

// List returns the dead letters that the filter chooses, oldest first.
func List(ctx context.Context, pool *pgxpool.Pool, f Filter) ([]Letter, error) {
	if f.Limit == 0 {
		f.Limit = 100
	}
	var until *time.Time
	if !f.Until.IsZero() {
		until = &f.Until
	}
	rows, err := pool.Query(ctx, listSQL, f.Consumer, f.Topic, f.Type, f.Key, f.Class, f.EventID, f.State, f.Since, until, f.Cause, f.Limit)
	if err != nil {
		return nil, fmt.Errorf("listing dead letters: %w", err)
	}
	letters, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l Letter, err error) {
		var headers []byte
		err = row.Scan(&l.Consumer, &l.EventID, &l.EventType, &l.Topic, &l.Key, &l.Partition, &l.Offset, &l.ErrorClass, &l.Error,
			&l.State, &l.Attempts, &l.Deaths, &l.FirstFailedAt, &l.LastFailedAt, &headers, &l.Payload)
		if err == nil {
			l.Headers, err = unmarshalHeaders(headers)
		}
		return l, err
	})
	if err != nil {
		return nil, fmt.Errorf("listing dead letters: %w", err)
	}
	return letters, nil
}

// Show returns one dead letter, whatever its state; [ErrNoLetter] when there is none.
func Show(ctx context.Context, pool *pgxpool.Pool, consumer string, id uuid.UUID) (Letter, error) {
	for _, state := range []string{"", "resolved", "discarded"} {
		letters, err := List(ctx, pool, Filter{Consumer: consumer, EventID: id, State: state, Limit: 1})
		if err != nil {
			return Letter{}, err
		}
		if len(letters) == 1 {
			return letters[0], nil
		}
	}
	return Letter{}, fmt.Errorf("event %s: %w", id, ErrNoLetter)
}

// Redrive puts the dead letters of one key back behind whatever waits for that key, oldest first, for the
// consumer alone, and calls for them at once. It returns how many. What becomes of them shows in their
// state: resolved when applied, dead again otherwise. Calling it for a key without dead letters changes
// nothing.
func (l Ladder) Redrive(ctx context.Context, pool *pgxpool.Pool, topic, key string) (int, error) {
	for range maxRaces {
		n, err := l.redriveOnce(ctx, pool, topic, key)
		if !LostRace(err) {
			return n, err
		}
	}
	return 0, fmt.Errorf("redriving %s: the key was held and released %d times meanwhile: try again", topic, maxRaces)
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

func (l Ladder) redriveOnce(ctx context.Context, pool *pgxpool.Pool, topic, key string) (n int, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		// With every fence row locked no main batch of the topic is in flight: none can hold the key meanwhile.
		if _, err := tx.Exec(ctx, fenceAllSQL, l.Consumer, topic); err != nil {
			return fmt.Errorf("locking the consumer's position: %w", err)
		}
		letters, err := l.takeLetters(ctx, tx, topic, key)
		if err != nil || len(letters) == 0 {
			return err
		}
		n = len(letters)
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
	return n, err
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

const discardSQL = `UPDATE dead_letters SET state = 'discarded' WHERE consumer = $1 AND event_id = $2 AND state = 'dead'`

// Discard gives a dead letter up for good; [ErrNoLetter] when there is none that is dead.
func (l Ladder) Discard(ctx context.Context, pool *pgxpool.Pool, id uuid.UUID) error {
	tag, err := pool.Exec(ctx, discardSQL, l.Consumer, id)
	if err != nil {
		return fmt.Errorf("discarding a dead letter: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return fmt.Errorf("event %s: %w", id, ErrNoLetter)
	}
	return nil
}
