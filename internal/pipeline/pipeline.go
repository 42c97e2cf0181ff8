// Package pipeline is a PostgreSQL transaction in few round trips, two at best: BEGIN travels with the first
// statements, and statements whose outcome nobody waits for travel with the next one, or with COMMIT. What has put
// off all of its statements can be handed over to be run in one.
//
// The guarantee: the server sees the statements in the order in which they were given, so that a
// transaction means what it would mean one by one; an error of a statement that was put off is the error of
// whatever it travelled with, and the transaction cannot commit. It fails to hold for a caller that takes
// Exec's nil for success before the transaction has ended or been flushed.
package pipeline

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Tx is a transaction, or a savepoint in one. Like any pgx.Tx it belongs to one goroutine at a time.
type Tx struct {
	pgx.Tx
	pool   *pgxpool.Pool // nil for a savepoint
	conn   *pgxpool.Conn // nil for a savepoint, and as long as none is needed
	outer  *Tx           // of a savepoint
	later  pgx.Batch
	after  []func()
	closed bool

	// Of a transaction that has not begun: its first statements. Invariant: Tx is nil then.
	begin func(*pgx.Batch)
	// failed is why it could not begin. Whatever is asked of it from then on fails for that.
	failed error
}

// Begin begins a transaction and runs the statements that queue adds, in one round trip. On an error there
// is no transaction. Otherwise the caller ends it by Commit or Rollback.
func Begin(ctx context.Context, pool *pgxpool.Pool, options pgx.TxOptions, queue func(*pgx.Batch)) (*Tx, error) {
	t := Lazy(pool, queue)
	if err := t.start(ctx, options); err != nil {
		return nil, err
	}
	return t, nil
}

// Lazy returns a transaction that is yet to begin, with the statements that queue will add: when somebody waits
// for the outcome of a statement, or at Commit. Until then it has no connection. Its isolation is the session's.
// When a statement of queue's fails, so does whatever made the transaction begin, with the statement's error, and all
// that is asked of the transaction later; what was put off has not happened. The caller ends it by Commit, Rollback or
// HandOver.
func Lazy(pool *pgxpool.Pool, queue func(*pgx.Batch)) *Tx { return &Tx{pool: pool, begin: queue} }

// HandOver ends a transaction that has not begun, and returns the statements that were put off, without those of
// queue's: the caller runs them, perhaps with those of others, and calls committed once they have committed. When
// the transaction has begun or ended, ok is false and nothing has changed.
func (t *Tx) HandOver() (statements []*pgx.QueuedQuery, committed func(), ok bool) {
	if t.begin == nil || t.closed {
		return nil, nil, false
	}
	statements, t.later, t.begin, t.failed, t.closed = t.later.QueuedQueries, pgx.Batch{}, nil, pgx.ErrTxClosed, true
	return statements, t.told, true
}

// Start has a transaction begin that has not, and runs what was put off. It returns why the transaction could not
// begin, now or earlier.
func (t *Tx) Start(ctx context.Context) error { return t.start(ctx, pgx.TxOptions{}) }

func (t *Tx) start(ctx context.Context, options pgx.TxOptions) error {
	if t.begin == nil {
		return t.failed
	}
	if t.conn, t.failed = t.pool.Acquire(ctx); t.failed != nil {
		t.begin, t.closed = nil, true
		return t.failed
	}
	var batch pgx.Batch
	batch.BeginTx(options)
	t.take(&batch)
	results := t.conn.SendBatch(ctx, &batch)
	t.Tx = results.Tx()
	if err := results.Close(); err != nil {
		t.failed = err
		t.abandon()
	}
	return t.failed
}

// After has f run once the transaction has committed, before Commit returns; in a transaction that is not a [Tx],
// at once. It is for what must not be counted or told of a transaction that came to nothing.
func After(tx pgx.Tx, f func()) {
	if t, ok := tx.(*Tx); ok {
		t.after = append(t.after, f)
		return
	}
	f()
}

// rollbackTime bounds the end of a transaction that has failed, whose own context may be over.
const rollbackTime = 5 * time.Second

// abandon gives the connection back: clean, or to be closed by the pool.
func (t *Tx) abandon() {
	t.closed = true
	if t.conn == nil {
		return
	}
	if raw := t.conn.Conn().PgConn(); !raw.IsClosed() && raw.TxStatus() != 'I' {
		ctx, cancel := context.WithTimeout(context.Background(), rollbackTime)
		defer cancel()
		_, _ = t.conn.Exec(ctx, "rollback") // the pool closes what is still in a transaction
	}
	t.conn.Release()
}

// Exec runs a statement whose outcome nobody waits for. In a [Tx] it is put off and nil is returned;
// another transaction runs it at once.
func Exec(ctx context.Context, tx pgx.Tx, sql string, arguments ...any) error {
	if t, ok := tx.(*Tx); ok {
		t.later.Queue(sql, arguments...)
		return nil
	}
	_, err := tx.Exec(ctx, sql, arguments...)
	return err
}

// Send is [Exec] for the statements of a batch that has no callbacks.
func Send(ctx context.Context, tx pgx.Tx, batch *pgx.Batch) error {
	if t, ok := tx.(*Tx); ok {
		t.later.QueuedQueries = append(t.later.QueuedQueries, batch.QueuedQueries...)
		return nil
	}
	return tx.SendBatch(ctx, batch).Close()
}

// Flush runs what was put off. In a transaction that puts nothing off it does nothing.
func Flush(ctx context.Context, tx pgx.Tx) error {
	t, ok := tx.(*Tx)
	if !ok {
		return nil
	}
	if t.begin != nil || t.failed != nil {
		return t.Start(ctx)
	}
	if t.later.Len() == 0 {
		return nil
	}
	return t.Tx.SendBatch(ctx, t.take(&pgx.Batch{})).Close()
}

// take adds to the batch what there is to send, in order.
func (t *Tx) take(batch *pgx.Batch) *pgx.Batch {
	if t.begin != nil {
		t.begin(batch)
		t.begin = nil
	}
	batch.QueuedQueries = append(batch.QueuedQueries, t.later.QueuedQueries...)
	t.later = pgx.Batch{}
	return batch
}

// Commit runs what was put off and commits, in one round trip; a savepoint takes two.
func (t *Tx) Commit(ctx context.Context) error {
	switch {
	case t.failed != nil:
		return t.failed
	case t.closed:
		return pgx.ErrTxClosed
	case t.outer != nil:
		if err := Flush(ctx, t); err != nil {
			return err
		}
		t.closed = true
		t.outer.after = append(t.outer.after, t.after...)
		return t.Tx.Commit(ctx)
	}
	if err := t.Start(ctx); err != nil {
		return err
	}
	if err := t.commit(ctx); err != nil {
		return err
	}
	t.told()
	return nil
}

func (t *Tx) told() {
	for _, f := range t.after {
		f()
	}
}

func (t *Tx) commit(ctx context.Context) error {
	defer t.abandon()
	if t.later.Len() == 0 {
		return t.Tx.Commit(ctx)
	}
	t.later.Queue("commit").Exec(func(tag pgconn.CommandTag) error {
		if tag.String() == "ROLLBACK" {
			return pgx.ErrTxCommitRollback
		}
		return nil
	})
	return t.conn.SendBatch(ctx, t.take(&pgx.Batch{})).Close()
}

// Rollback forgets what was put off and rolls back.
func (t *Tx) Rollback(ctx context.Context) error {
	if t.closed {
		return pgx.ErrTxClosed
	}
	t.later = pgx.Batch{}
	defer t.abandon()
	if t.begin != nil { // there is nothing to undo
		t.begin, t.failed = nil, pgx.ErrTxClosed
		return nil
	}
	return t.Tx.Rollback(ctx)
}

// Conn implements pgx.Tx. A transaction that has not begun has none.
func (t *Tx) Conn() *pgx.Conn {
	switch {
	case t.outer != nil:
		return t.outer.Conn()
	case t.conn == nil:
		return nil
	}
	return t.conn.Conn()
}

// Begin sets a savepoint.
func (t *Tx) Begin(ctx context.Context) (pgx.Tx, error) {
	if err := Flush(ctx, t); err != nil {
		return nil, err
	}
	savepoint, err := t.Tx.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return &Tx{Tx: savepoint, outer: t}, nil
}

// Exec implements pgx.Tx; like the methods below it first runs what was put off.
func (t *Tx) Exec(ctx context.Context, sql string, arguments ...any) (pgconn.CommandTag, error) {
	if err := Flush(ctx, t); err != nil {
		return pgconn.CommandTag{}, err
	}
	return t.Tx.Exec(ctx, sql, arguments...)
}

// Query implements pgx.Tx.
func (t *Tx) Query(ctx context.Context, sql string, arguments ...any) (pgx.Rows, error) {
	if err := Flush(ctx, t); err != nil {
		return failed{err}, err
	}
	return t.Tx.Query(ctx, sql, arguments...)
}

// QueryRow implements pgx.Tx.
func (t *Tx) QueryRow(ctx context.Context, sql string, arguments ...any) pgx.Row {
	if err := Flush(ctx, t); err != nil {
		return failed{err}
	}
	return t.Tx.QueryRow(ctx, sql, arguments...)
}

// SendBatch implements pgx.Tx. What was put off travels in front.
func (t *Tx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	if t.begin != nil || t.failed != nil {
		if err := t.Start(ctx); err != nil {
			return pgx.FailedBatchResults(b, err)
		}
	}
	n := t.later.Len()
	if n == 0 {
		return t.Tx.SendBatch(ctx, b)
	}
	joined := t.take(&pgx.Batch{})
	joined.QueuedQueries = append(joined.QueuedQueries, b.QueuedQueries...)
	results := t.Tx.SendBatch(ctx, joined)
	for range n {
		if _, err := results.Exec(); err != nil {
			break // results keeps it for its next call
		}
	}
	return results
}

// CopyFrom implements pgx.Tx.
func (t *Tx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, from pgx.CopyFromSource) (int64, error) {
	if err := Flush(ctx, t); err != nil {
		return 0, err
	}
	return t.Tx.CopyFrom(ctx, table, columns, from)
}

// failed is the rows of a query that was not sent, because what was put off failed.
type failed struct{ err error }

func (f failed) Close()                                       {}
func (f failed) Err() error                                   { return f.err }
func (f failed) CommandTag() pgconn.CommandTag                { return pgconn.CommandTag{} }
func (f failed) FieldDescriptions() []pgconn.FieldDescription { return nil }
func (f failed) Next() bool                                   { return false }
func (f failed) Scan(...any) error                            { return f.err }
func (f failed) Values() ([]any, error)                       { return nil, f.err }
func (f failed) RawValues() [][]byte                          { return nil }
func (f failed) Conn() *pgx.Conn                              { return nil }
func (f failed) TypeMap() *pgtype.Map                         { return nil }
