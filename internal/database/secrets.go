package database

import (
	"context"
	"crypto/rand"
	"embed"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

//go:embed migrations/*.sql
var secretsFS embed.FS

// shared is what belongs to no service: its schema is read by all and written by none of them.
var shared = Module{Service: "converge", Sets: []Set{{Name: "secrets", FS: secretsFS}}}

// tokenKey names the one row that services may read.
const tokenKey = "consistency-tokens"

// ErrNoSecrets means that the secrets are not in the database, or not for this service.
var ErrNoSecrets = errors.New("the schema converge is not migrated: run converge migrate --database URL")

const keepSQL = `
INSERT INTO secrets (name, secret)
VALUES ($1, $2)
ON CONFLICT (name) DO NOTHING`

// MigrateSecrets brings the secrets that all processes share up to date, and lets the services read them; it
// changes nothing that is. Their schemas must be there. Concurrent calls wait for each other.
//
// A key is made once. When its row is deleted the next call makes another: processes take that one up when
// they start, and from then on refuse the tokens that were signed with the old one.
func MigrateSecrets(ctx context.Context, databaseURL string, services ...string) error {
	if err := Migrate(ctx, databaseURL, shared); err != nil {
		return err
	}
	cfg, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return fmt.Errorf("reading the database URL: %w", err)
	}
	confine(cfg, shared.Service)
	owner, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return fmt.Errorf("connecting to keep secrets: %w", err)
	}
	defer owner.Close(context.WithoutCancel(ctx))
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	err = pgx.BeginFunc(ctx, owner, func(tx pgx.Tx) error {
		// Two GRANTs on one object at the same time are an error.
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtext('converge secrets'))"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, keepSQL, tokenKey, key); err != nil {
			return err
		}
		for _, service := range services {
			role := pgx.Identifier{Role(service)}.Sanitize()
			if _, err := tx.Exec(ctx, "GRANT USAGE ON SCHEMA converge TO "+role+"; GRANT SELECT ON secrets TO "+role); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("keeping the secrets: %w", err)
	}
	return nil
}

const tokenKeySQL = `
SELECT secret
FROM converge.secrets
WHERE name = $1`

// TokenKey returns the key that signs consistency tokens, of at least 32 bytes: the same for all processes, and
// after a restart. [ErrNoSecrets] when [MigrateSecrets] has not been there.
func TokenKey(ctx context.Context, pool *pgxpool.Pool) ([]byte, error) {
	var key []byte
	err := pool.QueryRow(ctx, tokenKeySQL, tokenKey).Scan(&key)
	var pg *pgconn.PgError
	// 3F000 no such schema, 42P01 no such table, 42501 not for this role.
	if errors.Is(err, pgx.ErrNoRows) || errors.As(err, &pg) && (pg.Code == "3F000" || pg.Code == "42P01" || pg.Code == "42501") {
		return nil, ErrNoSecrets
	}
	if err != nil {
		return nil, fmt.Errorf("reading the key of consistency tokens: %w", err)
	}
	return key, nil
}
