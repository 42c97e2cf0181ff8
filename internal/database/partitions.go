package database

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// EnsureDays makes sure that a table partitioned by range over a day or a time has a partition for
// each day (UTC) from yesterday on, days ahead. A day whose rows already stand in the default partition
// stays there: slower to prune, never wrong.
func EnsureDays(ctx context.Context, pool *pgxpool.Pool, table string, now time.Time, ahead int) error {
	first := now.UTC().Truncate(24*time.Hour).AddDate(0, 0, -1)
	for i := range ahead + 2 {
		day := first.AddDate(0, 0, i)
		name := pgx.Identifier{table + day.Format("_20060102")}.Sanitize()
		statement := fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s PARTITION OF %s FOR VALUES FROM ('%s') TO ('%s')",
			name, pgx.Identifier{table}.Sanitize(), day.Format(dayFormat), day.AddDate(0, 0, 1).Format(dayFormat))
		if _, err := pool.Exec(ctx, statement); err != nil && !occupied(err) {
			return fmt.Errorf("making the partition of %s for %s: %w", table, day.Format(time.DateOnly), err)
		}
	}
	return nil
}

const dayFormat = "2006-01-02 00:00:00+00"

// occupied: 23514, the default partition holds rows of that day; 42P07 and 23505, another process made
// the partition at the same moment; 42P17, the range overlaps one that exists.
func occupied(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	switch pg.Code {
	case "23514", "42P07", "23505", "42P17":
		return true
	}
	return false
}
