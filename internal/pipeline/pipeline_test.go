package pipeline

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/internal/pgtest"
)

// trips counts what is sent and waited for.
type trips struct{ n atomic.Int32 }

func (c *trips) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.n.Add(1)
	return ctx
}
func (c *trips) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (c *trips) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	c.n.Add(1)
	return ctx
}
func (c *trips) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (c *trips) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

// open returns a pool of one connection, so that whoever does not give it back is noticed.
func open(t *testing.T) (*pgxpool.Pool, *trips) {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(pgtest.Database(t, "pipeline", func(ctx context.Context, url string) error {
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		_, err = conn.Exec(ctx, "CREATE TABLE notes (n int PRIMARY KEY)")
		return err
	}))
	if err != nil {
		t.Fatal(err)
	}
	count := &trips{}
	cfg.MaxConns, cfg.ConnConfig.Tracer = 1, count
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool, count
}

const noteSQL = "INSERT INTO notes VALUES ($1)"

func begin(t *testing.T, pool *pgxpool.Pool) *Tx {
	t.Helper()
	tx, err := Begin(t.Context(), pool, pgx.TxOptions{}, func(*pgx.Batch) {})
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func notes(t *testing.T, pool *pgxpool.Pool, want ...int) {
	t.Helper()
	rows, err := pool.Query(t.Context(), "SELECT n FROM notes ORDER BY n")
	must(t, err)
	found, err := pgx.CollectRows(rows, pgx.RowTo[int])
	must(t, err)
	if !slices.Equal(found, want) {
		t.Errorf("the table holds %v, want %v", found, want)
	}
}

func duplicate(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "23505"
}

func TestATransactionTakesTwoRoundTrips(t *testing.T) {
	t.Parallel()
	pool, count := open(t)
	tx, err := Begin(t.Context(), pool, pgx.TxOptions{}, func(b *pgx.Batch) { b.Queue(noteSQL, 1) })
	must(t, err)
	must(t, Exec(t.Context(), tx, noteSQL, 2))
	var batch pgx.Batch
	batch.Queue(noteSQL, 3)
	batch.Queue(noteSQL, 4)
	must(t, Send(t.Context(), tx, &batch))
	must(t, tx.Commit(t.Context()))
	if n := count.n.Load(); n != 2 {
		t.Errorf("%d round trips, want 2", n)
	}
	if err := tx.Commit(t.Context()); !errors.Is(err, pgx.ErrTxClosed) {
		t.Errorf("a second Commit: %v", err)
	}
	if err := tx.Rollback(t.Context()); !errors.Is(err, pgx.ErrTxClosed) {
		t.Errorf("Rollback after Commit: %v", err)
	}
	notes(t, pool, 1, 2, 3, 4)
}

func TestWhatWasPutOffIsDoneBeforeWhatFollows(t *testing.T) {
	t.Parallel()
	pool, _ := open(t)
	count := func(tx pgx.Tx) (n int) {
		must(t, tx.QueryRow(t.Context(), "SELECT count(*) FROM notes").Scan(&n))
		return n
	}
	ways := map[string]func(pgx.Tx) int{
		"QueryRow": count,
		"Query": func(tx pgx.Tx) int {
			rows, err := tx.Query(t.Context(), "SELECT n FROM notes")
			must(t, err)
			all, err := pgx.CollectRows(rows, pgx.RowTo[int])
			must(t, err)
			return len(all)
		},
		"Exec": func(tx pgx.Tx) int {
			tag, err := tx.Exec(t.Context(), "UPDATE notes SET n = n + 100")
			must(t, err)
			return int(tag.RowsAffected())
		},
		"SendBatch": func(tx pgx.Tx) (n int) {
			var b pgx.Batch
			b.Queue("SELECT count(*) FROM notes").QueryRow(func(row pgx.Row) error { return row.Scan(&n) })
			must(t, tx.SendBatch(t.Context(), &b).Close())
			return n
		},
		"SendBatch read by hand": func(tx pgx.Tx) (n int) {
			var b pgx.Batch
			b.Queue("SELECT count(*) FROM notes")
			results := tx.SendBatch(t.Context(), &b)
			must(t, results.QueryRow().Scan(&n))
			must(t, results.Close())
			return n
		},
		"CopyFrom": func(tx pgx.Tx) int {
			_, err := tx.CopyFrom(t.Context(), pgx.Identifier{"notes"}, []string{"n"}, pgx.CopyFromRows([][]any{{50}}))
			must(t, err)
			return count(tx) - 1
		},
		"a savepoint": func(tx pgx.Tx) int {
			savepoint, err := tx.Begin(t.Context())
			must(t, err)
			defer savepoint.Rollback(t.Context())
			return count(savepoint)
		},
	}
	for name, way := range ways {
		tx := begin(t, pool)
		must(t, Exec(t.Context(), tx, noteSQL, 1))
		must(t, Exec(t.Context(), tx, noteSQL, 2))
		if n := way(tx); n != 2 {
			t.Errorf("%s saw %d rows, want 2", name, n)
		}
		must(t, tx.Rollback(t.Context()))
	}
	notes(t, pool)
}

func TestAnErrorOfWhatWasPutOffIsTheErrorOfWhatItTravelledWith(t *testing.T) {
	t.Parallel()
	pool, _ := open(t)
	ways := map[string]func(*Tx) error{
		"Commit":   func(tx *Tx) error { return tx.Commit(t.Context()) },
		"Flush":    func(tx *Tx) error { return Flush(t.Context(), tx) },
		"Exec":     func(tx *Tx) error { _, err := tx.Exec(t.Context(), "SELECT 1"); return err },
		"QueryRow": func(tx *Tx) error { var n int; return tx.QueryRow(t.Context(), "SELECT 1").Scan(&n) },
		"Query, its error passed over": func(tx *Tx) error {
			rows, _ := tx.Query(t.Context(), "SELECT 1")
			_, err := pgx.CollectRows(rows, pgx.RowTo[int])
			return err
		},
		"SendBatch": func(tx *Tx) error {
			var b pgx.Batch
			b.Queue("SELECT 1").QueryRow(func(pgx.Row) error { t.Error("a callback ran"); return nil })
			return tx.SendBatch(t.Context(), &b).Close()
		},
		"Begin":    func(tx *Tx) error { _, err := tx.Begin(t.Context()); return err },
		"CopyFrom": func(tx *Tx) error { _, err := tx.CopyFrom(t.Context(), pgx.Identifier{"notes"}, nil, nil); return err },
	}
	for name, way := range ways {
		tx := begin(t, pool)
		must(t, Exec(t.Context(), tx, noteSQL, 1))
		must(t, Exec(t.Context(), tx, noteSQL, 1))
		if err := way(tx); !duplicate(err) {
			t.Errorf("%s: %v, want the duplicate's error", name, err)
		}
		if err := tx.Commit(t.Context()); err == nil {
			t.Errorf("%s: committed all the same", name)
		}
		_ = tx.Rollback(t.Context())
	}
	notes(t, pool)
	if closed := pool.Stat().NewConnsCount(); closed > 2 {
		t.Errorf("%d connections were made: failed transactions cost theirs", closed)
	}
}

func TestASavepointTakesWhatWasPutOffInItWithIt(t *testing.T) {
	t.Parallel()
	pool, _ := open(t)
	tx := begin(t, pool)
	must(t, Exec(t.Context(), tx, noteSQL, 1))
	undone, err := tx.Begin(t.Context())
	must(t, err)
	must(t, Exec(t.Context(), undone, noteSQL, 2))
	must(t, undone.Rollback(t.Context()))
	failed, err := tx.Begin(t.Context())
	must(t, err)
	must(t, Exec(t.Context(), failed, noteSQL, 1))
	if err := Flush(t.Context(), failed); !duplicate(err) {
		t.Fatalf("the savepoint's error is %v", err)
	}
	must(t, failed.Rollback(t.Context()))
	kept, err := tx.Begin(t.Context())
	must(t, err)
	must(t, Exec(t.Context(), kept, noteSQL, 3))
	must(t, kept.Commit(t.Context()))
	must(t, tx.Commit(t.Context()))
	notes(t, pool, 1, 3)
}

func TestABeginningThatFailsLeavesNoTransaction(t *testing.T) {
	t.Parallel()
	pool, _ := open(t)
	for range 3 { // the pool has one connection
		if _, err := Begin(t.Context(), pool, pgx.TxOptions{}, func(b *pgx.Batch) {
			b.Queue(noteSQL, 1)
			b.Queue(noteSQL, 1)
		}); !duplicate(err) {
			t.Fatalf("beginning: %v", err)
		}
	}
	notes(t, pool)
}

func TestATransactionThatIsPutOffWholeTakesTwoRoundTrips(t *testing.T) {
	t.Parallel()
	pool, count := open(t)
	tx := Lazy(pool, func(b *pgx.Batch) { b.Queue(noteSQL, 1) })
	must(t, Exec(t.Context(), tx, noteSQL, 2))
	told := 0
	After(tx, func() { told++ })
	if n := count.n.Load(); n != 0 || told != 0 || tx.Conn() != nil {
		t.Errorf("%d round trips before it began, told %d times, the connection is %v", n, told, tx.Conn())
	}
	must(t, tx.Commit(t.Context()))
	if n := count.n.Load(); n != 2 || told != 1 {
		t.Errorf("%d round trips, told %d times, want 2 and 1", n, told)
	}
	notes(t, pool, 1, 2)
}

// What is handed over is run by somebody else, once; the transaction itself is over.
func TestWhatHasNotBegunCanBeHandedOver(t *testing.T) {
	t.Parallel()
	pool, count := open(t)
	tx := Lazy(pool, func(*pgx.Batch) { t.Error("it began") })
	must(t, Exec(t.Context(), tx, noteSQL, 1))
	var batch pgx.Batch
	batch.Queue(noteSQL, 2)
	must(t, Send(t.Context(), tx, &batch))
	told := 0
	After(tx, func() { told++ })
	statements, committed, ok := tx.HandOver()
	if !ok || len(statements) != 2 || statements[0].SQL != noteSQL || statements[1].Arguments[0] != 2 || told != 0 || count.n.Load() != 0 {
		t.Fatalf("handed over %v %v, told %d times, %d round trips", ok, statements, told, count.n.Load())
	}
	if committed(); told != 1 {
		t.Errorf("told %d times", told)
	}
	for name, way := range map[string]func() error{
		"Commit":   func() error { return tx.Commit(t.Context()) },
		"Rollback": func() error { return tx.Rollback(t.Context()) },
		"Exec":     func() error { _, err := tx.Exec(t.Context(), noteSQL, 3); return err },
	} {
		if err := way(); !errors.Is(err, pgx.ErrTxClosed) {
			t.Errorf("%s after it was handed over: %v", name, err)
		}
	}
	if _, _, ok := tx.HandOver(); ok {
		t.Error("handed over twice")
	}
	notes(t, pool)
}

func TestWhatHasBegunCannotBeHandedOver(t *testing.T) {
	t.Parallel()
	pool, _ := open(t)
	tx := Lazy(pool, func(b *pgx.Batch) { b.Queue(noteSQL, 1) })
	must(t, tx.Start(t.Context()))
	must(t, Exec(t.Context(), tx, noteSQL, 2))
	if _, _, ok := tx.HandOver(); ok {
		t.Error("handed over what has begun")
	}
	must(t, tx.Commit(t.Context()))
	notes(t, pool, 1, 2)
	gone := Lazy(pool, func(*pgx.Batch) {})
	must(t, gone.Rollback(t.Context()))
	if _, _, ok := gone.HandOver(); ok {
		t.Error("handed over what was rolled back")
	}
}

// Without a connection nothing begins, and nothing is kept for later.
func TestATransactionThatGetsNoConnectionDoesNothing(t *testing.T) {
	t.Parallel()
	pool, _ := open(t)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	tx := Lazy(pool, func(b *pgx.Batch) { b.Queue(noteSQL, 1) })
	for range 2 {
		if err := tx.Commit(over); !errors.Is(err, context.Canceled) {
			t.Errorf("Commit: %v", err)
		}
	}
	if err := tx.Commit(t.Context()); !errors.Is(err, context.Canceled) {
		t.Errorf("Commit later: %v", err)
	}
	notes(t, pool)
}

// Whichever statement refuses, and be it only when all are done, nothing has happened.
func TestATransactionThatIsPutOffWholeHappensOrDoesNot(t *testing.T) {
	t.Parallel()
	pool, _ := open(t)
	_, err := pool.Exec(t.Context(), "CREATE TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
	must(t, err)
	for name, statements := range map[string][]string{
		"the last one":         {"INSERT INTO notes VALUES (2)", "INSERT INTO notes VALUES (1), (1)"},
		"one in the middle":    {"INSERT INTO notes VALUES (3), (3)", "INSERT INTO notes VALUES (4)"},
		"what is put off":      {"INSERT INTO late VALUES (7), (7)", "INSERT INTO notes VALUES (5)"},
		"what is put off last": {"INSERT INTO notes VALUES (6)", "INSERT INTO late VALUES (8), (8)"},
	} {
		tx := Lazy(pool, func(b *pgx.Batch) { b.Queue("INSERT INTO notes VALUES (0)") })
		After(tx, func() { t.Errorf("%s: told", name) })
		for _, sql := range statements {
			must(t, Exec(t.Context(), tx, sql))
		}
		if err := tx.Commit(t.Context()); !duplicate(err) {
			t.Errorf("%s: %v, want the duplicate's error", name, err)
		}
		notes(t, pool)
	}
}

// The first statement refuses: nothing behind it happens, however the transaction is used.
func TestATransactionThatCannotBeginDoesNothing(t *testing.T) {
	t.Parallel()
	pool, _ := open(t)
	_, err := pool.Exec(t.Context(), noteSQL, 1)
	must(t, err)
	ways := map[string]func(*Tx) error{
		"Commit":  func(tx *Tx) error { return tx.Commit(t.Context()) },
		"Start":   func(tx *Tx) error { return tx.Start(t.Context()) },
		"Flush":   func(tx *Tx) error { return Flush(t.Context(), tx) },
		"Exec":    func(tx *Tx) error { _, err := tx.Exec(t.Context(), noteSQL, 3); return err },
		"Query":   func(tx *Tx) error { _, err := tx.Query(t.Context(), "SELECT 1"); return err },
		"a batch": func(tx *Tx) error { var b pgx.Batch; b.Queue(noteSQL, 3); return tx.SendBatch(t.Context(), &b).Close() },
		"Begin":   func(tx *Tx) error { _, err := tx.Begin(t.Context()); return err },
	}
	for name, way := range ways {
		tx := Lazy(pool, func(b *pgx.Batch) { b.Queue(noteSQL, 1) })
		After(tx, func() { t.Errorf("%s: told", name) })
		must(t, Exec(t.Context(), tx, noteSQL, 2))
		if err := way(tx); !duplicate(err) {
			t.Errorf("%s: %v, want the duplicate's error", name, err)
		}
		if err := way(tx); err == nil {
			t.Errorf("%s: the second time it worked", name)
		}
		if err := tx.Commit(t.Context()); err == nil {
			t.Errorf("%s: committed all the same", name)
		}
		_ = tx.Rollback(t.Context())
	}
	notes(t, pool, 1)
}

func TestATransactionThatNeverBeganIsRolledBackWithoutAWord(t *testing.T) {
	t.Parallel()
	pool, count := open(t)
	tx := Lazy(pool, func(b *pgx.Batch) { b.Queue(noteSQL, 1) })
	must(t, Exec(t.Context(), tx, noteSQL, 2))
	must(t, tx.Rollback(t.Context()))
	if n := count.n.Load(); n != 0 {
		t.Errorf("%d round trips", n)
	}
	if err := tx.Commit(t.Context()); !errors.Is(err, pgx.ErrTxClosed) {
		t.Errorf("Commit after Rollback: %v", err)
	}
	notes(t, pool) // the pool has its one connection back
}

func TestASavepointThatIsUndoneIsNotToldOf(t *testing.T) {
	t.Parallel()
	pool, _ := open(t)
	tx := begin(t, pool)
	var told []int
	for n, end := range []func(context.Context, pgx.Tx) error{
		func(ctx context.Context, s pgx.Tx) error { return s.Rollback(ctx) },
		func(ctx context.Context, s pgx.Tx) error { return s.Commit(ctx) },
	} {
		savepoint, err := tx.Begin(t.Context())
		must(t, err)
		After(savepoint, func() { told = append(told, n) })
		must(t, end(t.Context(), savepoint))
	}
	must(t, tx.Commit(t.Context()))
	if !slices.Equal(told, []int{1}) {
		t.Errorf("told of %v", told)
	}
}

func TestAnotherTransactionPutsNothingOff(t *testing.T) {
	t.Parallel()
	pool, _ := open(t)
	tx, err := pool.Begin(t.Context())
	must(t, err)
	defer tx.Rollback(t.Context())
	must(t, Exec(t.Context(), tx, noteSQL, 1))
	if err := Exec(t.Context(), tx, noteSQL, 1); !duplicate(err) {
		t.Errorf("the error is %v", err)
	}
}
