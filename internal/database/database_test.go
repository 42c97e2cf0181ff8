package database_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5/pgconn"

	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/producers/outbox"
)

func module(service string) database.Module {
	table := fstest.MapFS{"migrations/00001_things.sql": {Data: []byte("-- +goose Up\nCREATE TABLE things (id int PRIMARY KEY);\n")}}
	return database.Module{Service: service, Sets: []database.Set{
		{Name: "outbox", FS: outbox.Migrations}, {Name: "inbox", FS: inboxMigrations}, {Name: service, FS: table}}}
}

func TestAServiceCannotReadAnothersTables(t *testing.T) {
	ctx := context.Background()
	url := pgtest.URL(t)
	for range 2 { // the second finds everything in place
		if err := database.Migrate(ctx, url, module("orders"), module("inventory")); err != nil {
			t.Fatal(err)
		}
	}
	for _, service := range []string{"orders", "inventory"} {
		pool, err := database.Open(ctx, url, service, 2)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		other := map[string]string{"orders": "inventory", "inventory": "orders"}[service]
		for _, table := range []string{"things", "outbox", "inbox", "schema_version_outbox"} {
			var n int
			if err := pool.QueryRow(ctx, "SELECT count(*) FROM "+table).Scan(&n); err != nil {
				t.Errorf("%s cannot read its own %s: %v", service, table, err)
			}
			err := pool.QueryRow(ctx, "SELECT count(*) FROM "+other+"."+table).Scan(&n)
			var pg *pgconn.PgError
			if !errors.As(err, &pg) || pg.Code != "42501" {
				t.Errorf("%s reads %s.%s: got %v, want SQLSTATE 42501 insufficient_privilege", service, other, table, err)
			}
		}
	}
}

func TestMigrationsRunAtTheSameTimeWaitForEachOther(t *testing.T) {
	url := pgtest.URL(t)
	errs := make(chan error)
	for range 4 {
		go func() { errs <- database.Migrate(context.Background(), url, module("orders"), module("billing")) }()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

var inboxMigrations = os.DirFS("../../consumers/inbox")
