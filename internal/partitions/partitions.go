// Package partitions keeps tables that are partitioned by range over a date or a time: a partition for each
// UTC day, made ahead, and dropped when it is old. A partition is called after its table and its day, as in
// outbox_20261123; others, such as the default one, are left alone.
//
// The guarantee: writers wait for no more than [LockTime] at a time, whoever they are and however many
// processes do this at once; a row of a day that has no partition stands in the table's default partition,
// where every query finds it. It fails to hold while the default partition takes rows of the very day that
// is to be made: that day stays there.
package partitions

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Day is how long a partition's day lasts, in UTC.
const Day = 24 * time.Hour

// LockTime bounds how long this package waits for a lock that writers want too. They queue up behind it.
const LockTime = 100 * time.Millisecond

// ErrBusy means that a table's writers left no gap for a lock: try again later.
var ErrBusy = errors.New("the table is too busy")

// Start returns the start of t's day.
func Start(t time.Time) time.Time { return t.UTC().Truncate(Day) }

// Make makes sure that the table has a partition for each day from yesterday on, days ahead. A day of which
// the default partition holds rows stays there. Any number of processes may call it at once.
//
// A transaction that has used the table before a day is made, and only then writes its first row of that very
// day, gets SQLSTATE 23514 and must run again: PostgreSQL has told it of the day too late. Days that are made
// ahead of their time are nobody's yet.
func Make(ctx context.Context, pool *pgxpool.Pool, table string, now time.Time, ahead int) error {
	there, err := List(ctx, pool, table)
	if err != nil {
		return err
	}
	for i := range ahead + 2 {
		day := Start(now).AddDate(0, 0, i-1)
		if slices.Contains(there, Name(table, day)) {
			continue
		}
		if err := makeDay(ctx, pool, table, day); err != nil {
			return fmt.Errorf("making the partition of %s for %s: %w", table, day.Format(time.DateOnly), err)
		}
	}
	return nil
}

// boundFormat is read as a timestamptz and as a date alike.
const boundFormat = "2006-01-02 00:00:00+00"

// makeDay makes a table and attaches it. CREATE TABLE PARTITION OF would lock every writer out of the
// parent; ATTACH locks out those who write to the default partition, which is nobody's place of choice.
func makeDay(ctx context.Context, pool *pgxpool.Pool, table string, day time.Time) error {
	parent, name := pgx.Identifier{table}.Sanitize(), pgx.Identifier{Name(table, day)}.Sanitize()
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		// Others that make partitions wait here; readers and writers do not.
		if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL lock_timeout = %d; LOCK TABLE ONLY %s IN SHARE UPDATE EXCLUSIVE MODE",
			turnTime.Milliseconds(), parent)); err != nil {
			return err
		}
		there, err := List(ctx, tx, table)
		if err != nil || slices.Contains(there, Name(table, day)) {
			return err // made while we waited
		}
		_, err = tx.Exec(ctx, fmt.Sprintf(`CREATE TABLE %s (LIKE %s INCLUDING ALL);
			SET LOCAL lock_timeout = %d;
			ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM ('%s') TO ('%s')`, name, parent, LockTime.Milliseconds(),
			parent, name, day.Format(boundFormat), day.AddDate(0, 0, 1).Format(boundFormat)))
		return err
	})
	if state(err) == "23514" { // the default partition holds rows of that day
		return nil
	}
	return err
}

// turnTime bounds the wait for another process that makes partitions.
const turnTime = 5 * time.Second

// Name returns the name of the table's partition for the day that starts at day.
func Name(table string, day time.Time) string { return table + day.Format(nameFormat) }

const nameFormat = "_20060102"

// Of returns the day of a partition called name, and false for a partition that is of no day.
func Of(table, name string) (day time.Time, ok bool) {
	suffix, ok := strings.CutPrefix(name, table)
	if !ok {
		return time.Time{}, false
	}
	day, err := time.Parse(nameFormat, suffix)
	return day, err == nil
}

// querier is a pool, a connection or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

const listSQL = `
SELECT c.relname
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = $1::text::regclass
ORDER BY c.relname`

// List returns the names of the table's partitions that are of a day, the oldest first.
func List(ctx context.Context, db querier, table string) ([]string, error) {
	rows, err := db.Query(ctx, listSQL, pgx.Identifier{table}.Sanitize())
	if err != nil {
		return nil, fmt.Errorf("listing the partitions of %s: %w", table, err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("listing the partitions of %s: %w", table, err)
	}
	return slices.DeleteFunc(names, func(name string) bool { _, ok := Of(table, name); return !ok }), nil
}

// Expired returns the table's partitions whose day ended more than retention before now, the oldest first,
// and the oldest day that is kept. The database's clock must say so too: one clock that has jumped ahead
// drops nothing.
func Expired(ctx context.Context, db querier, table string, now time.Time, retention time.Duration) (names []string, kept time.Time, err error) {
	if err := db.QueryRow(ctx, "SELECT least($1, now())", now).Scan(&kept); err != nil {
		return nil, kept, fmt.Errorf("asking the database for the time: %w", err)
	}
	kept = Start(kept.Add(-retention))
	if names, err = List(ctx, db, table); err != nil {
		return nil, kept, err
	}
	return slices.DeleteFunc(names, func(name string) bool { day, _ := Of(table, name); return !day.Before(kept) }), kept, nil
}

// Alone reports whether tx is the only one that drops the table's partitions, and keeps others from
// beginning until it ends. It does not wait.
func Alone(ctx context.Context, tx pgx.Tx, table string) (alone bool, err error) {
	err = tx.QueryRow(ctx, "SELECT pg_try_advisory_xact_lock(hashtext('converge partitions'), $1::text::regclass::oid::int)",
		pgx.Identifier{table}.Sanitize()).Scan(&alone)
	if err != nil {
		return false, fmt.Errorf("locking the partitions of %s: %w", table, err)
	}
	return alone, nil
}

// Between two tries for a lock, and how many there are.
const (
	pause = 150 * time.Millisecond
	tries = 10
)

// Briefly runs do in a savepoint of tx in which every lock is waited for no longer than [LockTime]; again
// and again until it gets its locks, with room for writers in between. [ErrBusy] when it never does.
func Briefly(ctx context.Context, tx pgx.Tx, do func(tx pgx.Tx) error) error {
	for try := 1; ; try++ {
		err := pgx.BeginFunc(ctx, tx, func(savepoint pgx.Tx) error {
			if _, err := savepoint.Exec(ctx, fmt.Sprintf("SET LOCAL lock_timeout = %d", LockTime.Milliseconds())); err != nil {
				return err
			}
			return do(savepoint)
		})
		if s := state(err); s != "55P03" && s != "40P01" {
			return err
		}
		if try == tries {
			return fmt.Errorf("%w: %w", ErrBusy, err)
		}
		if err := Wait(ctx, pause); err != nil {
			return err
		}
	}
}

// Drop drops partitions of one table, in tx. It locks everybody out of the table until tx ends: commit at once.
// The partitions' own locks come first: who reads one of them makes it wait before writers wait for it.
func Drop(ctx context.Context, tx pgx.Tx, names []string) error {
	list := Quote(names)
	for _, statement := range []string{"LOCK TABLE ONLY " + list + " IN ACCESS EXCLUSIVE MODE", "DROP TABLE " + list} {
		if _, err := tx.Exec(ctx, statement); err != nil {
			return fmt.Errorf("dropping partitions: %w", err)
		}
	}
	return nil
}

// Quote returns the names as a list in SQL.
func Quote(names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = pgx.Identifier{name}.Sanitize()
	}
	return strings.Join(quoted, ", ")
}

// Wait returns when d has passed, nil, or ctx has ended, its error.
func Wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// state returns the SQLSTATE of err, "" when it has none.
func state(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}
