package orders

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"converge/internal/pipeline"
)

// Migrations creates the orders in the schema that search_path names first.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// order is a row: what a saga needs of it.
type order struct {
	id            uuid.UUID
	customerID    string
	total         int64 // minor units
	currency      string
	saga          Saga
	version       int64
	correlationID string
	createdAt     time.Time
	updatedAt     time.Time

	entered []change // states entered since the row was read
	touched bool     // the saga is not what was read
	due     due
}

// change is an entry of an order's history.
type change struct {
	State   State      `json:"state"`
	At      time.Time  `json:"at"`
	EventID *uuid.UUID `json:"event_id,omitempty"` // what brought it about; nil when the clock did
}

// due says what becomes of the row's due_at.
type due string

const (
	dueAsBefore        due = ""
	dueAcknowledgement due = "acknowledgement"
	dueNever           due = "never" // waits for ever, and is looked after by whoever is alerted
	dueEnded           due = "ended"
)

const sagaColumns = `id, customer_id, total_amount, currency, facts, outcome, overdue, version,
       correlation_id, created_at, updated_at`

func scanSaga(row pgx.CollectableRow) (*order, error) {
	var o order
	err := row.Scan(&o.id, &o.customerID, &o.total, &o.currency, &o.saga.Facts, &o.saga.Outcome, &o.saga.Overdue, &o.version,
		&o.correlationID, &o.createdAt, &o.updatedAt)
	return &o, err
}

// serialiseSQL makes transactions for one partition wait for each other from their first statement on. All
// events of an order have one partition number, whatever their topic, so the rows that a transaction takes
// bit by bit, run by run, are wanted only by those that wait here: none can deadlock. Were the numbers to
// differ, the row locks would still be right, and a deadlock is a lost race.
const serialiseSQL = `SELECT pg_advisory_xact_lock(hashtext('converge.orders'), $1)`

const lockSQL = `
SELECT ` + sagaColumns + `
FROM orders
WHERE id = ANY($1)
ORDER BY id
FOR UPDATE`

// lockAll takes the rows of the orders of a partition's events until the transaction ends. Orders that are
// not there are not in the result. One round trip.
func lockAll(ctx context.Context, tx pgx.Tx, partition int32, ids []uuid.UUID) (map[uuid.UUID]*order, error) {
	found := map[uuid.UUID]*order{}
	var batch pgx.Batch
	batch.Queue(serialiseSQL, partition)
	batch.Queue(lockSQL, ids).Query(func(rows pgx.Rows) (err error) {
		found, err = collect(rows)
		return err
	})
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, fmt.Errorf("locking orders: %w", err)
	}
	return found, nil
}

// lockOne takes the row of one order until the transaction ends; without one the result is empty.
func lockOne(ctx context.Context, tx pgx.Tx, id uuid.UUID) (map[uuid.UUID]*order, error) {
	rows, err := tx.Query(ctx, lockSQL, []uuid.UUID{id})
	if err != nil {
		return nil, fmt.Errorf("locking an order: %w", err)
	}
	found, err := collect(rows)
	if err != nil {
		return nil, fmt.Errorf("locking an order: %w", err)
	}
	return found, nil
}

func collect(rows pgx.Rows) (map[uuid.UUID]*order, error) {
	list, err := pgx.CollectRows(rows, scanSaga)
	found := make(map[uuid.UUID]*order, len(list))
	for _, o := range list {
		found[o.id] = o
	}
	return found, err
}

const overdueSQL = `
SELECT ` + sagaColumns + `
FROM orders
WHERE due_at <= now()
ORDER BY due_at
LIMIT $1
FOR UPDATE SKIP LOCKED`

// overdue takes the rows, at most limit, whose deadline has passed. Rows that another process works on
// are passed over.
func overdue(ctx context.Context, tx pgx.Tx, limit int) (map[uuid.UUID]*order, error) {
	rows, err := tx.Query(ctx, overdueSQL, limit)
	if err != nil {
		return nil, fmt.Errorf("looking for deadlines: %w", err)
	}
	found, err := collect(rows)
	if err != nil {
		return nil, fmt.Errorf("looking for deadlines: %w", err)
	}
	return found, nil
}

const saveSQL = `
UPDATE orders AS o
SET facts = u.facts,
    outcome = u.outcome,
    overdue = u.overdue,
    state = u.state,
    version = u.version,
    history = o.history || u.entered::jsonb,
    updated_at = u.updated_at,
    due_at = CASE u.due
             WHEN 'acknowledgement' THEN now() + $10::interval
             WHEN 'never' THEN 'infinity'
             WHEN 'ended' THEN NULL
             ELSE o.due_at
             END
FROM unnest($1::uuid[], $2::int[], $3::text[], $4::boolean[], $5::text[], $6::bigint[], $7::text[],
            $8::timestamptz[], $9::text[])
     AS u (id, facts, outcome, overdue, state, version, entered, updated_at, due)
WHERE o.id = u.id`

// save writes the orders that were touched. Acknowledgements are due after ackDeadline.
func save(ctx context.Context, tx pgx.Tx, orders map[uuid.UUID]*order, ackDeadline time.Duration) error {
	var (
		ids                            []uuid.UUID
		facts                          []int32
		outcomes, states, entered, due []string
		overdue                        []bool
		versions                       []int64
		updated                        []time.Time
	)
	byID := func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) }
	for _, id := range slices.SortedFunc(maps.Keys(orders), byID) {
		o := orders[id]
		if !o.touched {
			continue
		}
		text, err := json.Marshal(append([]change{}, o.entered...))
		if err != nil {
			return fmt.Errorf("writing an order's history: %w", err)
		}
		ids, facts = append(ids, o.id), append(facts, int32(o.saga.Facts))
		outcomes, states = append(outcomes, string(o.saga.Outcome)), append(states, string(o.saga.State()))
		overdue, versions = append(overdue, o.saga.Overdue), append(versions, o.version)
		entered, updated, due = append(entered, string(text)), append(updated, o.updatedAt), append(due, string(o.due))
	}
	if len(ids) == 0 {
		return nil
	}
	err := pipeline.Exec(ctx, tx, saveSQL, ids, facts, outcomes, overdue, states, versions, entered, updated, due, ackDeadline)
	if err != nil {
		return fmt.Errorf("saving orders: %w", err)
	}
	return nil
}

const insertSQL = `
INSERT INTO orders (id, customer_id, items, total_amount, currency, payment_method, ship_country,
                    history, correlation_id, created_at, updated_at, due_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10, now() + $11::interval)`

const openSQL = `
SELECT state, count(*), extract(epoch FROM now() - min(created_at))::float8
FROM orders
WHERE due_at IS NOT NULL
GROUP BY state`

const versionsSQL = `
SELECT id, version
FROM orders
WHERE id = ANY($1)`

// view is what the API shows of an order.
type view struct {
	id         uuid.UUID
	customerID string
	items      []item
	total      int64
	currency   string
	outcome    Outcome
	state      State
	version    int64
	history    []change
	createdAt  time.Time
	updatedAt  time.Time
}

// item is a line of an order.
type item struct {
	SKU      string `json:"sku"`
	Quantity int    `json:"quantity"`
}

const viewSQL = `
SELECT id, customer_id, items, total_amount, currency, outcome, state, version, history, created_at, updated_at
FROM orders
WHERE id = $1`

// querier is a pool or a transaction.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// find reads an order; ok is false when there is none.
func find(ctx context.Context, q querier, id uuid.UUID) (v *view, ok bool, err error) {
	v = &view{}
	err = q.QueryRow(ctx, viewSQL, id).Scan(&v.id, &v.customerID, &v.items, &v.total, &v.currency, &v.outcome, &v.state,
		&v.version, &v.history, &v.createdAt, &v.updatedAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("reading an order: %w", err)
	}
	return v, true, nil
}
