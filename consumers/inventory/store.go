package inventory

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"converge/internal/pipeline"
)

// Migrations creates the stock and the reservations in the schema that search_path names first.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// reservation is the row of one order.
type reservation struct {
	state   State
	lines   []Line
	version int64
	changed bool
}

// serialiseSQL makes transactions that move stock wait for each other from their first statement on. The
// rows of the few products that every order wants would do that anyway, but only after each had taken
// some of them, in an order that depends on its events: two batches would deadlock.
const serialiseSQL = `SELECT pg_advisory_xact_lock(hashtext('converge.inventory.stock'))`

const touchSQL = `
INSERT INTO reservations (order_id)
SELECT u
FROM unnest($1::text[]) AS u
ORDER BY u
ON CONFLICT DO NOTHING`

const lockReservationsSQL = `
SELECT order_id, state, lines, version
FROM reservations
WHERE order_id = ANY($1)
ORDER BY order_id
FOR UPDATE`

const lockStockSQL = `
SELECT sku, available, reserved
FROM stock
WHERE sku = ANY($2)
   OR sku IN (SELECT line->>'sku'
              FROM reservations, jsonb_array_elements(lines) AS line
              WHERE order_id = ANY($1))
ORDER BY sku
FOR UPDATE`

// lock takes the rows of the orders, making those that are not there, and the levels of every product
// that they or the SKUs name, until the transaction ends. One round trip.
func lock(ctx context.Context, tx pgx.Tx, orderIDs, skus []string) (map[string]*reservation, Shelf, error) {
	rows, shelf := map[string]*reservation{}, Shelf{}
	var batch pgx.Batch
	batch.Queue(serialiseSQL)
	batch.Queue(touchSQL, orderIDs)
	batch.Queue(lockReservationsSQL, orderIDs).Query(func(found pgx.Rows) error {
		var orderID string
		var r reservation
		_, err := pgx.ForEachRow(found, []any{&orderID, &r.state, &r.lines, &r.version}, func() error {
			row := r
			row.lines = slices.Clone(r.lines)
			rows[orderID] = &row
			return nil
		})
		return err
	})
	batch.Queue(lockStockSQL, orderIDs, skus).Query(func(found pgx.Rows) error {
		var sku string
		var level Level
		_, err := pgx.ForEachRow(found, []any{&sku, &level.Available, &level.Reserved}, func() error {
			shelf[sku] = level
			return nil
		})
		return err
	})
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, nil, fmt.Errorf("locking reservations: %w", err)
	}
	return rows, shelf, nil
}

const saveReservationsSQL = `
UPDATE reservations AS r
SET state = u.state,
    lines = u.lines::jsonb,
    version = u.version,
    updated_at = now()
FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) AS u (order_id, state, lines, version)
WHERE r.order_id = u.order_id`

const moveStockSQL = `
UPDATE stock AS s
SET available = s.available - u.pieces,
    reserved = s.reserved + u.pieces,
    version = s.version + 1
FROM unnest($1::text[], $2::bigint[]) AS u (sku, pieces)
WHERE s.sku = u.sku`

// save writes the reservations that changed, and moves between available and reserved what before and
// after differ by.
func save(ctx context.Context, tx pgx.Tx, rows map[string]*reservation, before, after Shelf) error {
	var ids, states, lines, skus []string
	var versions, pieces []int64
	for _, id := range slices.Sorted(maps.Keys(rows)) {
		if r := rows[id]; r.changed {
			text, err := encodeLines(r.lines)
			if err != nil {
				return err
			}
			ids, states, lines, versions = append(ids, id), append(states, string(r.state)), append(lines, text), append(versions, r.version)
		}
	}
	for _, sku := range slices.Sorted(maps.Keys(after)) {
		if moved := after[sku].Reserved - before[sku].Reserved; moved != 0 {
			skus, pieces = append(skus, sku), append(pieces, moved)
		}
	}
	var batch pgx.Batch
	batch.Queue(saveReservationsSQL, ids, states, lines, versions)
	if len(skus) > 0 {
		batch.Queue(moveStockSQL, skus, pieces)
	}
	if err := pipeline.Send(ctx, tx, &batch); err != nil {
		return fmt.Errorf("saving reservations: %w", err)
	}
	return nil
}

// stock is one product's levels with the version that stands for them.
type stock struct {
	SKU       string
	Available int64
	Reserved  int64
	Version   int64
	PutFrom   int64 // the version that the latest PUT was made from
}

const findStockSQL = `
SELECT sku, available, reserved, version, put_from
FROM stock
WHERE sku = $1`

const lockOneStockSQL = findStockSQL + `
FOR UPDATE`

const setStockSQL = `
UPDATE stock
SET available = $2,
    version = version + 1,
    put_from = version
WHERE sku = $1
RETURNING sku, available, reserved, version, put_from`

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// oneStock runs a statement that returns at most one product; ok is false when there is none.
func oneStock(ctx context.Context, q querier, sql string, args ...any) (found stock, ok bool, err error) {
	rows, err := q.Query(ctx, sql, args...)
	if err == nil {
		found, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[stock])
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return stock{}, false, nil
	}
	if err != nil {
		return stock{}, false, fmt.Errorf("reading stock: %w", err)
	}
	return found, true, nil
}
