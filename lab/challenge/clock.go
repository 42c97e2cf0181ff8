package challenge

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// clock tells the database's time, so that what the challenge saw and what the journals say can be
// compared even when the database is on another machine.
type clock struct {
	ahead time.Duration // the database's clock, ahead of this machine's
	err   time.Duration // how far off that may be
}

func (c clock) now() time.Time { return time.Now().Add(c.ahead) }

const clockReadings = 9

// readClock compares the clocks. The reading with the shortest round trip bounds the error best: the
// database looked at its clock at some moment within it.
func readClock(ctx context.Context, db *pgx.Conn) (clock, error) {
	var best clock
	for i := range clockReadings {
		before := time.Now()
		var theirs time.Time
		if err := db.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&theirs); err != nil {
			return clock{}, fmt.Errorf("reading the database's clock: %w", err)
		}
		half := time.Since(before) / 2
		if i == 0 || half < best.err {
			best = clock{ahead: theirs.Sub(before.Add(half)), err: half}
		}
	}
	return best, nil
}
