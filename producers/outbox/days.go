package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/internal/partitions"
	"converge/internal/sweep"
)

// Days keeps the outbox's partitions, one for each day in UTC: made ahead, and dropped when they are old and
// all that stands in them is published.
//
// A published row is of use only to whoever sends rows again: after a slot was lost, or because somebody
// wants a stretch of time replayed. Retention is how far back that can reach, and so it bounds how old an
// event can be when it arrives once more; inboxes must remember longer.
//
// An unpublished row is never dropped, however old. Published means: published_at is set, by the polling
// publisher; or a slot has confirmed everything up to a position that was noted while nobody could write
// to the partition. A relay that is stuck, or not there at all, keeps the rows.
type Days struct {
	Pool *pgxpool.Pool // search_path names the outbox's schema
	// Retention is how long rows are kept after their day's end; 0 keeps them for ever.
	Retention time.Duration
	// Slot is the relay's slot; "" means converge. It must exist, and every other slot of pgoutput in the
	// database must have confirmed as much as it: whoever reads one may read this table.
	Slot   string
	Logger *slog.Logger // nil: slog.Default()
}

const (
	table   = "outbox"
	ahead   = 3
	every   = 10 * time.Minute
	atOnce  = 5000 // rows of the default partition that are looked at together
	defSlot = "converge"

	// confirmTime is how long a slot that somebody reads may take to confirm. Relays confirm once a second.
	confirmTime = 10 * time.Second
	confirmTick = 100 * time.Millisecond
	// writersTime is how long a day that is over is waited for to have no writers.
	writersTime = 5 * time.Second
)

// Run makes and drops partitions until ctx ends; then it returns nil. Several processes may run it for one
// outbox.
func (d Days) Run(ctx context.Context) error {
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	return sweep.Every(ctx, every, d.Logger, "outbox days", func(ctx context.Context) (more bool, err error) {
		now := time.Now()
		if err := d.Make(ctx, now); err != nil {
			return false, err
		}
		p, err := d.Prune(ctx, now)
		if len(p.Days) > 0 || p.Rows > 0 {
			d.Logger.InfoContext(ctx, "old outbox rows are gone, all of them published", "days", p.Days, "rows_without_a_day", p.Rows)
		}
		if p.Kept != "" {
			d.Logger.WarnContext(ctx, "old outbox rows are kept", "days", p.KeptDays, "because", p.Kept)
		}
		return p.Rows == atOnce, err
	})
}

// Make makes the partitions from yesterday to a few days ahead. Rows of a day without a partition stand in
// the default one, and are published and found like all others.
func (d Days) Make(ctx context.Context, now time.Time) error {
	return partitions.Make(ctx, d.Pool, table, now, ahead)
}

// Pruned is what [Days.Prune] did.
type Pruned struct {
	Days     []string // the partitions dropped
	Rows     int64    // rows deleted from the default partition
	KeptDays []string // the partitions that are old enough but kept
	Kept     string   // why they, or rows of the default partition, are kept; "" when none are
}

// Prune drops the partitions, and deletes the rows of the default partition, that are older than Retention
// and published. It waits a few seconds for confirmation when a relay is at work. While another process is
// at it, it does nothing.
func (d Days) Prune(ctx context.Context, now time.Time) (p Pruned, err error) {
	if d.Retention <= 0 {
		return p, nil
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
		if err := d.forgetRows(ctx, tx, kept, &p); err != nil || len(names) == 0 {
			return err
		}
		return d.dropDays(ctx, tx, names, &p)
	})
	if err != nil {
		return Pruned{}, fmt.Errorf("pruning the outbox: %w", err)
	}
	return p, nil
}

// dropDays drops those partitions whose rows are all published.
//
// The order matters. SHARE waits for the transactions that have written to these days, and lets nobody
// begin to; readers go on. Behind it every row that ever stands in them is committed, below the position
// that is noted next. Noted before the lock, the position would say nothing of a transaction that commits
// while the lock is waited for. And because the lock is held until the partitions are gone, there is no
// moment for another row.
func (d Days) dropDays(ctx context.Context, tx pgx.Tx, names []string, p *Pruned) error {
	if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL lock_timeout = %d", writersTime.Milliseconds())); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "LOCK TABLE ONLY "+partitions.Quote(names)+" IN SHARE MODE"); err != nil {
		return fmt.Errorf("waiting for the writers of days that are over: %w", err)
	}
	end, err := walEnd(ctx, tx)
	if err != nil {
		return err
	}
	var marked, open []string
	for _, name := range names {
		var unmarked bool
		if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM "+partitions.Quote([]string{name})+" WHERE published_at IS NULL)").Scan(&unmarked); err != nil {
			return fmt.Errorf("looking for unpublished rows in %s: %w", name, err)
		}
		if unmarked {
			open = append(open, name)
		} else {
			marked = append(marked, name)
		}
	}
	if len(open) > 0 {
		why, err := d.awaitConfirmed(ctx, tx, end)
		if err != nil {
			return err
		}
		if why != "" {
			names, p.KeptDays, p.Kept = marked, open, why
		}
	}
	if len(names) == 0 {
		return nil
	}
	err = partitions.Briefly(ctx, tx, func(tx pgx.Tx) error { return partitions.Drop(ctx, tx, names) })
	if errors.Is(err, partitions.ErrBusy) {
		p.KeptDays, p.Kept = append(p.KeptDays, names...), "somebody reads them, as a replay does"
		return nil
	}
	p.Days = names
	return err
}

const (
	deleteMarkedSQL = `DELETE FROM outbox_default WHERE created_at < $1 AND published_at IS NOT NULL`
	looseSQL        = `SELECT seq FROM outbox_default WHERE created_at < $1 LIMIT $2`
	deleteLooseSQL  = `DELETE FROM outbox_default WHERE created_at < $1 AND seq = ANY($2)`
)

// forgetRows deletes old rows from the default partition, where others may be written meanwhile. What a
// statement sees is committed, below the position that is noted behind it.
func (d Days) forgetRows(ctx context.Context, tx pgx.Tx, kept time.Time, p *Pruned) error {
	tag, err := tx.Exec(ctx, deleteMarkedSQL, kept)
	if err != nil {
		return fmt.Errorf("deleting published rows: %w", err)
	}
	p.Rows = tag.RowsAffected()
	rows, err := tx.Query(ctx, looseSQL, kept, atOnce)
	if err != nil {
		return fmt.Errorf("looking for old rows in the default partition: %w", err)
	}
	loose, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return fmt.Errorf("looking for old rows in the default partition: %w", err)
	}
	if len(loose) == 0 {
		return nil
	}
	end, err := walEnd(ctx, tx)
	if err != nil {
		return err
	}
	if p.Kept, err = d.awaitConfirmed(ctx, tx, end); err != nil || p.Kept != "" {
		return err
	}
	if tag, err = tx.Exec(ctx, deleteLooseSQL, kept, loose); err != nil {
		return fmt.Errorf("deleting old rows of the default partition: %w", err)
	}
	p.Rows += tag.RowsAffected()
	return nil
}

// walEnd returns the position behind everything that is committed. It is the insert position: with
// synchronous_commit off, the flushed one may lie before a commit that everybody sees.
func walEnd(ctx context.Context, tx pgx.Tx) (end string, err error) {
	if err := tx.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&end); err != nil {
		return "", fmt.Errorf("asking for the end of the WAL: %w", err)
	}
	return end, nil
}

const slotsSQL = `
SELECT slot_name, active, coalesce(confirmed_flush_lsn >= $1::text::pg_lsn, false)
FROM pg_replication_slots
WHERE plugin = 'pgoutput' AND database = current_database()
ORDER BY slot_name`

// awaitConfirmed returns "" once the slots have confirmed everything before end, or why they have not. It
// waits for those only that somebody reads.
func (d Days) awaitConfirmed(ctx context.Context, tx pgx.Tx, end string) (why string, err error) {
	for deadline := time.Now().Add(confirmTime); ; {
		why, hopeful, err := d.unconfirmed(ctx, tx, end)
		if err != nil || why == "" {
			return "", err
		}
		if !hopeful || time.Now().After(deadline) {
			return why, nil
		}
		if err := partitions.Wait(ctx, confirmTick); err != nil {
			return "", err
		}
	}
}

func (d Days) unconfirmed(ctx context.Context, tx pgx.Tx, end string) (why string, hopeful bool, err error) {
	rows, err := tx.Query(ctx, slotsSQL, end)
	if err != nil {
		return "", false, fmt.Errorf("looking at the replication slots: %w", err)
	}
	var name string
	var active, confirmed bool
	own := d.Slot
	if own == "" {
		own = defSlot
	}
	found, hopeful := false, true
	var behind []string
	if _, err := pgx.ForEachRow(rows, []any{&name, &active, &confirmed}, func() error {
		found = found || name == own
		if !confirmed {
			behind, hopeful = append(behind, name), hopeful && active
		}
		return nil
	}); err != nil {
		return "", false, fmt.Errorf("looking at the replication slots: %w", err)
	}
	switch {
	case !found:
		return "there is no slot " + own + " of the relay in this database", false, nil
	case len(behind) > 0:
		return "not confirmed by slot " + strings.Join(behind, ", "), hopeful, nil
	}
	return "", false, nil
}
