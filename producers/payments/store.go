package payments

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/internal/pipeline"
	"converge/producers/httpapi"
)

// Migrations creates the payments in the schema that search_path names first.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// payment is a row.
type payment struct {
	id      uuid.UUID
	orderID string
	tenant  string
	saga    bool // else it was posted
	state   State
	terms   terms
	version int64
	history []change // of the states that it entered; an entry for each version
	cause   cause

	createdAt, updatedAt time.Time

	changed bool
}

// change is an entry of a payment's history.
type change struct {
	State   State      `json:"state"`
	At      time.Time  `json:"at"`
	EventID *uuid.UUID `json:"event_id,omitempty"` // what brought it about; nil when a request or the clock did
}

// enter takes the payment to its next version. Clocks of two machines may disagree: a history never goes back.
func (p *payment) enter(s State, eventID *uuid.UUID) {
	at := time.Now().UTC().Truncate(time.Microsecond) // what the database keeps
	if n := len(p.history); n > 0 && p.history[n-1].At.After(at) {
		at = p.history[n-1].At
	}
	p.state, p.changed = s, true
	p.version++
	p.history = append(p.history, change{s, at, eventID})
}

// final reports whether the payment will never change. One that was posted is done.
func (p *payment) final() bool { return !p.saga || p.state.Final() }

// terms is what a payment is about.
type terms struct {
	amount   *int64 // minor units; nil when nothing was ever asked for
	currency string
	method   string
	country  string // where the order goes: what the shipment needs to know
}

// cause is what a slow card's answer follows from.
type cause struct{ correlationID, causationID string }

const columns = `id, order_id, tenant, saga, state, amount, currency, payment_method, ship_country, version,
       history, correlation_id, causation_id, created_at, updated_at`

func scan(rows pgx.CollectableRow) (*payment, error) {
	var p payment
	err := rows.Scan(&p.id, &p.orderID, &p.tenant, &p.saga, &p.state, &p.terms.amount, &p.terms.currency, &p.terms.method, &p.terms.country,
		&p.version, &p.history, &p.cause.correlationID, &p.cause.causationID, &p.createdAt, &p.updatedAt)
	return &p, err
}

// serialiseSQL makes transactions for one partition wait for each other from their first statement on. All
// events of an order have one partition number, whatever their topic, so the rows that a transaction takes
// bit by bit, run by run, are wanted only by those that wait here: none can deadlock. Were the numbers to
// differ, the row locks would still be right, and a deadlock is a lost race.
const serialiseSQL = `SELECT pg_advisory_xact_lock(hashtext('converge.payments'), $1)`

const touchSQL = `
INSERT INTO payments (id, order_id, saga)
SELECT u.id, u.order_id, true
FROM unnest($1::uuid[], $2::text[]) AS u (id, order_id)
ORDER BY u.order_id
ON CONFLICT (order_id) WHERE saga DO NOTHING`

const lockSQL = `
SELECT ` + columns + `
FROM payments
WHERE order_id = ANY($1)
  AND saga
ORDER BY order_id
FOR UPDATE`

// lock takes the rows of the orders' sagas, making those that are not there, until the transaction ends.
// One round trip.
func lock(ctx context.Context, tx pgx.Tx, partition int32, orderIDs []string) (map[string]*payment, error) {
	ids := make([]uuid.UUID, len(orderIDs))
	for i := range ids {
		id, err := uuid.NewV7()
		if err != nil {
			return nil, fmt.Errorf("making a payment id: %w", err)
		}
		ids[i] = id
	}
	rows := map[string]*payment{}
	var batch pgx.Batch
	batch.Queue(serialiseSQL, partition)
	batch.Queue(touchSQL, ids, orderIDs)
	batch.Queue(lockSQL, orderIDs).Query(func(found pgx.Rows) error {
		list, err := pgx.CollectRows(found, scan)
		for _, p := range list {
			rows[p.orderID] = p
		}
		return err
	})
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, fmt.Errorf("locking payments: %w", err)
	}
	return rows, nil
}

const saveSQL = `
UPDATE payments AS p
SET state = u.state,
    amount = u.amount,
    currency = u.currency,
    payment_method = u.method,
    ship_country = u.country,
    version = u.version,
    correlation_id = u.correlation_id,
    causation_id = u.causation_id,
    tenant = u.tenant,
    history = u.history::jsonb,
    updated_at = now(),
    due_at = CASE WHEN u.state = 'PENDING' THEN now() + $10::interval END
FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::text[], $9::text[],
            $11::text[], $12::text[])
     AS u (id, state, amount, currency, method, country, version, correlation_id, causation_id, tenant, history)
WHERE p.id = u.id`

// save writes the payments that changed. One that waits for a slow card is due after the delay.
func save(ctx context.Context, tx pgx.Tx, rows map[string]*payment, delay time.Duration) error {
	var ids []uuid.UUID
	var states, currencies, methods, countries, correlations, causations, tenants, histories []string
	var amounts []*int64
	var versions []int64
	for _, key := range slices.Sorted(maps.Keys(rows)) {
		p := rows[key]
		if !p.changed {
			continue
		}
		history, err := json.Marshal(p.history)
		if err != nil {
			return fmt.Errorf("writing a payment's history: %w", err)
		}
		histories = append(histories, string(history))
		ids, states, amounts = append(ids, p.id), append(states, string(p.state)), append(amounts, p.terms.amount)
		currencies, methods, countries = append(currencies, p.terms.currency), append(methods, p.terms.method), append(countries, p.terms.country)
		versions, tenants = append(versions, p.version), append(tenants, p.tenant)
		correlations, causations = append(correlations, p.cause.correlationID), append(causations, p.cause.causationID)
	}
	if err := pipeline.Exec(ctx, tx, saveSQL, ids, states, amounts, currencies, methods, countries, versions, correlations, causations, delay, tenants, histories); err != nil {
		return fmt.Errorf("saving payments: %w", err)
	}
	return nil
}

const dueSQL = `
SELECT ` + columns + `
FROM payments
WHERE due_at <= now()
ORDER BY due_at
LIMIT $1
FOR UPDATE SKIP LOCKED`

// due takes the rows, at most limit, whose provider answers now. Rows that another process works on are
// passed over.
func due(ctx context.Context, tx pgx.Tx, limit int) ([]*payment, error) {
	rows, err := tx.Query(ctx, dueSQL, limit)
	if err != nil {
		return nil, fmt.Errorf("looking for slow cards: %w", err)
	}
	list, err := pgx.CollectRows(rows, scan)
	if err != nil {
		return nil, fmt.Errorf("looking for slow cards: %w", err)
	}
	return list, nil
}

const insertSQL = `
INSERT INTO payments (id, order_id, tenant, saga, state, amount, currency, payment_method, version, history, created_at, updated_at)
VALUES ($1, $2, $3, false, 'AUTHORIZED', $4, $5, $6, 1, $8, $7, $7)`

// insert writes a payment that was posted.
func insert(ctx context.Context, tx pgx.Tx, tenant, orderID string, terms terms) (*payment, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("making a payment id: %w", err)
	}
	p := &payment{id: id, orderID: orderID, tenant: tenant, terms: terms}
	p.enter(Authorized, nil)
	p.createdAt = p.history[0].At
	p.updatedAt = p.createdAt
	history, err := json.Marshal(p.history)
	if err != nil {
		return nil, fmt.Errorf("writing a payment's history: %w", err)
	}
	if err := pipeline.Exec(ctx, tx, insertSQL, id, orderID, tenant, terms.amount, terms.currency, terms.method, p.createdAt, string(history)); err != nil {
		return nil, fmt.Errorf("writing a payment: %w", err)
	}
	return p, nil
}

// A tombstone is no payment: nothing was ever asked for.
const (
	oneSQL = `
SELECT ` + columns + `
FROM payments
WHERE id = $1
  AND tenant = $2
  AND amount IS NOT NULL`

	ofOrderSQL = `
SELECT ` + columns + `
FROM payments
WHERE order_id = $1
  AND tenant = $2
  AND amount IS NOT NULL
ORDER BY created_at, id`
)

// versionsSQL says nothing of whose they are: who asks has read them.
const versionsSQL = `
SELECT id, version
FROM payments
WHERE id = ANY($1)`

// read returns the payments of the context's tenant that a statement finds.
func read(ctx context.Context, pool *pgxpool.Pool, sql string, arg any) ([]*payment, error) {
	rows, err := pool.Query(ctx, sql, arg, httpapi.Tenant(ctx))
	if err != nil {
		return nil, fmt.Errorf("reading payments: %w", err)
	}
	list, err := pgx.CollectRows(rows, scan)
	if err != nil {
		return nil, fmt.Errorf("reading payments: %w", err)
	}
	return list, nil
}
