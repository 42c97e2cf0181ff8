package outbox_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/internal/database"
	"converge/internal/partitions"
	"converge/internal/pgtest"
	"converge/producers/outbox"
)

const (
	retention = 7 * partitions.Day
	patience  = time.Minute
)

// The tests' days lie in the past, because no day is dropped of which the database says that it is not over.
var (
	today = time.Date(2026, 3, 20, 12, 0, 0, 0, time.UTC)
	old   = today.AddDate(0, 0, -8) // its day ended more than 7 days ago
	fresh = today.AddDate(0, 0, -7)
)

var slotSerial atomic.Int64

// world is an outbox with partitions for the days that the tests speak of, and a slot that somebody reads
// only when the test says so.
type world struct {
	t    *testing.T
	url  string
	pool *pgxpool.Pool // the service's own
	root *pgxpool.Pool
	slot string
	days outbox.Days
}

func newWorld(t *testing.T) *world {
	t.Helper()
	url := pgtest.Database(t, "days", func(ctx context.Context, url string) error {
		return database.Migrate(ctx, url, database.Module{Service: "orders", Sets: []database.Set{{Name: "outbox", FS: outbox.Migrations}}})
	})
	w := &world{t: t, url: url, slot: fmt.Sprintf("days_%d_%d", os.Getpid(), slotSerial.Add(1))}
	var err error
	w.pool, err = database.Open(t.Context(), url, "orders", 8)
	must(t, err)
	t.Cleanup(w.pool.Close)
	w.root, err = pgxpool.New(t.Context(), url)
	must(t, err)
	t.Cleanup(w.root.Close)
	w.days = outbox.Days{Pool: w.pool, Retention: retention, Slot: w.slot}
	must(t, w.days.Make(t.Context(), old))
	must(t, w.days.Make(t.Context(), today))
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// makeSlot makes the relay's slot.
func (w *world) makeSlot(name string) {
	w.t.Helper()
	_, err := w.root.Exec(w.t.Context(), "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", name)
	must(w.t, err)
}

// confirm does what a relay does with its slot when all that is committed by now is published.
func (w *world) confirm(slot string) {
	w.t.Helper()
	var end string
	must(w.t, w.root.QueryRow(w.t.Context(), "SELECT pg_current_wal_insert_lsn()::text").Scan(&end))
	eventually(w.t, "the WAL is flushed and confirmed", func() (done bool) {
		_, err := w.root.Exec(w.t.Context(), "SELECT pg_replication_slot_advance($1, pg_current_wal_flush_lsn())", slot)
		must(w.t, err)
		must(w.t, w.root.QueryRow(w.t.Context(), "SELECT confirmed_flush_lsn >= $2::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $1", slot, end).Scan(&done))
		return done
	})
}

// pruneConfirmed prunes until the slots have confirmed even what other tests write into their server's WAL.
func (w *world) pruneConfirmed(slots ...string) (p outbox.Pruned) {
	w.t.Helper()
	eventually(w.t, "all is confirmed", func() bool {
		for _, slot := range slots {
			w.confirm(slot)
		}
		p = w.prune()
		return p.Kept == ""
	})
	return p
}

const writeSQL = `
INSERT INTO outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, created_at, published_at)
VALUES (gen_random_uuid(), 'orders', '', 'a', 1, 'OrderPlaced', '', $1, $2)`

// write appends a row of that time; published is what a polling relay notes.
func (w *world) write(at time.Time, published any) {
	w.t.Helper()
	_, err := w.pool.Exec(w.t.Context(), writeSQL, at, published)
	must(w.t, err)
}

func (w *world) prune() outbox.Pruned {
	w.t.Helper()
	p, err := w.days.Prune(w.t.Context(), today)
	must(w.t, err)
	return p
}

func (w *world) has(at time.Time) bool {
	w.t.Helper()
	names, err := partitions.List(w.t.Context(), w.pool, "outbox")
	must(w.t, err)
	return slices.Contains(names, partitions.Name("outbox", partitions.Start(at)))
}

func (w *world) rows() (n int) {
	w.t.Helper()
	must(w.t, w.pool.QueryRow(w.t.Context(), "SELECT count(*) FROM outbox").Scan(&n))
	return n
}

// wantKept fails unless the old day stands.
func (w *world) wantKept(p outbox.Pruned, because string) {
	w.t.Helper()
	if !w.has(old) {
		w.t.Fatalf("rows that nobody has confirmed are gone: %+v", p)
	}
	if !strings.Contains(p.Kept, because) {
		w.t.Errorf("kept because %q, want %q", p.Kept, because)
	}
}

func TestOldRowsStayUntilTheSlotHasConfirmedThem(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write(fresh, nil)
	w.write(old, nil)
	w.wantKept(w.prune(), "there is no slot "+w.slot+" of the relay in this database")
	w.makeSlot("other_" + w.slot)
	w.confirm("other_" + w.slot)
	w.wantKept(w.prune(), "there is no slot "+w.slot+" of the relay in this database")
	w.makeSlot(w.slot)
	w.write(old, nil)
	w.confirm("other_" + w.slot)
	w.wantKept(w.prune(), w.slot)
	w.write(today, nil)
	var p outbox.Pruned
	eventually(t, "all but the other slot have confirmed", func() bool {
		w.confirm(w.slot)
		p = w.prune()
		return !w.has(old) || !strings.Contains(p.Kept, " "+w.slot)
	})
	w.wantKept(p, "other_"+w.slot)
	if p := w.pruneConfirmed(w.slot, "other_"+w.slot); w.has(old) {
		t.Errorf("all is confirmed, and yet: %+v", p)
	}
	if !w.has(fresh) || w.rows() != 2 {
		t.Errorf("%d rows are left, want the 2 that are younger", w.rows())
	}
}

func TestWhatIsWrittenWhileADayIsClosedIsNotTakenForConfirmed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.makeSlot(w.slot)
	w.write(old, nil)
	tx, err := w.pool.Begin(t.Context())
	must(t, err)
	defer tx.Rollback(context.Background())
	_, err = tx.Exec(t.Context(), writeSQL, old, nil) // a transaction that is a week old
	must(t, err)
	done := make(chan outbox.Pruned, 1)
	failed := make(chan error, 1)
	go func() {
		p, err := w.days.Prune(t.Context(), today)
		done <- p
		failed <- err
	}()
	eventually(t, "the day is waited for", func() bool { return w.waiting() > 0 })
	w.write(today, nil)
	w.confirm(w.slot) // everything but the open transaction
	must(t, tx.Commit(t.Context()))
	p := <-done
	must(t, <-failed)
	w.wantKept(p, w.slot)
	if n := w.rows(); n != 3 {
		t.Errorf("%d rows, want 3", n)
	}
}

func (w *world) waiting() (n int) {
	must(w.t, w.root.QueryRow(w.t.Context(), "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())").Scan(&n))
	return n
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func TestAPollingRelayConfirmsByMarkingRows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write(old, old)
	w.write(old, nil)
	w.wantKept(w.prune(), "there is no slot "+w.slot+" of the relay in this database")
	_, err := w.pool.Exec(t.Context(), "UPDATE outbox SET published_at = now()")
	must(t, err)
	if p := w.prune(); w.has(old) || p.Kept != "" {
		t.Errorf("all is marked, and yet: %+v", p)
	}
}

func TestOldRowsWithoutADayGoUnderTheSameRule(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.makeSlot(w.slot)
	before := old.AddDate(0, 0, -30)
	w.write(before, nil)
	w.write(before, before)
	w.write(today.AddDate(0, 1, 0), nil) // no partition either, but not old
	if p := w.prune(); w.rows() != 2 || p.Rows != 1 || !strings.Contains(p.Kept, w.slot) {
		t.Fatalf("%+v, %d rows are left", p, w.rows())
	}
	if p := w.pruneConfirmed(w.slot); w.rows() != 1 || p.Rows != 1 {
		t.Errorf("%+v, %d rows are left", p, w.rows())
	}
}

func TestDaysThatSomebodyReadsAreKeptAndWritersDoNotWait(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write(old, old)
	replay, err := w.pool.Begin(t.Context())
	must(t, err)
	defer replay.Rollback(context.Background())
	_, err = replay.Exec(t.Context(), "SELECT FROM outbox")
	must(t, err)
	writer, err := w.pool.Acquire(t.Context())
	must(t, err)
	defer writer.Release()
	_, err = writer.Exec(t.Context(), "SET lock_timeout = 20")
	must(t, err)
	var p outbox.Pruned
	done := make(chan error, 1)
	go func() {
		var err error
		p, err = w.days.Prune(t.Context(), today)
		done <- err
	}()
	for pruning := true; pruning; {
		if _, err := writer.Exec(t.Context(), writeSQL, today, nil); err != nil {
			t.Fatalf("a writer waited: %v", err)
		}
		select {
		case err := <-done:
			must(t, err)
			pruning = false
		default:
		}
	}
	w.wantKept(p, "somebody reads them")
}

func TestNoRetentionKeepsRowsForEver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write(old, old)
	w.days.Retention = 0
	if p := w.prune(); !w.has(old) || len(p.Days) > 0 {
		t.Errorf("%+v", p)
	}
}

// A clock that has jumped ahead must not make today's rows old.
func TestAClockThatJumpedAheadDropsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	now := time.Now()
	must(t, w.days.Make(t.Context(), now))
	w.write(now, now)
	p, err := w.days.Prune(t.Context(), now.AddDate(1, 0, 0))
	must(t, err)
	if !w.has(now) || !w.has(now.AddDate(0, 0, 3)) {
		t.Errorf("days that are not over are gone: %+v", p)
	}
}

func TestADayIsMadeWhileATransactionWritesToAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tx, err := w.pool.Begin(t.Context())
	must(t, err)
	defer tx.Rollback(context.Background())
	_, err = tx.Exec(t.Context(), writeSQL, today, nil)
	must(t, err)
	if err := w.days.Make(t.Context(), today.AddDate(0, 0, 5)); err != nil {
		t.Fatalf("making a day waited for a writer: %v", err)
	}
	_, err = tx.Exec(t.Context(), writeSQL, today, nil)
	must(t, err)
	w.write(today.AddDate(0, 0, 5), nil)
	must(t, tx.Commit(t.Context()))
	var n int
	must(t, w.pool.QueryRow(t.Context(), "SELECT count(*) FROM outbox_default").Scan(&n))
	if n != 0 || w.rows() != 3 {
		t.Errorf("%d of %d rows are in the default partition", n, w.rows())
	}
}

// Writers never stop; meanwhile old days are dropped and new ones made, by two processes.
func TestWritersGoOnWhileDaysComeAndGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.days.Slot = w.slot
	w.write(old, old)
	ctx, stop := context.WithCancel(t.Context())
	var committed atomic.Int64
	writers := make(chan error, 4)
	midnight := partitions.Start(today).AddDate(0, 0, 1)
	for range cap(writers) {
		go func() {
			for ctx.Err() == nil {
				err := pgx.BeginFunc(context.Background(), w.pool, func(tx pgx.Tx) error {
					for _, at := range []time.Time{midnight.Add(-time.Nanosecond), midnight, midnight.AddDate(0, 0, 3)} {
						if _, err := tx.Exec(context.Background(), writeSQL, at, nil); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					writers <- err
					return
				}
				committed.Add(3)
			}
			writers <- nil
		}()
	}
	keepers := make(chan error, 2)
	for range cap(keepers) {
		go func() {
			err := w.days.Make(t.Context(), midnight.AddDate(0, 0, 5))
			for deadline := time.Now().Add(patience); err == nil && w.has(old) && time.Now().Before(deadline); {
				_, err = w.days.Prune(t.Context(), today)
			}
			keepers <- err
		}()
	}
	for range cap(keepers) {
		if err := <-keepers; err != nil {
			t.Errorf("keeping days: %v", err)
		}
	}
	eventually(t, "writers write", func() bool { return committed.Load() > 100 })
	stop()
	for range cap(writers) {
		if err := <-writers; err != nil {
			t.Errorf("writing: %v", err)
		}
	}
	if w.has(old) || !w.has(midnight.AddDate(0, 0, 8)) {
		t.Error("the old day is there, or a new one is not")
	}
	if n := w.rows(); int64(n) != committed.Load() {
		t.Errorf("%d rows, %d were committed", n, committed.Load())
	}
}
