package main

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
)

const (
	topicName   = "bench"
	publication = "bench"
	tableName   = "bench.outbox"
	baseSlot    = "bench_base"
	// keys is the number of aggregates that the rows belong to.
	keys = 1000
)

// schemaSQL makes the outbox in the shape that the services have, the publication as the relay makes it, and the
// procedures that fill the outbox from within the server, so that the filling takes little time.
//
// Row n has the key n modulo keys and an id and a payload that follow from n; placed_at is when it was written, in
// microseconds since 1970.
const schemaSQL = `
CREATE SCHEMA bench;
CREATE SEQUENCE bench.outbox_seq;
CREATE TABLE bench.outbox (
    seq               bigint      NOT NULL DEFAULT nextval('bench.outbox_seq'),
    event_id          uuid        NOT NULL,
    topic             text        NOT NULL,
    aggregate_type    text        NOT NULL,
    aggregate_id      text        NOT NULL,
    aggregate_version bigint      NOT NULL,
    event_type        text        NOT NULL,
    content_type      text        NOT NULL,
    payload           bytea,
    headers           jsonb       NOT NULL DEFAULT '{}',
    created_at        timestamptz NOT NULL DEFAULT now(),
    published_at      timestamptz
) PARTITION BY RANGE (created_at);
CREATE TABLE bench.outbox_default PARTITION OF bench.outbox DEFAULT;

CREATE PUBLICATION bench
   FOR TABLE bench.outbox
  WITH (publish = 'insert', publish_via_partition_root = true);

CREATE PROCEDURE bench.append(first bigint, last bigint) LANGUAGE plpgsql AS $$
BEGIN
INSERT INTO bench.outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload, headers)
SELECT id, 'bench', 'order', 'order-' || n % 1000, n, 'OrderPlaced', 'application/json',
       convert_to(format('{"order_id":"%s","customer_id":"customer-%s","placed_at":%s,"currency":"EUR","lines":[{"sku":"%s","quantity":2,"price_cents":1990},{"sku":"%s","quantity":1,"price_cents":4500}],"ship_to":{"name":"%s","street":"Oudegracht 231","city":"Utrecht","country":"NL"}}',
           id, n % 1000, floor(extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
           substr(hash, 1, 12), substr(hash, 13, 12), hash), 'UTF8'),
       jsonb_build_object('correlation_id', id, 'traceparent', '00-' || hash || '-00f067aa0ba902b7-01')
  FROM generate_series(first, last) AS n,
       LATERAL (SELECT md5(n::text) AS hash) AS h,
       LATERAL (SELECT (substr(hash, 1, 20) || lpad(to_hex(n), 12, '0'))::uuid AS id) AS i;
END $$;

-- fill appends rows 1 to total in transactions of the given size.
CREATE PROCEDURE bench.fill(total bigint, per_transaction bigint) LANGUAGE plpgsql AS $$
DECLARE
    n bigint := 1;
BEGIN
    WHILE n <= total LOOP
        CALL bench.append(n, least(n + per_transaction - 1, total));
        COMMIT;
        n := n + per_transaction;
    END LOOP;
END $$;

-- steady appends rows 1 to total in transactions of one row, evenly over total / rate seconds.
CREATE PROCEDURE bench.steady(total bigint, rate double precision) LANGUAGE plpgsql AS $$
DECLARE
    began timestamptz := clock_timestamp();
    n     bigint := 0;
    due   bigint;
BEGIN
    WHILE n < total LOOP
        due := least(total, ceil(extract(epoch FROM clock_timestamp() - began) * rate)::bigint);
        WHILE n < due LOOP
            n := n + 1;
            CALL bench.append(n, n);
            COMMIT;
        END LOOP;
        PERFORM pg_sleep(0.0005);
    END LOOP;
END $$;`

// database is the connection that prepares what the contenders read.
type database struct {
	conn *pgx.Conn
	url  string
}

func openDatabase(ctx context.Context, url string) (*database, error) {
	d := &database{url: url}
	var err error
	if d.conn, err = connect(ctx, url); err != nil {
		return nil, err
	}
	if _, err := d.conn.Exec(ctx, schemaSQL); err != nil {
		return nil, fmt.Errorf("making the outbox: %w", err)
	}
	return d, nil
}

func connect(ctx context.Context, url string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("reading the database URL: %w", err)
	}
	// CALL of a procedure that commits must be a statement by itself, and is one without a transaction around it.
	cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connecting to the database: %w", err)
	}
	return conn, nil
}

func (d *database) do(ctx context.Context, act, sql string, args ...any) error {
	if _, err := d.conn.Exec(ctx, sql, args...); err != nil {
		return fmt.Errorf("%s: %w", act, err)
	}
	return nil
}

// empty removes all rows; what the slots that are gone held back goes with the checkpoint.
func (d *database) empty(ctx context.Context) error {
	return d.do(ctx, "emptying the outbox", "TRUNCATE bench.outbox; CHECKPOINT")
}

// fill leaves a backlog behind a new base slot and returns where it ends.
func (d *database) fill(ctx context.Context, rows, perTransaction int) (end string, err error) {
	if err := d.empty(ctx); err != nil {
		return "", err
	}
	if err := d.createSlot(ctx, baseSlot); err != nil {
		return "", err
	}
	if err := d.do(ctx, "filling the outbox", "SET synchronous_commit = off"); err != nil {
		return "", err
	}
	if err := d.do(ctx, "filling the outbox", "CALL bench.fill($1, $2)", rows, perTransaction); err != nil {
		return "", err
	}
	// The checkpoint also writes the WAL that the last commits left behind.
	if err := d.do(ctx, "filling the outbox", "RESET synchronous_commit; CHECKPOINT"); err != nil {
		return "", err
	}
	err = d.conn.QueryRow(ctx, "SELECT pg_current_wal_flush_lsn()::text").Scan(&end)
	if err != nil {
		return "", fmt.Errorf("reading the position of the backlog's end: %w", err)
	}
	return end, nil
}

func (d *database) createSlot(ctx context.Context, name string) error {
	return d.do(ctx, "making slot "+name, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", name)
}

// copySlot makes a slot that stands where the base slot does.
func (d *database) copySlot(ctx context.Context, name string) error {
	return d.do(ctx, "copying the slot", "SELECT pg_copy_logical_replication_slot($1, $2)", baseSlot, name)
}

// dropSlot waits for the slot's reader to be gone, and removes the slot. A slot that is not there is as good.
func (d *database) dropSlot(ctx context.Context, name string) error {
	return until(ctx, "slot "+name+" is free", func() (bool, error) {
		var active bool
		err := d.conn.QueryRow(ctx, "SELECT coalesce(bool_or(active), false) FROM pg_replication_slots WHERE slot_name = $1", name).Scan(&active)
		if err != nil || active {
			return false, err
		}
		return true, d.do(ctx, "dropping slot "+name,
			"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1", name)
	})
}

// rowOf returns the number of the row that an id belongs to, 0 if it is no row's.
func rowOf(id string) int {
	raw, err := hex.DecodeString(id[:min(len(id), 8)])
	if err != nil || len(id) != 36 || len(raw) != 4 {
		return 0
	}
	tail, err := hex.DecodeString(id[24:])
	if err != nil {
		return 0
	}
	n := int(binary.BigEndian.Uint64(append([]byte{0, 0}, tail...)))
	if idOf(n) != id {
		return 0
	}
	return n
}

// keyOf returns a row's key.
func keyOf(n int) string { return "order-" + strconv.Itoa(n%keys) }
