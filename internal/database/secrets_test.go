package database_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/internal/database"
	"converge/internal/pgtest"
)

func open(t *testing.T, url, service string) *pgxpool.Pool {
	t.Helper()
	pool, err := database.Open(t.Context(), url, service, 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// Every service signs with the same key, however often and by how many it is made; and knows of no other secret.
func TestServicesShareOneKeyAndSeeNoOtherSecret(t *testing.T) {
	ctx := t.Context()
	url := pgtest.URL(t)
	if err := database.Migrate(ctx, url, module("orders"), module("billing"), module("shipping")); err != nil {
		t.Fatal(err)
	}
	orders, billing := open(t, url, "orders"), open(t, url, "billing")
	if _, err := database.TokenKey(ctx, orders); !errors.Is(err, database.ErrNoSecrets) {
		t.Errorf("before there are secrets: %v", err)
	}
	errs := make(chan error)
	for range 4 {
		go func() { errs <- database.MigrateSecrets(context.Background(), url, "orders", "billing") }()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	key, err := database.TokenKey(ctx, orders)
	if err != nil || len(key) < 32 {
		t.Fatalf("%d bytes, %v", len(key), err)
	}
	if again, err := database.TokenKey(ctx, billing); err != nil || !cmp.Equal(again, key) {
		t.Errorf("another service has another key (%v)", err)
	}
	if _, err := database.TokenKey(ctx, open(t, url, "shipping")); !errors.Is(err, database.ErrNoSecrets) {
		t.Errorf("a service that nobody named: %v", err)
	}

	admin, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.WithoutCancel(ctx))
	if _, err := admin.Exec(ctx, "INSERT INTO converge.secrets VALUES ('other', repeat('x', 32)::bytea)"); err != nil {
		t.Fatal(err)
	}
	var rows int
	if err := orders.QueryRow(ctx, "SELECT count(*) FROM converge.secrets").Scan(&rows); err != nil || rows != 1 {
		t.Errorf("a service sees %d secrets (%v)", rows, err)
	}
	for _, sql := range []string{
		"UPDATE converge.secrets SET secret = repeat('x', 32)::bytea", "DELETE FROM converge.secrets", "TRUNCATE converge.secrets",
		"INSERT INTO converge.secrets VALUES ('mine', repeat('x', 32)::bytea)", "CREATE TABLE converge.mine ()", "SELECT FROM converge.schema_version_secrets",
	} {
		var pg *pgconn.PgError
		if _, err := orders.Exec(ctx, sql); !errors.As(err, &pg) || pg.Code != "42501" {
			t.Errorf("%s: got %v, want SQLSTATE 42501 insufficient_privilege", sql, err)
		}
	}

	if _, err := admin.Exec(ctx, "DELETE FROM converge.secrets WHERE name = 'consistency-tokens'"); err != nil {
		t.Fatal(err)
	}
	if _, err := database.TokenKey(ctx, orders); !errors.Is(err, database.ErrNoSecrets) {
		t.Errorf("the row is gone: %v", err)
	}
	if err := database.MigrateSecrets(ctx, url, "orders", "billing"); err != nil {
		t.Fatal(err)
	}
	if fresh, err := database.TokenKey(ctx, orders); err != nil || cmp.Equal(fresh, key) {
		t.Errorf("no new key (%v)", err)
	}
}
