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
		if _, ok := x.polledTable(ctx, c, name); !ok {
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
		if t, ok := x.polledTable(ctx, c, name); ok {
			x.note("index of "+name, t.checkIndex(), "begins with seq")
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
func (x *examination) polledTable(ctx context.Context, c *control, name string) (t polledTable, ok bool) {
	t, err := c.polledTable(ctx, name)
	for _, check := range []func() error{t.checkColumns, t.checkRights, t.checkSequence} {
		if err == nil {
			err = check()
		}
	}
	return t, x.note("table "+name, err, "can be read and marked, in the order of seq")
}

// checkPolledColumns has the server describe what will be read.
func (c *control) checkPolledColumns(ctx context.Context, cfg *Config, table string) error {
	shape, err := c.shape(ctx, cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	described, err := c.pg.Prepare(ctx, "", "SELECT "+shape.columnList()+" FROM "+quoteTable(table), nil)
	if sqlState(err) == stateUndefinedColumn {
		return &fatalError{err, "name outbox tables, which have the columns " + shape.columnList()}
	}
	if err != nil {
		return fmt.Errorf("looking at table %s: %w", table, err)
	}
	_, err = shape.layoutOf(relationOf(table, described.Fields))
	return err
}
