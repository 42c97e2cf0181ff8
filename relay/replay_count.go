package relay

import (
	"context"
	"fmt"
	"strconv"
)

// Counted is how many rows of a table lie in a range.
type Counted struct {
	Table string `json:"table"`
	Rows  int64  `json:"rows"`
}

// CountRows returns what [Replay] of the range would send, table by table. It talks to the database alone and
// changes nothing. It blocks for as long as counting takes: there may be no index for the range.
func CountRows(ctx context.Context, cfg Config, which Range) ([]Counted, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("configuring the relay: %w", err)
	}
	if cfg.Source == SourceMessage {
		return nil, errNoRows
	}
	c, err := openControl(ctx, cfg.DatabaseURL)
	if err != nil {
		return nil, fixed(err)
	}
	defer c.close()
	tables := cfg.Tables
	if len(tables) == 0 {
		p, err := c.publication(ctx, cfg.Publication)
		if err != nil {
			return nil, err
		}
		tables = p.tables
	}
	counted := make([]Counted, 0, len(tables))
	for _, table := range tables {
		condition, args := which.condition()
		result := c.pg.ExecParams(ctx, "SELECT count(*)\nFROM "+quoteTable(table)+condition, args, nil, nil, nil).Read()
		if result.Err != nil {
			return nil, fmt.Errorf("counting the rows of %s: %w", table, fixed(result.Err))
		}
		rows, err := strconv.ParseInt(string(result.Rows[0][0]), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("counting the rows of %s: %w", table, err)
		}
		counted = append(counted, Counted{table, rows})
	}
	return counted, nil
}

// fixed returns err with its fix if it has one, for those who do not wait and try again.
func fixed(err error) error {
	if fatal, ok := asFatal(err, false); ok {
		return fatal
	}
	return err
}
