package inbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/internal/partitions"
)

// ErrForgotten means that an event is older than the inbox remembers: nobody can tell whether it was applied
// before. It is for a person to decide.
var ErrForgotten = errors.New("the event is older than the inbox remembers: it may have been applied before; redrive it if it was not")

// Days keeps the inbox's partitions, one for each day in UTC: made ahead, and dropped when they are old.
type Days struct {
	Pool *pgxpool.Pool // search_path names the inbox's schema
	// Retention is how long an event is remembered after the end of its [Day]; 0 is for ever. It must be
	// longer than an event can take to arrive once more: as long as the outbox keeps its row, the topic its
	// record, and the retry ladder the event, together.
	Retention time.Duration
}

const (
	table = "inbox"
	ahead = 3
)

// Make makes the partitions from yesterday to a few days ahead. Rows of a day without a partition stand in
// the default one, and are found like all others.
func (d Days) Make(ctx context.Context, now time.Time) error {
	return partitions.Make(ctx, d.Pool, table, now, ahead)
}

const (
	looseSQL = `
SELECT EXISTS (
    SELECT
    FROM inbox_default i
    LEFT JOIN inbox_horizons h USING (consumer)
    WHERE i.day < $1 AND i.day >= coalesce(h.oldest, '-infinity'))`
	// Rows from before a consumer's horizon are of events that are under review: they stay, so that these are
	// duplicates when they come again.
	forgetLooseSQL = `
WITH gone AS (
    DELETE FROM inbox_default i
    WHERE i.day < $1
      AND i.day >= coalesce((SELECT h.oldest FROM inbox_horizons h WHERE h.consumer = i.consumer), '-infinity')
    RETURNING i.consumer, i.day)
INSERT INTO inbox_horizons (consumer, oldest)
SELECT consumer, max(day) + 1
FROM gone
GROUP BY consumer
ON CONFLICT (consumer) DO UPDATE SET oldest = greatest(inbox_horizons.oldest, excluded.oldest)`
	// The partition's key begins with the consumer: each step of the recursion is one look into the index.
	forgetDaySQL = `
WITH RECURSIVE found AS (
    (SELECT consumer FROM %[1]s ORDER BY consumer LIMIT 1)
    UNION ALL
    SELECT (SELECT p.consumer FROM %[1]s p WHERE p.consumer > found.consumer ORDER BY p.consumer LIMIT 1)
    FROM found
    WHERE found.consumer IS NOT NULL)
INSERT INTO inbox_horizons (consumer, oldest)
SELECT consumer, $1::date + 1
FROM found
WHERE consumer IS NOT NULL
ON CONFLICT (consumer) DO UPDATE SET oldest = greatest(inbox_horizons.oldest, excluded.oldest)`
)

// Prune forgets the days that are older than Retention, and moves the horizon of every consumer that had
// rows in them, in one transaction. It returns the partitions dropped. While another process is at it, it
// does nothing.
//
// The lock comes first, and it is what makes the horizon right: a statement that inserts into the inbox has
// locked it before it looks at the horizon, and so sees either both the rows and the old horizon, or neither.
func (d Days) Prune(ctx context.Context, now time.Time) (dropped []string, err error) {
	if d.Retention <= 0 {
		return nil, nil
	}
	err = pgx.BeginFunc(ctx, d.Pool, func(tx pgx.Tx) error {
		alone, err := partitions.Alone(ctx, tx, table)
		if err != nil || !alone {
			return err
		}
		names, kept, err := partitions.Expired(ctx, tx, table, now, d.Retention)
		if err != nil {
			return err
		}
		var loose bool
		if err := tx.QueryRow(ctx, looseSQL, kept).Scan(&loose); err != nil {
			return fmt.Errorf("looking for old rows of the default partition: %w", err)
		}
		if len(names) == 0 && !loose {
			return nil
		}
		dropped = names
		return partitions.Briefly(ctx, tx, func(tx pgx.Tx) error { return forget(ctx, tx, names, loose, kept) })
	})
	if err != nil {
		return nil, fmt.Errorf("pruning the inbox: %w", err)
	}
	return dropped, nil
}

func forget(ctx context.Context, tx pgx.Tx, names []string, loose bool, kept time.Time) error {
	if _, err := tx.Exec(ctx, "LOCK TABLE ONLY inbox IN ACCESS EXCLUSIVE MODE"); err != nil {
		return err
	}
	if loose { // before the days, which move the horizon past these rows
		if _, err := tx.Exec(ctx, forgetLooseSQL, kept); err != nil {
			return fmt.Errorf("deleting old rows of the default partition: %w", err)
		}
	}
	for _, name := range names {
		day, _ := partitions.Of(table, name)
		if _, err := tx.Exec(ctx, fmt.Sprintf(forgetDaySQL, partitions.Quote([]string{name})), day); err != nil {
			return fmt.Errorf("moving the horizon past %s: %w", name, err)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return partitions.Drop(ctx, tx, names)
}
