package relay

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

const publicationSQL = `
SELECT pubinsert, pubupdate OR pubdelete OR pubtruncate, pubviaroot
FROM pg_publication
WHERE pubname = $1`

const publicationTablesSQL = `
SELECT schemaname || '.' || tablename
FROM pg_publication_tables
WHERE pubname = $1
ORDER BY 1`

// publicationState is one look at the publication.
type publicationState struct {
	name                   string
	exists                 bool
	inserts, more, viaRoot bool // what it publishes
	tables                 []string
}

func (c *control) publication(ctx context.Context, name string) (p publicationState, err error) {
	p.name = name
	rows, err := c.rows(ctx, publicationSQL, name)
	if err != nil {
		return p, fmt.Errorf("looking up publication %s: %w", name, err)
	}
	if len(rows) == 0 {
		return p, nil
	}
	p.exists, p.inserts, p.more, p.viaRoot = true, rows[0][0] == yes, rows[0][1] == yes, rows[0][2] == yes
	if rows, err = c.rows(ctx, publicationTablesSQL, name); err != nil {
		return p, fmt.Errorf("listing the tables of publication %s: %w", name, err)
	}
	for _, row := range rows {
		p.tables = append(p.tables, row[0])
	}
	return p, nil
}

func (p publicationState) checkExists(cfg *Config, version int) error {
	if p.exists {
		return nil
	}
	return &fatalError{fmt.Errorf("publication %s does not exist", p.name),
		"before the slot is made: " + cfg.publicationSQL(version)}
}

func (p publicationState) set(problem, option string) error {
	return &fatalError{fmt.Errorf("publication %s %s", p.name, problem),
		"ALTER PUBLICATION " + quoteIdentifier(p.name) + " SET (" + option + ")"}
}

func (p publicationState) checkInserts() error {
	switch {
	case !p.inserts:
		return p.set("does not publish inserts", "publish = 'insert'")
	case p.more:
		return p.set("publishes more than inserts, so that updates of the outbox fail or are sent for nothing", "publish = 'insert'")
	}
	return nil
}

func (p publicationState) checkRoot() error {
	if !p.viaRoot {
		return p.set("publishes partitions under their own names", "publish_via_partition_root = true")
	}
	return nil
}

// checkTables holds the tables against those that were named; nobody named any when there are none.
func (p publicationState) checkTables(cfg *Config) error {
	wanted := cfg.Tables
	if cfg.Source == SourceMessage {
		if len(p.tables) == 0 {
			return nil
		}
		return &fatalError{fmt.Errorf("publication %s holds %s, and messages are all that is to be published", p.name, strings.Join(p.tables, ", ")),
			"use a publication of no table: " + createMessagePublicationSQL("NAME")}
	}
	if len(p.tables) == 0 {
		return &fatalError{fmt.Errorf("publication %s holds no table", p.name),
			"ALTER PUBLICATION " + quoteIdentifier(p.name) + " ADD TABLE, for each outbox"}
	}
	if len(wanted) == 0 {
		return nil
	}
	for _, table := range wanted {
		if !slices.Contains(p.tables, table) {
			return &fatalError{fmt.Errorf("publication %s does not hold %s", p.name, table),
				"ALTER PUBLICATION " + quoteIdentifier(p.name) + " ADD TABLE " + quoteTable(table) +
					"; rows committed before that are not published"}
		}
	}
	for _, table := range p.tables {
		if !slices.Contains(wanted, table) {
			return &fatalError{fmt.Errorf("publication %s also holds %s, whose rows would be confirmed unpublished", p.name, table),
				"name that table too, or use another publication"}
		}
	}
	return nil
}

func (c *Config) publicationSQL(version int) string {
	if c.Source == SourceMessage {
		return createMessagePublicationSQL(c.Publication)
	}
	return createPublicationSQL(c.Publication, c.Tables, c.shape.columnList(), version)
}

const publicationOptions = " WITH (publish = 'insert', publish_via_partition_root = true)"

// createMessagePublicationSQL makes a publication that the server can be asked for, and no more.
func createMessagePublicationSQL(name string) string {
	return "CREATE PUBLICATION " + quoteIdentifier(name) + publicationOptions
}

func createPublicationSQL(name string, tables []string, columns string, version int) string {
	list := make([]string, len(tables))
	for i, table := range tables {
		list[i] = quoteTable(table)
		if version >= columnListVersion && columns != "" {
			list[i] += " (" + columns + ")"
		}
	}
	if len(list) == 0 {
		list = []string{"schema.outbox"}
	}
	return "CREATE PUBLICATION " + quoteIdentifier(name) + " FOR TABLE " + strings.Join(list, ", ") + publicationOptions
}
