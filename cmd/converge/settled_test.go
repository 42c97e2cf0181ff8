package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/schemas"
)

// claims are what must hold once every event has arrived: each statement returns what contradicts it.
var claims = []struct{ claim, sql string }{
	{"every order has ended", `
SELECT format('order %s is %s', id, state)
FROM orders.orders
WHERE state NOT IN ('COMPLETED', 'FAILED')`},

	{"stock is conserved: reserved is what completed orders bought, and nothing appeared or went", `
WITH sold AS (
    SELECT item->>'sku' AS sku, sum((item->>'quantity')::bigint) AS pieces
    FROM orders.orders, jsonb_array_elements(items) AS item
    WHERE state = 'COMPLETED'
    GROUP BY 1)
SELECT format('%s: %s available, %s reserved, %s sold', sku, available, reserved, coalesce(pieces, 0))
FROM inventory.stock
LEFT JOIN sold USING (sku)
WHERE reserved <> coalesce(pieces, 0)
   OR available + reserved <> CASE sku WHEN 'RARE-1' THEN 1 ELSE 100000000 END`},

	{"a completed order has its pieces, and no other has", `
SELECT format('order %s is %s, its reservation %s', coalesce(o.id::text, r.order_id), o.state, r.state)
FROM orders.orders o
FULL JOIN inventory.reservations r ON r.order_id = o.id::text
WHERE coalesce(o.state = 'COMPLETED', false) <> coalesce(r.state = 'RESERVED', false)
   OR o.id IS NULL`},

	{"money is conserved: a completed order is paid once, in full, and no other is", `
SELECT format('order %s is %s over %s, its payment %s over %s', coalesce(o.id::text, p.order_id), o.state, o.total_amount, p.state, p.amount)
FROM orders.orders o
FULL JOIN payments.payments p ON p.order_id = o.id::text
WHERE coalesce(o.state = 'COMPLETED', false) <> coalesce(p.state = 'AUTHORIZED' AND p.amount = o.total_amount, false)
   OR p.state = 'PENDING'
   OR o.id IS NULL`},

	{"a completed order is on its way, and no other is", `
SELECT format('order %s is %s, its shipment %s', coalesce(o.id::text, s.order_id), o.state, s.state)
FROM orders.orders o
FULL JOIN shipping.shipments s ON s.order_id = o.id::text
WHERE coalesce(o.state = 'COMPLETED', false) <> coalesce(s.state = 'ARRANGED', false)
   OR o.id IS NULL`},

	{"the read model shows every order as it is", `
SELECT format('order %s is %s over %s, its view %s over %s', coalesce(o.id::text, v.id), o.state, o.total_amount, v.state, v.total_amount)
FROM orders.orders o
FULL JOIN orderviews.order_views v ON v.id = o.id::text
WHERE (o.state, o.total_amount) IS DISTINCT FROM (v.state, v.total_amount)`},

	{"no effect happened twice: what an order or a transfer needs once was said once", `
SELECT format('%s of %s: %s times', event_type, aggregate_id, count(*))
FROM (SELECT * FROM orders.outbox
      UNION ALL SELECT * FROM inventory.outbox
      UNION ALL SELECT * FROM payments.outbox
      UNION ALL SELECT * FROM shipping.outbox
      UNION ALL SELECT * FROM transfers.outbox
      UNION ALL SELECT * FROM ledger.outbox) AS said
WHERE event_type IN ('OrderPlaced', 'StockReserved', 'PaymentAuthorized', 'ShipmentArranged')
   OR event_type LIKE 'Transfer%'
GROUP BY event_type, aggregate_id
HAVING count(*) > 1`},

	{"no try was burned: nothing was held, sent round the retry topics, or given up", tries()},

	{"every transfer has ended", `
SELECT format('transfer %s is %s', id, state)
FROM transfers.transfers
WHERE state NOT IN ('COMPLETED', 'FAILED')`},

	{"a completed transfer was debited and credited, a failed one given back or never taken, and the Ledger knows no other", `
SELECT format('transfer %s is %s, its entries are %s', coalesce(t.id::text, e.reference), t.state, e.kinds)
FROM transfers.transfers t
FULL JOIN (SELECT reference, string_agg(kind, ', ' ORDER BY kind) AS kinds
           FROM ledger.entries
           WHERE kind <> 'opening'
           GROUP BY reference) AS e ON e.reference = t.id::text
WHERE t.id IS NULL
   OR CASE t.state
      WHEN 'COMPLETED' THEN e.kinds IS DISTINCT FROM 'credit, debit'
      WHEN 'FAILED' THEN coalesce(e.kinds, 'debit, refund') <> 'debit, refund'
      ELSE false
      END`},

	{"the books balance: what accounts hold is what was posted to them, and of each currency it is nothing in all", `
SELECT format('%s has %s, its postings say %s', id, balance, coalesce(sum(amount), 0))
FROM ledger.accounts
LEFT JOIN ledger.postings ON account_id = id
GROUP BY id
HAVING balance <> coalesce(sum(amount), 0)
UNION ALL
SELECT format('all %s is %s', currency, sum(balance))
FROM ledger.accounts
GROUP BY currency
HAVING sum(balance) <> 0`},

	{"the balances that are shown are the Ledger's", `
SELECT format('%s has %s at %s, by the Ledger %s at %s', id, a.balance, a.version, b.balance, b.version)
FROM transfers.accounts a
FULL JOIN (SELECT * FROM ledger.accounts WHERE id NOT LIKE '(%') AS b USING (id)
WHERE (a.balance, a.version) IS DISTINCT FROM (b.balance, b.version)`},
}

// transfersBegin is where the claims about transfers begin; the first is that they have ended.
const transfersBegin = 8

// tries is a statement that finds what any service held, called again or gave up.
func tries() string {
	var all []string
	for _, name := range schemas.Readers() {
		for table, why := range map[string]string{
			"held_keys":    "key FROM %[1]s.held_keys",
			"dead_letters": "error FROM %[1]s.dead_letters",
			"outbox":       "topic || ' ' || headers FROM %[1]s.outbox WHERE topic LIKE '%%.retry.%%' OR topic LIKE '%%.dlq'",
		} {
			all = append(all, fmt.Sprintf("SELECT '%[1]s."+table+": ' || "+why, name))
		}
	}
	return strings.Join(all, " UNION ALL ")
}

// inboxSQL finds the events that a service should have taken on once and did not. %[1]s is the service,
// %[2]s the union of what was emitted.
const inboxSQL = `
WITH emitted AS (%[2]s),
taken AS (
    SELECT event_id, count(*) AS times
    FROM %[1]s.inbox
    WHERE consumer = '%[1]s'
    GROUP BY event_id)
SELECT format('%%s %%s: %%s times', e.event_type, coalesce(e.event_id, t.event_id), coalesce(t.times, 0))
FROM (SELECT * FROM emitted WHERE event_type = ANY($1)) AS e
FULL JOIN taken AS t USING (event_id)
WHERE e.event_id IS NULL
   OR t.times IS DISTINCT FROM 1`

// querier is a connection or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// contradiction returns what contradicts the claim, nil when nothing does.
func contradiction(ctx context.Context, db querier, claim, sql string, args ...any) error {
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return err
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return fmt.Errorf("%w: %s; but %d are otherwise: %q", errContradicted, claim, len(found), found[:min(len(found), 5)])
	}
	return nil
}

var errContradicted = errors.New("a claim does not hold")

// missed returns what contradicts that the service took on every event that is for it, once.
func missed(ctx context.Context, db querier, service string) error {
	var outboxes []string
	for _, name := range serviceNames() {
		outboxes = append(outboxes, "SELECT event_id, event_type FROM "+name+".outbox")
	}
	_, types := schemas.ReadBy(service)
	return contradiction(ctx, db, service+" took on every event that is for it, once",
		fmt.Sprintf(inboxSQL, service, strings.Join(outboxes, " UNION ALL ")), types)
}

// settled waits until every order and every transfer has ended and every event has arrived, and fails the test for what then
// contradicts a claim.
func (a *apart) settled(orders, transfers int) {
	a.t.Helper()
	ctx := a.t.Context()
	conn, err := pgx.Connect(ctx, a.postgres.URL())
	if err != nil {
		a.t.Fatal(err)
	}
	defer conn.Close(ctx)
	for _, ended := range []int{0, transfersBegin} {
		eventually(a.t, 120*time.Second, func() error { return contradiction(ctx, conn, claims[ended].claim, claims[ended].sql) })
	}
	for _, name := range schemas.Readers() {
		eventually(a.t, 60*time.Second, func() error { return missed(ctx, conn, name) })
	}
	for _, c := range claims {
		if err := contradiction(ctx, conn, c.claim, c.sql); err != nil {
			a.t.Error(err)
		}
	}
	for table, accepted := range map[string]int{"orders.orders": orders, "transfers.transfers": transfers} {
		var kept int
		if err := conn.QueryRow(ctx, "SELECT count(*) FROM "+table).Scan(&kept); err != nil || kept != accepted {
			a.t.Errorf("%s has %d rows (%v), want the %d that were accepted", table, kept, err, accepted)
		}
	}
	a.topicsAreEmpty()
}

// topicsAreEmpty fails the test when a record is on a retry topic or a dead-letter topic.
func (a *apart) topicsAreEmpty() {
	a.t.Helper()
	admin, err := kadm.NewOptClient(kgo.SeedBrokers(strings.Split(a.kafka.Brokers(), ",")...))
	if err != nil {
		a.t.Fatal(err)
	}
	defer admin.Close()
	ctx, cancel := context.WithTimeout(a.t.Context(), 20*time.Second)
	defer cancel()
	ends, err := admin.ListEndOffsets(ctx, topicsOf(serviceNames())...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		a.t.Fatal(err)
	}
	some := false
	ends.Each(func(end kadm.ListedOffset) {
		aside := strings.Contains(end.Topic, ".retry.") || strings.HasSuffix(end.Topic, ".dlq")
		if aside && end.Offset > 0 {
			a.t.Errorf("topic %s has %d records in partition %d, want none", end.Topic, end.Offset, end.Partition)
		}
		some = some || !aside && end.Offset > 0
	})
	if !some {
		a.t.Error("no event topic has a record: this looked at the wrong place")
	}
}

// endedByTheirCards fails the test for an order that ended otherwise than its card and its address say.
func (a *apart) endedByTheirCards(ids map[string]string) {
	a.t.Helper()
	ctx := a.t.Context()
	conn, err := pgx.Connect(ctx, a.postgres.URL())
	if err != nil {
		a.t.Fatal(err)
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, `
SELECT id::text,
       outcome,
       CASE WHEN payment_method = 'card-declined' THEN 'payment_declined'
            WHEN ship_country = 'AQ' THEN 'shipment_refused'
            ELSE 'completed'
       END
FROM orders.orders`)
	if err != nil {
		a.t.Fatal(err)
	}
	outcomes := map[string]bool{}
	var id, got, want string
	if _, err := pgx.ForEachRow(rows, []any{&id, &got, &want}, func() error {
		outcomes[id] = true
		if got != want {
			a.t.Errorf("order %s ended %s, want %s", id, got, want)
		}
		return nil
	}); err != nil {
		a.t.Fatal(err)
	}
	for key, id := range ids {
		if !outcomes[id] {
			a.t.Errorf("order %s (%s) was accepted and is not there", id, key)
		}
	}
}

// The claims are worth what they catch: each planted fault must contradict the claims named, by the number
// of each, and the inbox check when it is about an event.
func TestPlantedFaultsContradictTheClaimsAboutTheEnd(t *testing.T) {
	ctx := t.Context()
	url := pgtest.Database(t, "claims", func(ctx context.Context, url string) error { return database.Migrate(ctx, url, modules(services())...) })
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	const (
		order = `INSERT INTO orders.orders (id, customer_id, items, total_amount, currency, payment_method, ship_country, history,
		                correlation_id, created_at, updated_at, due_at, state, outcome)
		         VALUES ('0197a1b2-0000-7000-8000-000000000001', 'c', '[{"sku":"BOOK-1","quantity":2}]', 10, 'USD', 'card-ok', 'DE', '[]', '', now(), now(), `
		transfer = `INSERT INTO transfers.transfers (id, from_account, to_account, amount, currency, history, correlation_id, created_at, updated_at, due_at, state)
		            VALUES ('0197a1b2-0000-7000-8000-000000000001', 'a', 'b', 1, 'USD', '[]', '', now(), now(), `
		emit = `INSERT INTO orders.outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload)
		        SELECT gen_random_uuid(), 'orders', 'order', 'o', 1, 'OrderPlaced', 'application/json', '{}' FROM generate_series(1, %d)`
	)
	for name, plant := range map[string]struct {
		sql        string
		contradict []int
		events     bool
	}{
		"nothing":                       {"SELECT", nil, false},
		"an order that is open":         {order + "now(), 'PENDING', '')", []int{0, 5}, false},
		"a completed order that is all": {order + "NULL, 'COMPLETED', 'completed')", []int{1, 2, 3, 4, 5}, false},
		"a piece that went":             {"UPDATE inventory.stock SET available = available - 1 WHERE sku = 'MUG-1'", []int{1}, false},
		"a piece that nobody bought":    {"UPDATE inventory.stock SET available = available - 1, reserved = reserved + 1 WHERE sku = 'MUG-1'", []int{1}, false},
		"a reservation without order":   {"INSERT INTO inventory.reservations (order_id) VALUES ('o')", []int{2}, false},
		"money taken for no order": {"INSERT INTO payments.payments (id, order_id, saga, state, amount) VALUES (gen_random_uuid(), 'o', true, 'AUTHORIZED', 1)",
			[]int{3}, false},
		"a shipment of no order":  {"INSERT INTO shipping.shipments (order_id, state, shipment_id) VALUES ('o', 'ARRANGED', gen_random_uuid())", []int{4}, false},
		"a view of no order":      {"INSERT INTO orderviews.order_views VALUES ('o', 'c', 'COMPLETED', 1, 'USD', 1, now(), now())", []int{5}, false},
		"an order placed twice":   {fmt.Sprintf(emit, 2), []int{6}, true},
		"an event nobody took on": {fmt.Sprintf(emit, 1), nil, true},
		"an event from nowhere":   {"INSERT INTO inventory.inbox VALUES ('inventory', gen_random_uuid(), '2026-01-01')", nil, true},
		"an event taken on twice": {fmt.Sprintf(emit, 1) + "; INSERT INTO inventory.inbox SELECT 'inventory', event_id, day FROM orders.outbox, (VALUES ('2026-01-01'::date), ('2026-01-02')) AS v (day)",
			nil, true},
		"a key that is held": {"INSERT INTO billing.held_keys (consumer, topic, key, token, attempt, state, due_at) VALUES ('billing', 'identity', 'k', 1, 1, 'waiting', now())",
			[]int{7}, false},
		"a wake-up": {"INSERT INTO billing.outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type) VALUES (gen_random_uuid(), 'identity.billing.retry.1s', '', '', 1, '', '')",
			[]int{7}, false},
		"a transfer that is open":          {transfer + "now(), 'PENDING')", []int{8}, false},
		"a completed transfer that is all": {transfer + "NULL, 'COMPLETED')", []int{9}, false},
		"an entry of no transfer": {"INSERT INTO ledger.accounts (id, currency) VALUES ('b', 'USD'); INSERT INTO ledger.entries VALUES ('t', 'debit', 'closed', 'b', 1)",
			[]int{9, 10, 11}, false},
		"money from nowhere":         {"UPDATE ledger.accounts SET balance = 5 WHERE id = 'closed'", []int{10, 11}, false},
		"a balance that nobody told": {"UPDATE transfers.accounts SET balance = 5 WHERE id = 'closed'", []int{11}, false},
		"a transfer debited twice": {`INSERT INTO ledger.outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type)
			SELECT gen_random_uuid(), 'ledger', 'booking', 't', 1, 'TransferDebited', '' FROM generate_series(1, 2)`, []int{6}, false},
	} {
		t.Run(name, func(t *testing.T) {
			tx, err := conn.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(ctx) }()
			for sql := range strings.SplitSeq(plant.sql, ";") {
				if _, err := tx.Exec(ctx, sql); err != nil {
					t.Fatal(err)
				}
			}
			var contradicted []int
			for i, c := range claims {
				if err := contradiction(ctx, tx, c.claim, c.sql); errors.Is(err, errContradicted) {
					contradicted = append(contradicted, i)
				} else if err != nil {
					t.Fatal(err)
				}
			}
			if fmt.Sprint(contradicted) != fmt.Sprint(plant.contradict) {
				t.Errorf("claims %v are contradicted, want %v", contradicted, plant.contradict)
			}
			if err := missed(ctx, tx, "inventory"); errors.Is(err, errContradicted) != plant.events {
				t.Errorf("the inbox: %v, want a contradiction: %t", err, plant.events)
			}
		})
	}
}
