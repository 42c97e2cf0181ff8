package transfers

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
	"converge/producers/catalog"
	"converge/producers/httpapi"
)

// Migrations creates the accounts and the transfers in the schema that search_path names first.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// account is a row.
type account struct {
	id       string
	currency string
	opening  int64 // minor units, as the balance
	balance  int64
	version  int64
}

const accountsSQL = `
SELECT id, currency, opening_balance, balance, version
FROM accounts
WHERE id = ANY($1)
ORDER BY id`

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// testValue is the account that takes part in no transfers. Nobody opens it and every tenant has one of its own:
// the Ledger knows it by this name.
const testValue = "closed"

// findAccounts returns those of the accounts that are open, by id.
func findAccounts(ctx context.Context, q querier, ids ...string) ([]account, error) {
	rows, err := q.Query(ctx, accountsSQL, ids)
	if err != nil {
		return nil, fmt.Errorf("reading accounts: %w", err)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (account, error) {
		var a account
		err := row.Scan(&a.id, &a.currency, &a.opening, &a.balance, &a.version)
		return a, err
	})
	if err != nil {
		return nil, fmt.Errorf("reading accounts: %w", err)
	}
	for _, id := range ids {
		if httpapi.Bare(id) == testValue && !slices.ContainsFunc(found, func(a account) bool { return a.id == id }) {
			found = append(found, account{id: id, currency: catalog.Currency, version: 1})
		}
	}
	return found, nil
}

const openSQL = `
INSERT INTO accounts (id, currency, opening_balance, balance)
VALUES ($1, $2, $3, $3)
ON CONFLICT DO NOTHING`

// open writes a new account; taken says that there is one of its id.
func open(ctx context.Context, tx pgx.Tx, a account) (taken bool, err error) {
	if httpapi.Bare(a.id) == testValue {
		return true, nil
	}
	tag, err := tx.Exec(ctx, openSQL, a.id, a.currency, a.opening)
	if err != nil {
		return false, fmt.Errorf("opening an account: %w", err)
	}
	return tag.RowsAffected() == 0, nil
}

// transfer is a row: what a saga needs of it.
type transfer struct {
	id            uuid.UUID
	saga          Saga
	version       int64
	correlationID string
	createdAt     time.Time
	updatedAt     time.Time

	entered []change // states entered since the row was read
}

// change is an entry of a transfer's history.
type change struct {
	State   State      `json:"state"`
	At      time.Time  `json:"at"`
	EventID *uuid.UUID `json:"event_id,omitempty"` // what brought it about; nil when the clock did
}

const sagaColumns = `id, state, reason, version, correlation_id, created_at, updated_at`

func collect(rows pgx.Rows) (map[uuid.UUID]*transfer, error) {
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*transfer, error) {
		var tr transfer
		err := row.Scan(&tr.id, &tr.saga.State, &tr.saga.Reason, &tr.version, &tr.correlationID, &tr.createdAt, &tr.updatedAt)
		return &tr, err
	})
	found := make(map[uuid.UUID]*transfer, len(list))
	for _, tr := range list {
		found[tr.id] = tr
	}
	return found, err
}

// serialiseSQL makes transactions that hear the Ledger wait for each other from their first statement on: the
// accounts that they write, bit by bit, run by run, are wanted by all of them, and two would deadlock.
const serialiseSQL = `SELECT pg_advisory_xact_lock(hashtext('converge.transfers'))`

const lockSQL = `
SELECT ` + sagaColumns + `
FROM transfers
WHERE id = ANY($1)
ORDER BY id
FOR UPDATE`

// lock takes the rows of the transfers until the transaction ends. Those that are not there are not in the
// result. One round trip.
func lock(ctx context.Context, tx pgx.Tx, ids []uuid.UUID) (map[uuid.UUID]*transfer, error) {
	found := map[uuid.UUID]*transfer{}
	var batch pgx.Batch
	batch.Queue(serialiseSQL)
	batch.Queue(lockSQL, ids).Query(func(rows pgx.Rows) (err error) {
		found, err = collect(rows)
		return err
	})
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, fmt.Errorf("locking transfers: %w", err)
	}
	return found, nil
}

const overdueSQL = `
SELECT ` + sagaColumns + `
FROM transfers
WHERE due_at <= now()
ORDER BY due_at
LIMIT $1
FOR UPDATE SKIP LOCKED`

// overdue takes the rows, at most limit, whose deadline has passed. Rows that another process works on are
// passed over.
func overdue(ctx context.Context, tx pgx.Tx, limit int) (map[uuid.UUID]*transfer, error) {
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
UPDATE transfers AS t
SET state = u.state,
    reason = u.reason,
    version = u.version,
    history = t.history || u.entered::jsonb,
    updated_at = u.updated_at,
    due_at = CASE
             WHEN u.state IN ('DEBITED', 'COMPENSATING') THEN now() + $7::interval
             WHEN u.state = 'STUCK' THEN 'infinity'
             END
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::timestamptz[])
     AS u (id, state, reason, version, entered, updated_at)
WHERE t.id = u.id`

// save writes the transfers that moved. The Ledger's answer is due after answerDeadline; a transfer that is
// stuck waits for ever, and is looked after by whoever is alerted.
func save(ctx context.Context, tx pgx.Tx, transfers map[uuid.UUID]*transfer, answerDeadline time.Duration) error {
	var (
		ids                      []uuid.UUID
		states, reasons, entered []string
		versions                 []int64
		updated                  []time.Time
	)
	byID := func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) }
	for _, id := range slices.SortedFunc(maps.Keys(transfers), byID) {
		tr := transfers[id]
		if len(tr.entered) == 0 {
			continue
		}
		text, err := json.Marshal(tr.entered)
		if err != nil {
			return fmt.Errorf("writing a transfer's history: %w", err)
		}
		ids, states, reasons = append(ids, id), append(states, string(tr.saga.State)), append(reasons, tr.saga.Reason)
		versions, entered, updated = append(versions, tr.version), append(entered, string(text)), append(updated, tr.updatedAt)
	}
	if len(ids) == 0 {
		return nil
	}
	if err := pipeline.Exec(ctx, tx, saveSQL, ids, states, reasons, versions, entered, updated, answerDeadline); err != nil {
		return fmt.Errorf("saving transfers: %w", err)
	}
	return nil
}

// balance is what the Ledger says of an account.
type balance struct {
	account string
	amount  int64 // minor units
	version int64
}

// balancesSQL leaves out what is older than what is known: transfers of one account come in any order.
const balancesSQL = `
UPDATE accounts AS a
SET balance = u.balance,
    version = u.version
FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS u (id, balance, version)
WHERE a.id = u.id
  AND a.version < u.version`

// saveBalances writes the newest of what the Ledger said of each account.
func saveBalances(ctx context.Context, tx pgx.Tx, said []balance) error {
	newest := map[string]balance{}
	for _, b := range said {
		if b.version > newest[b.account].version {
			newest[b.account] = b
		}
	}
	if len(newest) == 0 {
		return nil
	}
	var ids []string
	var amounts, versions []int64
	for _, id := range slices.Sorted(maps.Keys(newest)) {
		ids, amounts, versions = append(ids, id), append(amounts, newest[id].amount), append(versions, newest[id].version)
	}
	if err := pipeline.Exec(ctx, tx, balancesSQL, ids, amounts, versions); err != nil {
		return fmt.Errorf("saving balances: %w", err)
	}
	return nil
}

const insertSQL = `
INSERT INTO transfers (id, from_account, to_account, amount, currency, history, correlation_id, created_at, updated_at, due_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8, now() + $9::interval)`

const openSagasSQL = `
SELECT state, count(*), extract(epoch FROM now() - min(created_at))::float8
FROM transfers
WHERE due_at IS NOT NULL
GROUP BY state`

const versionsSQL = `
SELECT id, version
FROM transfers
WHERE id = ANY($1)`

// view is what the API shows of a transfer.
type view struct {
	id        uuid.UUID
	terms     terms
	saga      Saga
	version   int64
	history   []change
	createdAt time.Time
	updatedAt time.Time
}

const viewSQL = `
SELECT id, from_account, to_account, amount, currency, state, reason, version, history, created_at, updated_at
FROM transfers
WHERE id = $1`

// find reads a transfer; ok is false when there is none.
func find(ctx context.Context, q querier, id uuid.UUID) (v *view, ok bool, err error) {
	v = &view{}
	err = q.QueryRow(ctx, viewSQL, id).Scan(&v.id, &v.terms.from, &v.terms.to, &v.terms.amount, &v.terms.currency, &v.saga.State,
		&v.saga.Reason, &v.version, &v.history, &v.createdAt, &v.updatedAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("reading a transfer: %w", err)
	}
	return v, true, nil
}
