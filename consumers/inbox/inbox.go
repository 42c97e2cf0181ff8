// Package inbox remembers which events a consumer has taken responsibility for, in the transaction that
// holds their effects.
//
// The guarantee: of any number of deliveries of one event, at the same time or years apart, at most one
// transaction sees it as fresh and commits; exactly one, unless the event's day was pruned before: then it is
// forgotten ([ErrForgotten]), which is not fresh. It fails to hold for an event that carries another id the
// next time.
package inbox

import (
	"context"
	"embed"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Migrations creates inbox, inbox_horizons and consumer_offsets in the schema that search_path names first.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// Entry names an event in the inbox.
type Entry struct {
	ID  uuid.UUID
	Day time.Time // see [Day]
}

// noDay is the day of events that tell no time: a constant, so that duplicates meet.
var noDay = time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC)

// Day returns the inbox day of an event: the time in its id when that is a UUIDv7 (RFC 9562), else the day
// it occurred, else one constant day. It depends on the event alone, so that every delivery of an event
// has the same day.
func Day(id uuid.UUID, occurredAt time.Time) time.Time {
	switch {
	case id.Version() == 7:
		sec, nsec := id.Time().UnixTime()
		return time.Unix(sec, nsec).UTC().Truncate(24 * time.Hour)
	case !occurredAt.IsZero():
		return occurredAt.UTC().Truncate(24 * time.Hour)
	}
	return noDay
}

const insertSQL = `
INSERT INTO inbox (consumer, event_id, day)
SELECT $1, u.event_id, u.day
FROM unnest($2::uuid[], $3::date[]) AS u (event_id, day)
ORDER BY u.event_id
ON CONFLICT DO NOTHING
RETURNING event_id,
          day <> '1970-01-01'
              AND day < coalesce((SELECT h.oldest FROM inbox_horizons h WHERE h.consumer = $1), '-infinity')`

// Queue queues the insertion of the entries, in event_id order so that two transactions with the same
// events do not deadlock. scan is given the ids that were not in the inbox, in no order; an entry that stands
// in entries twice is in one of them once. Those that are forgotten are of days that were pruned: see
// [ErrForgotten]. They are in the inbox from now on, like the fresh ones; who takes them on owes them a review.
func Queue(batch *pgx.Batch, consumer string, entries []Entry, scan func(fresh, forgotten []uuid.UUID)) {
	ids := make([]uuid.UUID, len(entries))
	days := make([]time.Time, len(entries))
	for i, e := range entries {
		ids[i], days[i] = e.ID, e.Day
	}
	batch.Queue(insertSQL, consumer, ids, days).Query(func(rows pgx.Rows) error {
		var fresh, forgotten []uuid.UUID
		var id uuid.UUID
		var old bool
		if _, err := pgx.ForEachRow(rows, []any{&id, &old}, func() error {
			if old {
				forgotten = append(forgotten, id)
			} else {
				fresh = append(fresh, id)
			}
			return nil
		}); err != nil {
			return fmt.Errorf("inserting into the inbox: %w", err)
		}
		scan(fresh, forgotten)
		return nil
	})
}

// Once reports whether the event is fresh for the consumer, and remembers it if tx commits. It blocks
// while another transaction that has the event is open. [ErrForgotten] leaves tx as it is: who commits has
// taken the event on and must see to its review. It serves code that handles events without package group.
func Once(ctx context.Context, tx pgx.Tx, consumer string, entry Entry) (fresh bool, err error) {
	var batch pgx.Batch
	old := false
	Queue(&batch, consumer, []Entry{entry}, func(ids, forgotten []uuid.UUID) { fresh, old = len(ids) > 0, len(forgotten) > 0 })
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return false, err
	}
	if old {
		return false, ErrForgotten
	}
	return fresh, nil
}
