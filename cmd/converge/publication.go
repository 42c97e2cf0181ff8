package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// publication is the relay's, as it is called unless it is told otherwise.
const publication = "converge"

const publishedSQL = `
SELECT schemaname || '.' || tablename
FROM pg_publication_tables
WHERE pubname = $1`

// columnsSQL needs PostgreSQL 15, the first whose publications may leave columns out.
const columnsSQL = `
SELECT attnames
FROM pg_publication_tables
WHERE pubname = $1
LIMIT 1`

const columnListVersion = 150000

// widenPublication adds the outboxes of services that came after the publication was made, as a newer version of
// the program finds it. It must run before anyone writes to them: what was committed before is not published. A
// publication that is not there, or holds a table of somebody else's, is the relay's affair.
func widenPublication(ctx context.Context, databaseURL string) error {
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return fmt.Errorf("connecting to look at the publication: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, publishedSQL, publication)
	if err != nil {
		return fmt.Errorf("looking at the publication: %w", err)
	}
	published, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("looking at the publication: %w", err)
	}
	strange := slices.ContainsFunc(published, func(table string) bool { return !slices.Contains(outboxTables(), table) })
	if len(published) == 0 || strange {
		return nil
	}
	columns, err := publishedColumns(ctx, conn)
	if err != nil {
		return err
	}
	for _, name := range serviceNames() {
		if slices.Contains(published, name+".outbox") {
			continue
		}
		add := "ALTER PUBLICATION " + publication + " ADD TABLE " + pgx.Identifier{name, "outbox"}.Sanitize() + columns
		if _, err := conn.Exec(ctx, add); err != nil {
			return fmt.Errorf("adding %s.outbox to the publication: %w", name, err)
		}
	}
	return nil
}

// publishedColumns returns the column list of the publication's tables, "" where there are none.
func publishedColumns(ctx context.Context, conn *pgx.Conn) (string, error) {
	var version int
	if err := conn.QueryRow(ctx, "SELECT current_setting('server_version_num')::int").Scan(&version); err != nil {
		return "", fmt.Errorf("asking for the version of PostgreSQL: %w", err)
	}
	if version < columnListVersion {
		return "", nil
	}
	var names []string
	if err := conn.QueryRow(ctx, columnsSQL, publication).Scan(&names); err != nil {
		return "", fmt.Errorf("reading the columns of the publication: %w", err)
	}
	list := " ("
	for i, name := range names {
		if i > 0 {
			list += ", "
		}
		list += pgx.Identifier{name}.Sanitize()
	}
	return list + ")", nil
}
