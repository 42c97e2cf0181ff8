package ledger

import (
	"context"
	"embed"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"

	"converge/internal/pipeline"
)

// Migrations creates the accounts and the entries in the schema that search_path names first.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// transfer is the row of one transfer.
type transfer struct {
	state   State
	terms   Terms
	version int64
	changed bool
}

// opening is an account to be opened, unless it is.
type opening struct {
	id       string
	currency string
	balance  int64 // minor units
}

// serialiseSQL makes transactions that move money wait for each other from their first statement on. The row
// of the clearing account, which every transfer wants, would do that anyway, but only after each had taken
// others, in an order that depends on its events: two batches would deadlock.
const serialiseSQL = `SELECT pg_advisory_xact_lock(hashtext('converge.ledger'))`

const ownSQL = `
INSERT INTO accounts (id, currency)
SELECT own.prefix || c, c
FROM unnest($1::text[]) AS c, unnest($2::text[]) AS own (prefix)
ON CONFLICT DO NOTHING`

// openSQL opens the accounts that are not there, and enters what they begin with. An account named closed is the
// test value: it refuses, whichever tenant's it is.
const openSQL = `
WITH opened AS (
    INSERT INTO accounts (id, currency, balance, closed)
    SELECT u.id, u.currency, u.balance, u.id LIKE '%/closed'
    FROM unnest($1::text[], $2::text[], $3::bigint[]) AS u (id, currency, balance)
    ON CONFLICT DO NOTHING
    RETURNING id, currency, balance),
entered AS (
    INSERT INTO entries (reference, kind, from_account, to_account, amount)
    SELECT id, 'opening', $4 || currency, id, balance
    FROM opened
    WHERE balance > 0)
UPDATE accounts AS a
SET balance = a.balance - o.balance,
    version = a.version + o.entries
FROM (SELECT $4 || currency AS id, sum(balance)::bigint AS balance, count(*) AS entries
      FROM opened
      WHERE balance > 0
      GROUP BY currency) AS o
WHERE a.id = o.id`

const touchSQL = `
INSERT INTO transfers (transfer_id)
SELECT u
FROM unnest($1::text[]) AS u
ORDER BY u
ON CONFLICT DO NOTHING`

const lockTransfersSQL = `
SELECT transfer_id, state, from_account, to_account, amount, currency, version
FROM transfers
WHERE transfer_id = ANY($1)
ORDER BY transfer_id
FOR UPDATE`

const lockAccountsSQL = `
SELECT id, currency, balance, closed, version
FROM accounts
WHERE id IN (SELECT unnest($2::text[])
             UNION
             SELECT unnest(ARRAY[from_account, to_account, $3 || currency])
             FROM transfers
             WHERE transfer_id = ANY($1))
ORDER BY id
FOR UPDATE`

// lock opens the accounts that are to be, and takes the rows of the transfers, making those that are not
// there, and of every account that they or the ids name, until the transaction ends. One round trip.
func lock(ctx context.Context, tx pgx.Tx, openings []opening, transferIDs, accountIDs []string) (map[string]*transfer, Book, error) {
	var ids, currencies []string
	var balances []int64
	for _, o := range openings {
		ids, currencies, balances = append(ids, o.id), append(currencies, o.currency), append(balances, o.balance)
	}
	rows, book := map[string]*transfer{}, Book{}
	var batch pgx.Batch
	batch.Queue(serialiseSQL)
	if len(openings) > 0 {
		batch.Queue(ownSQL, currencies, []string{equity, clearing})
		batch.Queue(openSQL, ids, currencies, balances, equity)
	}
	if len(transferIDs) > 0 {
		batch.Queue(touchSQL, transferIDs)
		batch.Queue(lockTransfersSQL, transferIDs).Query(func(found pgx.Rows) error {
			var id string
			var t transfer
			_, err := pgx.ForEachRow(found, []any{&id, &t.state, &t.terms.From, &t.terms.To, &t.terms.Amount, &t.terms.Currency, &t.version}, func() error {
				row := t
				rows[id] = &row
				return nil
			})
			return err
		})
		batch.Queue(lockAccountsSQL, transferIDs, accountIDs, clearing).Query(func(found pgx.Rows) error {
			var id string
			var a Account
			_, err := pgx.ForEachRow(found, []any{&id, &a.Currency, &a.Balance, &a.Closed, &a.Version}, func() error {
				book[id] = a
				return nil
			})
			return err
		})
	}
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, nil, fmt.Errorf("locking accounts: %w", err)
	}
	return rows, book, nil
}

const saveTransfersSQL = `
UPDATE transfers AS t
SET state = u.state,
    from_account = u.from_account,
    to_account = u.to_account,
    amount = u.amount,
    currency = u.currency,
    version = u.version,
    updated_at = now()
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::bigint[])
     AS u (transfer_id, state, from_account, to_account, amount, currency, version)
WHERE t.transfer_id = u.transfer_id`

// enterSQL meets its constraints when the rules would move a transfer's money twice: then nothing commits.
const enterSQL = `
INSERT INTO entries (reference, kind, from_account, to_account, amount)
SELECT *
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[])`

const moveSQL = `
UPDATE accounts AS a
SET balance = a.balance + u.moved,
    version = a.version + u.entries
FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS u (id, moved, entries)
WHERE a.id = u.id`

// entered is an entry with the transfer that it is for.
type entered struct {
	transferID string
	Entry
}

// save writes the transfers that changed, the entries, and what before and after differ by.
func save(ctx context.Context, tx pgx.Tx, rows map[string]*transfer, entries []entered, before, after Book) error {
	var batch pgx.Batch
	queueTransfers(&batch, rows)
	var references, kinds, froms, tos []string
	var amounts []int64
	for _, e := range entries {
		references, kinds, froms = append(references, e.transferID), append(kinds, e.Kind), append(froms, e.From)
		tos, amounts = append(tos, e.To), append(amounts, e.Amount)
	}
	if len(entries) > 0 {
		var ids []string
		var moved, counts []int64
		for _, id := range slices.Sorted(maps.Keys(after)) {
			if n := after[id].Version - before[id].Version; n > 0 {
				ids, moved, counts = append(ids, id), append(moved, after[id].Balance-before[id].Balance), append(counts, n)
			}
		}
		batch.Queue(enterSQL, references, kinds, froms, tos, amounts)
		batch.Queue(moveSQL, ids, moved, counts)
	}
	if err := pipeline.Send(ctx, tx, &batch); err != nil {
		return fmt.Errorf("entering transfers: %w", err)
	}
	return nil
}

func queueTransfers(batch *pgx.Batch, rows map[string]*transfer) {
	var ids, states, froms, tos, currencies []string
	var amounts, versions []int64
	for _, id := range slices.Sorted(maps.Keys(rows)) {
		t := rows[id]
		if !t.changed {
			continue
		}
		ids, states, versions = append(ids, id), append(states, string(t.state)), append(versions, t.version)
		froms, tos = append(froms, t.terms.From), append(tos, t.terms.To)
		amounts, currencies = append(amounts, t.terms.Amount), append(currencies, t.terms.Currency)
	}
	batch.Queue(saveTransfersSQL, ids, states, froms, tos, amounts, currencies, versions)
}
