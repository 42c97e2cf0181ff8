package retry_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// waitForLock returns when some session of the database waits for another's lock.
func waitForLock(t testing.TB, pool *pgxpool.Pool) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for {
		var waiting bool
		err := pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)`).Scan(&waiting)
		if err != nil {
			t.Error(err)
			return
		}
		if waiting {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Error("nobody waits for a lock")
			return
		}
	}
}
