package httpapi

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"converge/internal/sweep"
)

// Keys forgets the answers of old idempotency keys, and with them the personal data that answers hold. The key
// stays taken for ever, and so does where the resource is that it made: a retry that comes late is told so, and
// has no second effect.
//
// Whether an answer is still given depends on its age alone, not on whether Keys has come by.
type Keys struct {
	Pool      *pgxpool.Pool // search_path names the keys' schema
	Retention time.Duration // how long answers are kept, as [Config.KeyRetention] says; 0 means 72 h
	Logger    *slog.Logger  // nil: slog.Default()
}

const (
	defaultKeyRetention = 72 * time.Hour
	purgeEvery          = time.Minute
	purgeAtOnce         = 1000 // rows; a retry of one waits for no more than their update
)

// Run forgets old answers until ctx ends; then it returns nil. Several processes may run it for one schema.
func (k Keys) Run(ctx context.Context) error {
	if k.Logger == nil {
		k.Logger = slog.Default()
	}
	return sweep.Every(ctx, purgeEvery, k.Logger, "idempotency keys", func(ctx context.Context) (more bool, err error) {
		purged, err := k.Purge(ctx)
		if purged > 0 {
			k.Logger.DebugContext(ctx, "answers of old idempotency keys are forgotten", "keys", purged)
		}
		return purged == purgeAtOnce, err
	})
}

// Others may purge at the same time: they take other rows. The clock is the database's, as it is for replays.
const purgeKeysSQL = `
UPDATE idempotency_keys
SET fingerprint = '', body = NULL, headers = jsonb_strip_nulls(jsonb_build_object('Location', headers->'Location'))
WHERE (tenant, operation, key) IN (
    SELECT tenant, operation, key
    FROM idempotency_keys
    WHERE fingerprint <> '' AND created_at <= now() - $1::interval
    ORDER BY created_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED)`

// Purge forgets the answers of up to 1000 keys whose retention is over, and returns of how many.
func (k Keys) Purge(ctx context.Context) (purged int64, err error) {
	if k.Retention == 0 {
		k.Retention = defaultKeyRetention
	}
	tag, err := k.Pool.Exec(ctx, purgeKeysSQL, k.Retention, purgeAtOnce)
	if err != nil {
		return 0, fmt.Errorf("forgetting the answers of old idempotency keys: %w", err)
	}
	return tag.RowsAffected(), nil
}
