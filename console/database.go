package console

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// databaseSource measures what only PostgreSQL knows: slots, outbox rates, dead letters, held keys. It
// belongs to one goroutine.
type databaseSource struct {
	pool     *pgxpool.Pool
	services []string

	tables   map[string][]string // relation name to the schemas that have it
	askedAt  time.Time
	appended map[string]*meter
	orders   meter
}

// databaseSample is one look. err names parts that could not be measured; they are nil.
type databaseSample struct {
	at       time.Time
	services []Service
	slots    []Slot
	orders   *float64 // rows per second into orders.orders
	err      error
}

// tablesFor is how long the list of tables is believed: a migration adds some while the console runs.
const tablesFor = 10 * time.Second

func newDatabaseSource(pool *pgxpool.Pool, services []string) *databaseSource {
	return &databaseSource{pool: pool, services: services, appended: map[string]*meter{}}
}

// readerConfig confines the console's one connection: read only, short statements, its own name in
// pg_stat_activity.
func readerConfig(databaseURL string) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(databaseURL)
	if err != nil {
		return nil, fmt.Errorf("reading the database URL: %w", err)
	}
	cfg.MaxConns = 1
	cfg.ConnConfig.ConnectTimeout = 3 * time.Second
	for name, value := range map[string]string{
		"application_name": "converge console", "default_transaction_read_only": "on", "statement_timeout": "3000",
	} {
		cfg.ConnConfig.RuntimeParams[name] = value
	}
	return cfg, nil
}

// sample looks once.
func (d *databaseSource) sample(ctx context.Context, now func() time.Time) (*databaseSample, error) {
	conn, err := d.pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	defer conn.Release()
	if now().Sub(d.askedAt) >= tablesFor {
		if err := d.findTables(ctx, conn.Conn()); err != nil {
			return nil, err
		}
		d.askedAt = now()
	}
	s := &databaseSample{at: now()}
	var errs [4]error
	s.slots, errs[0] = slots(ctx, conn.Conn())
	outbox, err := d.outboxRates(ctx, conn.Conn(), s.at)
	errs[1] = err
	dead, err := d.count(ctx, conn.Conn(), "dead_letters", "WHERE state IN ('dead', 'redriving')")
	errs[2] = err
	held, err := d.count(ctx, conn.Conn(), "held_keys", "")
	errs[3] = err
	for _, name := range d.services {
		s.services = append(s.services, Service{Name: name, OutboxPerSecond: outbox[name], DeadLetters: dead[name], HeldKeys: held[name]})
	}
	s.orders, err = d.orderRate(ctx, conn.Conn(), s.at)
	s.err = errors.Join(append(errs[:], err)...)
	return s, nil
}

const findTables = `
SELECT n.nspname, c.relname
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = ANY($1)
   AND c.relname = ANY($2)
   AND c.relkind IN ('r', 'p', 'S')
 ORDER BY 1, 2`

func (d *databaseSource) findTables(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, findTables, d.services, []string{"dead_letters", "held_keys", "outbox_seq", "orders"})
	if err != nil {
		return fmt.Errorf("looking for tables: %w", err)
	}
	tables := map[string][]string{}
	var schema, name string
	if _, err := pgx.ForEachRow(rows, []any{&schema, &name}, func() error {
		tables[name] = append(tables[name], schema)
		return nil
	}); err != nil {
		return fmt.Errorf("looking for tables: %w", err)
	}
	d.tables = tables
	return nil
}

// The slots of this database. A slot that was lost has no restart_lsn.
const selectSlots = `
SELECT slot_name, active, coalesce(wal_status, 'unknown'),
       pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint,
       pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint,
       safe_wal_size
  FROM pg_replication_slots
 WHERE slot_type = 'logical'
   AND database = current_database()
 ORDER BY slot_name`

func slots(ctx context.Context, conn *pgx.Conn) ([]Slot, error) {
	rows, err := conn.Query(ctx, selectSlots)
	if err != nil {
		return nil, fmt.Errorf("reading replication slots: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s Slot, err error) {
		return s, row.Scan(&s.Name, &s.Active, &s.WALStatus, &s.RetainedBytes, &s.UnconfirmedBytes, &s.SafeBytes)
	})
	if err != nil {
		return nil, fmt.Errorf("reading replication slots: %w", err)
	}
	return all, nil
}

// outboxRates reads each outbox's sequence: exact, and as cheap for a full outbox as for an empty one. A
// rolled-back insert counts too.
func (d *databaseSource) outboxRates(ctx context.Context, conn *pgx.Conn, at time.Time) (map[string]*float64, error) {
	rates := map[string]*float64{}
	schemas := d.tables["outbox_seq"]
	if len(schemas) == 0 {
		return rates, nil
	}
	parts := make([]string, len(schemas))
	for i, schema := range schemas {
		parts[i] = "SELECT " + quote(schema) + ", CASE WHEN is_called THEN last_value ELSE 0 END FROM " +
			pgx.Identifier{schema, "outbox_seq"}.Sanitize()
	}
	counts, err := pairs(ctx, conn, strings.Join(parts, "\nUNION ALL\n"))
	if err != nil {
		return rates, fmt.Errorf("reading outbox sequences: %w", err)
	}
	for schema, count := range counts {
		m := entry(d.appended, schema)
		m.add(at, count)
		rates[schema] = m.perSecond()
	}
	return rates, nil
}

// count counts a table's rows in every schema that has it. Schemas without the table are absent.
func (d *databaseSource) count(ctx context.Context, conn *pgx.Conn, table, where string) (map[string]*int64, error) {
	counts := map[string]*int64{}
	schemas := d.tables[table]
	if len(schemas) == 0 {
		return counts, nil
	}
	parts := make([]string, len(schemas))
	for i, schema := range schemas {
		parts[i] = "SELECT " + quote(schema) + ", count(*) FROM " + pgx.Identifier{schema, table}.Sanitize() + " " + where
	}
	found, err := pairs(ctx, conn, strings.Join(parts, "\nUNION ALL\n"))
	if err != nil {
		return counts, fmt.Errorf("counting %s: %w", table, err)
	}
	for schema, n := range found {
		counts[schema] = &n
	}
	return counts, nil
}

const selectOrderInserts = `
SELECT n_tup_ins
  FROM pg_stat_user_tables
 WHERE schemaname = 'orders'
   AND relname = 'orders'`

// orderRate reads PostgreSQL's own statistics, which follow a commit by about a second.
func (d *databaseSource) orderRate(ctx context.Context, conn *pgx.Conn, at time.Time) (*float64, error) {
	if !slices.Contains(d.tables["orders"], "orders") {
		return nil, nil
	}
	var inserted int64
	err := conn.QueryRow(ctx, selectOrderInserts).Scan(&inserted)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading order statistics: %w", err)
	}
	d.orders.add(at, inserted)
	return d.orders.perSecond(), nil
}

func pairs(ctx context.Context, conn *pgx.Conn, query string) (map[string]int64, error) {
	rows, err := conn.Query(ctx, query)
	if err != nil {
		return nil, err
	}
	found := map[string]int64{}
	var name string
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&name, &n}, func() error {
		found[name] = n
		return nil
	})
	return found, err
}

// quote writes a schema's name as a literal. Names come from the catalogue.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'::text" }
