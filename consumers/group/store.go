package group

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/consumers/event"
	"converge/consumers/inbox"
	"converge/consumers/retry"
)

// store is the database as a group sees it. There are two, tables and one in memory that simulations run
// on, and TestStoresKeepThePromises holds both to the same.
//
// Errors are PostgreSQL's: a lost race is one that [retry.LostRace] knows, trouble with the database one that
// [event.Classify] knows. A transaction that was begun here is ended by its Commit or Rollback, and it alone
// holds what it has locked until then. The methods with tx take one from takeOn or begin.
type store interface {
	// readStored returns the stored offsets; a partition that has none gets 0. It waits for a batch that is
	// open on one of them, whoever's it is.
	readStored(ctx context.Context, partitions []partition) (map[partition]int64, error)
	// movedBack returns the stored offsets that are below the known ones.
	movedBack(ctx context.Context, known map[partition]int64) (map[partition]int64, error)

	// takeOn begins the transaction of a batch: it moves the fence, puts the events into the inbox and asks
	// whether anything is held. errFenced when the stored offset is not the expected one; then, and on any
	// other error, there is no transaction.
	takeOn(ctx context.Context, b batch) (taken, error)
	Held(ctx context.Context, tx pgx.Tx, topic string, keys []string) (map[string]bool, error)
	Bury(ctx context.Context, tx pgx.Tx, dead []retry.Failure) error
	Hold(ctx context.Context, tx pgx.Tx, topic string, heads []retry.Failure, waiting []*event.Event) error

	// begin begins the transaction of a chunk of a held key.
	begin(ctx context.Context) (pgx.Tx, error)
	Claim(ctx context.Context, tx pgx.Tx, w retry.Wake) (turn retry.Turn, ok bool, err error)
	Waiting(ctx context.Context, tx pgx.Tx, w retry.Wake, after int64, limit int) ([]retry.Waiting, error)
	Settle(ctx context.Context, tx pgx.Tx, turn retry.Turn, r retry.Result) error
	release(ctx context.Context, w retry.Wake) (released bool, err error)

	sweep(ctx context.Context) (repeated int, err error)
	sample(ctx context.Context) (gauges, error)
	makeDays(ctx context.Context, now time.Time) error
	forgetDays(ctx context.Context, now time.Time) (dropped []string, err error)
}

// tables is the store in PostgreSQL. Its statements stand beside the code that they serve.
type tables struct {
	retry.Ladder
	pool      *pgxpool.Pool
	days      inbox.Days
	batchTime time.Duration
}

func newTables(cfg Config, ladder retry.Ladder) store {
	return tables{ladder, cfg.Pool, inbox.Days{Pool: cfg.Pool, Retention: cfg.InboxRetention}, cfg.BatchTime}
}

func (t tables) begin(ctx context.Context) (pgx.Tx, error) {
	tx, err := t.open(ctx, func(*pgx.Batch) {})
	if err != nil {
		return nil, err
	}
	return tx, nil
}

func (t tables) release(ctx context.Context, w retry.Wake) (bool, error) {
	return t.Release(ctx, t.pool, w)
}

func (t tables) sweep(ctx context.Context) (repeated int, err error) {
	err = pgx.BeginFunc(ctx, t.pool, func(tx pgx.Tx) error {
		repeated, err = t.Sweep(ctx, tx)
		return err
	})
	return repeated, err
}

func (t tables) makeDays(ctx context.Context, now time.Time) error { return t.days.Make(ctx, now) }

func (t tables) forgetDays(ctx context.Context, now time.Time) ([]string, error) {
	return t.days.Prune(ctx, now)
}
