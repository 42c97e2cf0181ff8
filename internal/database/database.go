// Package database gives each service its own corner of one PostgreSQL database: a schema, a role
// that can touch nothing else, and the migrations that belong there.
//
// The guarantee: a pool opened for a service can read and write that service's tables and no others.
// It is a guard against mistakes, not against a hostile service: every pool logs in as the user of the
// URL and then takes on the service's role, so code that says RESET ROLE has that user's rights again.
package database

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	pgxuuid "github.com/vgarvardt/pgx-google-uuid/v5"
)

// Module is what one service keeps in the database.
type Module struct {
	Service string // the schema's name; the role is "converge_" + Service
	Sets    []Set  // in the order in which they are applied
}

// Set is one package's migrations: goose files below migrations/ in FS. Each set has a version of its
// own, so that packages evolve apart.
type Set struct {
	Name string
	FS   fs.FS
}

// Role returns the role that a service's pools take on.
func Role(service string) string { return "converge_" + service }

// Migrate brings every module's schema, role and tables up to date, and changes nothing that is. It
// needs a URL whose user may create schemas and roles. Concurrent calls wait for each other.
func Migrate(ctx context.Context, databaseURL string, modules ...Module) error {
	admin, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return fmt.Errorf("connecting to migrate: %w", err)
	}
	defer admin.Close(context.WithoutCancel(ctx))
	if _, err := admin.Exec(ctx, "SELECT pg_advisory_lock(hashtext('converge migrate'))"); err != nil {
		return fmt.Errorf("waiting for another migration: %w", err)
	}
	for _, m := range modules {
		if err := prepare(ctx, admin, m.Service); err != nil {
			return fmt.Errorf("preparing schema %s: %w", m.Service, err)
		}
		if err := apply(ctx, databaseURL, m); err != nil {
			return fmt.Errorf("migrating schema %s: %w", m.Service, err)
		}
	}
	return nil
}

// prepare makes the role and the schema. Roles belong to the whole server, so another database's
// migration may make the same one at the same moment.
func prepare(ctx context.Context, admin *pgx.Conn, service string) error {
	role, schema := pgx.Identifier{Role(service)}.Sanitize(), pgx.Identifier{service}.Sanitize()
	var known bool
	if err := admin.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", Role(service)).Scan(&known); err != nil {
		return err
	}
	if !known {
		if _, err := admin.Exec(ctx, "CREATE ROLE "+role+" NOLOGIN"); err != nil && !isDuplicate(err) {
			return err
		}
	}
	var member bool
	if err := admin.QueryRow(ctx, "SELECT pg_has_role(current_user, $1, 'MEMBER')", Role(service)).Scan(&member); err != nil {
		return err
	}
	if !member {
		if _, err := admin.Exec(ctx, "GRANT "+role+" TO CURRENT_USER"); err != nil && !isDuplicate(err) {
			return err
		}
	}
	_, err := admin.Exec(ctx, "CREATE SCHEMA IF NOT EXISTS "+schema+" AUTHORIZATION "+role)
	return err
}

func isDuplicate(err error) bool {
	var pg *pgconn.PgError
	// 42710 duplicate_object, 23505 from the catalogue's own index when two sessions race.
	return errors.As(err, &pg) && (pg.Code == "42710" || pg.Code == "23505")
}

func apply(ctx context.Context, databaseURL string, m Module) error {
	cfg, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return err
	}
	confine(cfg, m.Service)
	db := stdlib.OpenDB(*cfg)
	defer db.Close()
	db.SetMaxOpenConns(2)
	for _, set := range m.Sets {
		if err := applySet(ctx, db, set); err != nil {
			return fmt.Errorf("%s: %w", set.Name, err)
		}
	}
	return nil
}

func applySet(ctx context.Context, db *sql.DB, set Set) error {
	files, err := fs.Sub(set.FS, "migrations")
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithTableName("schema_version_"+set.Name))
	if err != nil {
		return err
	}
	_, err = provider.Up(ctx)
	return err
}

// confine makes every connection start as the service's role in the service's schema, at READ COMMITTED.
func confine(cfg *pgx.ConnConfig, service string) {
	cfg.RuntimeParams["role"] = Role(service)
	cfg.RuntimeParams["default_transaction_isolation"] = "read committed" // what the statements are written for
	cfg.RuntimeParams["search_path"] = pgx.Identifier{service}.Sanitize()
	if cfg.RuntimeParams["application_name"] == "" {
		cfg.RuntimeParams["application_name"] = "converge " + service
	}
}

// Open returns a pool of at most maxConns connections confined to the service's schema. It connects
// when first used, so an absent database is no error here. The caller closes it.
func Open(ctx context.Context, databaseURL, service string, maxConns int32) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(databaseURL)
	if err != nil {
		return nil, fmt.Errorf("reading the database URL: %w", err)
	}
	confine(cfg.ConnConfig, service)
	cfg.ConnConfig.ConnectTimeout = 5 * time.Second
	cfg.MaxConns = maxConns
	cfg.MaxConnIdleTime = 5 * time.Minute
	// Else an array of uuid.UUID goes through the text of each.
	cfg.AfterConnect = func(_ context.Context, conn *pgx.Conn) error {
		pgxuuid.Register(conn.TypeMap())
		return nil
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("opening the pool of %s: %w", service, err)
	}
	return pool, nil
}

// Redact returns databaseURL without its passwords, for logs and messages. Of the form that is no URL
// (host=… password=…) nothing is shown.
func Redact(databaseURL string) string {
	u, err := url.Parse(databaseURL)
	if err != nil || u.Scheme == "" {
		return "(unreadable database URL)"
	}
	query := u.Query()
	for _, name := range []string{"password", "sslpassword"} {
		if query.Has(name) {
			query.Set(name, "xxxxx")
			u.RawQuery = query.Encode()
		}
	}
	return u.Redacted()
}
