package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
)

// pollingSettingsSQL lets the server notice within half a minute that a relay is gone without a word, so that it
// gives the lock free.
const pollingSettingsSQL = `
SET tcp_keepalives_idle = 10;
SET tcp_keepalives_interval = 5;
SET tcp_keepalives_count = 3;
SET jit = off`

// lockKeySQL is the lock of a slot's name, which a session holds while it polls.
const lockKeySQL = `hashtextextended('converge relay ' || $1, 0)`

const (
	lockSQL   = `SELECT pg_try_advisory_lock(` + lockKeySQL + `)`
	lockedSQL = `
SELECT l.pid, coalesce(a.application_name, '')
FROM pg_locks l
CROSS JOIN (SELECT ` + lockKeySQL + ` AS key) AS k
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory'
  AND l.granted
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.classid::bigint = (k.key >> 32) & 4294967295
  AND l.objid::bigint = k.key & 4294967295
  AND l.objsubid = 1`
)

// lockPolling takes the lock for as long as the connection lives. A *standbyError says that another has it.
func (c *control) lockPolling(ctx context.Context, slot string) error {
	rows, err := c.rows(ctx, lockSQL, slot)
	if err != nil {
		return fmt.Errorf("taking the lock of %s: %w", slot, err)
	}
	if rows[0][0] == yes {
		return nil
	}
	pid, _, err := c.poller(ctx, slot)
	if err != nil {
		return err
	}
	return &standbyError{slot: slot, pid: pid, polls: true}
}

// poller returns the server process of the relay that polls, and what it calls itself; "" when none does.
func (c *control) poller(ctx context.Context, slot string) (pid, application string, err error) {
	rows, err := c.rows(ctx, lockedSQL, slot)
	if err != nil {
		return "", "", fmt.Errorf("looking who has the lock of %s: %w", slot, err)
	}
	if len(rows) == 0 {
		return "", "", nil
	}
	return rows[0][0], rows[0][1], nil
}

// preparePolling is what prepare is to a slot. It returns the tables to poll.
func (r *Relay) preparePolling(ctx context.Context, c *control) (tables []string, err error) {
	s, err := c.server(ctx)
	if err != nil {
		return nil, err
	}
	for _, check := range []func() error{s.checkPrimary, s.checkVersion} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	if tables, err = c.polledTables(ctx, &r.cfg); err != nil {
		return nil, err
	}
	for _, name := range tables {
		t, err := c.polledTable(ctx, name)
		if err != nil {
			return nil, err
		}
		for _, check := range []func() error{t.checkColumns, t.checkRights, t.checkSequence} {
			if err := check(); err != nil {
				return nil, err
			}
		}
		if err := t.checkIndex(); err != nil && !r.hasStreamed {
			r.log.Warn("each look at the table reads all of it", slog.String(keyTable, name), slog.Any(keyError, err))
		}
	}
	return tables, nil
}

// polledTables are those of the configuration, or of the publication if there is one.
func (c *control) polledTables(ctx context.Context, cfg *Config) ([]string, error) {
	if len(cfg.Tables) > 0 {
		return cfg.Tables, nil
	}
	p, err := c.publication(ctx, cfg.Publication)
	if err != nil {
		return nil, err
	}
	if len(p.tables) == 0 {
		return nil, &fatalError{errors.New("no table to poll"), "name the outbox tables"}
	}
	return p.tables, nil
}

// polledTable is one look at a table to poll.
type polledTable struct {
	name              string
	exists            bool
	seqType, markType string // "" without the column
	mayRead, mayMark  bool
	indexed           bool // an index begins with seq
	cache             int  // numbers that a session takes at a time from the sequence behind seq
	sequence          string
}

const polledTableSQL = `
SELECT coalesce(format_type(seq.atttypid, NULL), ''),
       coalesce(format_type(mark.atttypid, NULL), ''),
       has_table_privilege(t.oid, 'SELECT'),
       coalesce(has_column_privilege(t.oid, mark.attnum, 'UPDATE'), false),
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = t.oid AND i.indkey[0] = seq.attnum AND i.indisvalid),
       coalesce(s.seqcache, 1),
       coalesce(s.seqrelid::regclass::text, '')
FROM pg_class t
LEFT JOIN pg_attribute seq ON seq.attrelid = t.oid AND seq.attname = 'seq' AND NOT seq.attisdropped
LEFT JOIN pg_attribute mark ON mark.attrelid = t.oid AND mark.attname = 'published_at' AND NOT mark.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = t.oid AND d.adnum = seq.attnum
LEFT JOIN pg_depend x ON x.classid = 'pg_attrdef'::regclass AND x.objid = d.oid AND x.refclassid = 'pg_class'::regclass AND x.refobjid <> t.oid
                      OR x.refclassid = 'pg_class'::regclass AND x.refobjid = t.oid AND x.refobjsubid = seq.attnum AND x.classid = 'pg_class'::regclass AND x.deptype = 'i'
LEFT JOIN pg_sequence s ON s.seqrelid IN (x.refobjid, x.objid)
WHERE t.oid = to_regclass($1)
ORDER BY s.seqcache DESC NULLS LAST
LIMIT 1`

func (c *control) polledTable(ctx context.Context, name string) (t polledTable, err error) {
	t.name = name
	rows, err := c.rows(ctx, polledTableSQL, quoteTable(name))
	if err != nil {
		return t, fmt.Errorf("looking at table %s: %w", name, err)
	}
	if len(rows) == 0 {
		return t, nil
	}
	row := rows[0]
	t.exists, t.seqType, t.markType, t.mayRead, t.mayMark, t.indexed, t.sequence = true, row[0], row[1], row[2] == yes, row[3] == yes, row[4] == yes, row[6]
	if t.cache, err = strconv.Atoi(row[5]); err != nil {
		return t, fmt.Errorf("looking at table %s: %w", name, err)
	}
	return t, nil
}

func (t polledTable) checkColumns() error {
	alter := "ALTER TABLE " + quoteTable(t.name)
	switch {
	case !t.exists:
		return &fatalError{fmt.Errorf("table %s does not exist", t.name), "name outbox tables that exist"}
	case t.seqType != "bigint":
		return &fatalError{fmt.Errorf("%s has no column seq of type bigint, the order of insertion", t.name),
			alter + " ADD seq bigint GENERATED ALWAYS AS IDENTITY"}
	case t.markType != "timestamp with time zone":
		return &fatalError{fmt.Errorf("%s has no column published_at of type timestamptz, which polling sets", t.name),
			alter + " ADD published_at timestamptz"}
	}
	return nil
}

func (t polledTable) checkRights() error {
	var lacks []string
	if !t.mayRead {
		lacks = append(lacks, "SELECT")
	}
	if !t.mayMark {
		lacks = append(lacks, "UPDATE (published_at)")
	}
	if len(lacks) == 0 {
		return nil
	}
	rights := strings.Join(lacks, ", ")
	return &fatalError{fmt.Errorf("the role has no %s on %s", rights, t.name), "GRANT " + rights + " ON " + quoteTable(t.name) + " TO the relay's role"}
}

// checkSequence: sessions that take numbers ahead use them later, out of the order of commits.
func (t polledTable) checkSequence() error {
	if t.cache > 1 {
		return &fatalError{fmt.Errorf("sequence %s hands out %d numbers at a time, so that seq of %s is no order", t.sequence, t.cache, t.name),
			"ALTER SEQUENCE " + t.sequence + " CACHE 1"}
	}
	return nil
}

// checkIndex returns an advice.
func (t polledTable) checkIndex() error {
	if t.indexed {
		return nil
	}
	return &advice{fmt.Errorf("%s has no index that begins with seq", t.name),
		"CREATE INDEX ON " + quoteTable(t.name) + " (seq) WHERE published_at IS NULL"}
}
