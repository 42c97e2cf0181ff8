package relay

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

const backlogSQL = `
SELECT count(*), coalesce(extract(epoch FROM min(created_at)), 0)
FROM %s
WHERE published_at IS NULL`

// backlog is how many rows of a table are not marked, and since when the oldest waits; the zero time if none does.
func (c *control) backlog(ctx context.Context, table string) (n int64, oldest time.Time, err error) {
	rows, err := c.rows(ctx, fmt.Sprintf(backlogSQL, quoteTable(table)))
	if err != nil {
		return 0, oldest, fmt.Errorf("counting the rows of %s that wait: %w", table, err)
	}
	if n, err = strconv.ParseInt(rows[0][0], 10, 64); err != nil || n == 0 {
		return n, oldest, err
	}
	seconds, err := strconv.ParseFloat(rows[0][1], 64)
	return n, time.UnixMicro(int64(seconds * 1e6)).UTC(), err
}

// inspectPolling is Inspect for [SourcePolling].
func inspectPolling(ctx context.Context, c *control, cfg *Config) (Status, error) {
	s := Status{Source: cfg.Source, Slot: cfg.Slot, Problems: []Finding{}}
	pid, application, err := c.poller(ctx, cfg.Slot)
	if err != nil {
		return Status{}, err
	}
	s.Active, s.Reader = pid != "", application
	s.PID, _ = strconv.Atoi(pid) // "" while nobody polls
	tables, err := c.polledTables(ctx, cfg)
	if err != nil {
		return Status{}, fixed(err)
	}
	x := &examination{}
	total, first := int64(0), time.Time{}
	for _, name := range tables {
		if !x.polledTable(ctx, c, name) {
			continue
		}
		n, oldest, err := c.backlog(ctx, name)
		if err != nil {
			return Status{}, err
		}
		if total += n; n > 0 && (first.IsZero() || oldest.Before(first)) {
			first = oldest
		}
	}
	s.Backlog = &total
	if !first.IsZero() {
		s.Oldest = &first
	}
	x.note("reader", checkPolled(pid, cfg.Slot), "")
	s.add(x)
	return s, nil
}

// checkPolled returns an advice while nobody polls.
func checkPolled(pid, slot string) error {
	if pid != "" {
		return nil
	}
	return &advice{fmt.Errorf("nobody polls as %s: rows wait in their tables", slot), "start the relay, or see its log for why it does not stream"}
}

// polling examines what [SourcePolling] needs of a database.
func (x *examination) polling(ctx context.Context, c *control) {
	cfg := &x.relay.cfg
	tables, err := c.polledTables(ctx, cfg)
	if err != nil {
		x.note("tables", err, "")
		return
	}
	for _, name := range tables {
		if x.polledTable(ctx, c, name) {
			x.note("columns of "+name, c.checkPolledColumns(ctx, cfg, name), "those that the relay reads")
		}
	}
	pid, application, err := c.poller(ctx, cfg.Slot)
	if err == nil && pid != "" {
		x.note("reader", nil, "%s polls as %s (server process %s)", application, cfg.Slot, pid)
	} else {
		x.note("reader", err, "nobody polls as %s", cfg.Slot)
	}
	x.sample(ctx, c, tables)
}

// polledTable examines a table, and reports whether it can be polled.
func (x *examination) polledTable(ctx context.Context, c *control, name string) bool {
	t, err := c.polledTable(ctx, name)
	if err != nil {
		return x.note("table "+name, err, "")
	}
	for _, check := range []func() error{t.checkColumns, t.checkRights, t.checkSequence} {
		if err := check(); err != nil {
			return x.note("table "+name, err, "")
		}
	}
	x.note("table "+name, nil, "can be read and marked, in the order of seq")
	x.note("index of "+name, t.checkIndex(), "begins with seq")
	return true
}

// checkPolledColumns describes a table by an empty answer, as reading it will.
func (c *control) checkPolledColumns(ctx context.Context, cfg *Config, table string) error {
	shape, err := c.shape(ctx, cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	result := c.pg.ExecParams(ctx, "SELECT "+shape.columnList()+" FROM "+quoteTable(table)+" LIMIT 0", nil, nil, nil, nil).Read()
	if sqlState(result.Err) == stateUndefinedColumn {
		return &fatalError{result.Err, "name outbox tables, which have the columns " + shape.columnList()}
	}
	if result.Err != nil {
		return fmt.Errorf("looking at table %s: %w", table, result.Err)
	}
	_, err = shape.layoutOf(relationOf(table, result.FieldDescriptions))
	return err
}
