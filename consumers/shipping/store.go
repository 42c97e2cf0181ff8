package shipping

import (
	"context"
	"embed"
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"converge/internal/pipeline"
)

// Migrations creates the shipments in the schema that search_path names first.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// shipment is the row of one order.
type shipment struct {
	state   State
	id      *uuid.UUID // nil while no carrier was found
	country string
	version int64
	changed bool
}

// serialiseSQL makes transactions for one partition wait for each other from their first statement on. All
// events of an order have one partition number, whatever their topic, so the rows that a transaction takes
// bit by bit, run by run, are wanted only by those that wait here: none can deadlock. Were the numbers to
// differ, the row locks would still be right, and a deadlock is a lost race.
const serialiseSQL = `SELECT pg_advisory_xact_lock(hashtext('converge.shipping'), $1)`

const touchSQL = `
INSERT INTO shipments (order_id)
SELECT u
FROM unnest($1::text[]) AS u
ORDER BY u
ON CONFLICT DO NOTHING`

const lockSQL = `
SELECT order_id, state, shipment_id, country, version
FROM shipments
WHERE order_id = ANY($1)
ORDER BY order_id
FOR UPDATE`

// lock takes the rows of the orders, making those that are not there, until the transaction ends. One
// round trip.
func lock(ctx context.Context, tx pgx.Tx, partition int32, orderIDs []string) (map[string]*shipment, error) {
	rows := map[string]*shipment{}
	var batch pgx.Batch
	batch.Queue(serialiseSQL, partition)
	batch.Queue(touchSQL, orderIDs)
	batch.Queue(lockSQL, orderIDs).Query(func(found pgx.Rows) error {
		for found.Next() {
			var orderID string
			var row shipment
			if err := found.Scan(&orderID, &row.state, &row.id, &row.country, &row.version); err != nil {
				return err
			}
			rows[orderID] = &row
		}
		return found.Err()
	})
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, fmt.Errorf("locking shipments: %w", err)
	}
	return rows, nil
}

const saveSQL = `
UPDATE shipments AS s
SET state = u.state,
    shipment_id = u.shipment_id,
    country = u.country,
    version = u.version,
    updated_at = now()
FROM unnest($1::text[], $2::text[], $3::uuid[], $4::text[], $5::bigint[])
     AS u (order_id, state, shipment_id, country, version)
WHERE s.order_id = u.order_id`

// save writes the shipments that changed.
func save(ctx context.Context, tx pgx.Tx, rows map[string]*shipment) error {
	var orderIDs, states, countries []string
	var ids []*uuid.UUID
	var versions []int64
	for _, orderID := range slices.Sorted(maps.Keys(rows)) {
		if row := rows[orderID]; row.changed {
			orderIDs, states, ids = append(orderIDs, orderID), append(states, string(row.state)), append(ids, row.id)
			countries, versions = append(countries, row.country), append(versions, row.version)
		}
	}
	if err := pipeline.Exec(ctx, tx, saveSQL, orderIDs, states, ids, countries, versions); err != nil {
		return fmt.Errorf("saving shipments: %w", err)
	}
	return nil
}
