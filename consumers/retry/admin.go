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

const chosenSQL = `($1 = '' OR consumer = $1)
  AND ($2 = '' OR topic = $2)
  AND ($3 = '' OR event_type = $3)
  AND ($4 = '' OR key = $4)
  AND ($5 = '' OR error_class = $5)
  AND ($6 = '00000000-0000-0000-0000-000000000000'::uuid OR event_id = $6)
  AND CASE WHEN $7 = '' THEN state IN ('dead', 'redriving') ELSE state = $7 END
  AND last_failed_at >= $8
  AND ($9::timestamptz IS NULL OR last_failed_at < $9)
  AND ($10 = '' OR strpos(error, $10) > 0)`

const listSQL = `
SELECT consumer, event_id, event_type, topic, key, partition, "offset", error_class, error, state, attempts, deaths,
       first_failed_at, last_failed_at, headers, payload
FROM dead_letters
WHERE ` + chosenSQL + `
ORDER BY seq
LIMIT $11`

// arguments are those of the filter's statements.
func (f Filter) arguments() []any {
	if f.Limit == 0 {
		f.Limit = 100
	}
	var until *time.Time
	if !f.Until.IsZero() {
		until = &f.Until
	}
	return []any{f.Consumer, f.Topic, f.Type, f.Key, f.Class, f.EventID, f.State, f.Since, until, f.Cause, f.Limit}
}

// List returns the dead letters that the filter chooses, oldest first.
func List(ctx context.Context, pool *pgxpool.Pool, f Filter) ([]Letter, error) {
	rows, err := pool.Query(ctx, listSQL, f.arguments()...)
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

// Count is how many dead letters have one cause.
type Count struct {
	Consumer   string    `json:"consumer"`
	Topic      string    `json:"topic"`
	EventType  string    `json:"event_type"`
	ErrorClass string    `json:"error_class"`
	Error      string    `json:"error"`
	Letters    int       `json:"letters"`
	Keys       int       `json:"keys"`
	Oldest     time.Time `json:"oldest"` // first failed
	Newest     time.Time `json:"newest"` // last failed
}

const statsSQL = `
SELECT consumer, topic, event_type, error_class, error, count(*), count(DISTINCT key), min(first_failed_at), max(last_failed_at)
FROM dead_letters
WHERE ` + chosenSQL + `
GROUP BY consumer, topic, event_type, error_class, error
ORDER BY count(*) DESC, consumer, topic, event_type, error
LIMIT $11`

// Stats counts the dead letters that the filter chooses by their causes, the most frequent first.
func Stats(ctx context.Context, pool *pgxpool.Pool, f Filter) ([]Count, error) {
	rows, err := pool.Query(ctx, statsSQL, f.arguments()...)
	if err != nil {
		return nil, fmt.Errorf("counting dead letters: %w", err)
	}
	counts, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Count])
	if err != nil {
		return nil, fmt.Errorf("counting dead letters: %w", err)
	}
	return counts, nil
}
