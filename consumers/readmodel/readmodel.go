// Package readmodel keeps how far a read model has come, and tells it to whoever reads the model; and it holds
// what the followers of the profiles have in common.
//
// The guarantee: the progress commits with the changes that it counts, so a model never claims more than
// it shows. Transactions that advance one partition wait for each other from there on, so they cannot
// deadlock over the model's own rows. It cannot tell of changes that have not arrived: a model whose
// consumer stands still goes on telling the lag that it had when it last moved.
//
// A read that brings a Consistency-Token waits until the model shows the version that it names, see [Waits]: what
// it then gets is that version or a newer one. How long, and what a reader gets whose time is over, is the
// reader's to say.
//
// The table read_model_progress is made by the migrations of each service that has a read model.
package readmodel

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"converge/consumers/event"
)

const advanceSQL = `
INSERT INTO read_model_progress AS p (topic, partition, changes, committed_at, applied_at)
VALUES ($1, $2, $3, $4, clock_timestamp())
ON CONFLICT (topic, partition) DO UPDATE
SET changes = p.changes + excluded.changes,
    committed_at = excluded.committed_at,
    applied_at = excluded.applied_at`

// QueueAdvance queues what counts the events, which are of one partition and in its order. Queue it ahead
// of whatever locks rows of the model. No events is a programming error and panics.
func QueueAdvance(batch *pgx.Batch, events []*event.Event) {
	first, last := events[0], events[len(events)-1]
	batch.Queue(advanceSQL, first.Topic, first.Partition, len(events), committed(last))
}

// committed returns when the event became durable, as near as it tells.
func committed(e *event.Event) time.Time {
	if plausible(e.CommittedAt) {
		return e.CommittedAt
	}
	return Occurred(e)
}

// Occurred returns when the event happened: by its emitter, else when its record was written, else now.
func Occurred(e *event.Event) time.Time {
	switch {
	case plausible(e.OccurredAt):
		return e.OccurredAt
	case plausible(e.RecordedAt):
		return e.RecordedAt
	}
	return time.Now()
}

// plausible reports whether an event can have happened then. Headers hold what anybody wrote there, and a
// time beyond the year 9999 has no RFC 3339 text: one row with it would break every list that it is in.
func plausible(t time.Time) bool {
	year := t.UTC().Year()
	return year >= 1970 && year < 9999
}

// Progress is how far a model has come. The zero Progress is that of a model that has seen nothing.
type Progress struct {
	Changes int64         // events taken in, ever; grows with every change of the model
	Lag     time.Duration // from the commit of the event taken in last to its effect in the model
}

// Clocks of two machines may disagree: a lag is never negative.
const readSQL = `
SELECT coalesce(sum(changes), 0)::bigint,
       coalesce((array_agg(greatest(extract(epoch FROM applied_at - committed_at), 0) ORDER BY applied_at DESC))[1], 0)::float8
FROM read_model_progress`

// QueueRead queues the reading of the progress into the given place.
func QueueRead(batch *pgx.Batch, into *Progress) {
	batch.Queue(readSQL).QueryRow(func(row pgx.Row) error {
		var seconds float64
		if err := row.Scan(&into.Changes, &seconds); err != nil {
			return fmt.Errorf("reading a read model's progress: %w", err)
		}
		into.Lag = time.Duration(seconds * float64(time.Second))
		return nil
	})
}

// Tell sets Read-Model-Version, to the version of what is shown, and Read-Model-Lag, in seconds.
func Tell(w http.ResponseWriter, version int64, lag time.Duration) {
	w.Header().Set("Read-Model-Version", strconv.FormatInt(version, 10))
	w.Header().Set("Read-Model-Lag", strconv.FormatFloat(lag.Seconds(), 'f', 3, 64))
}
