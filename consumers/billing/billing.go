// Package billing follows the profiles that Identity owns: it keeps what an invoice needs to know of a
// user, and tells it over HTTP.
//
// The guarantee: an account shows the newest version that has arrived, and never goes back, in whatever
// order and however often events come. Each event that took effect stands once in account_changes. That
// an event is not applied twice is the runtime's inbox, in the same transaction; versions alone would
// keep the account right, but not the journal. It fails to hold for events of one user with one version
// and different content: the first wins.
package billing

import (
	"context"
	"embed"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/consumers/event"
	"converge/consumers/readmodel"
	"converge/internal/pipeline"
	"converge/producers/httpapi"
	"converge/schemas"
)

// Migrations creates the tables of this service in the schema that search_path names first.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// Config is what the service needs. Decoder serves [Service.Handler], Pool serves [Service.Routes].
type Config struct {
	Pool    *pgxpool.Pool
	Decoder event.Decoder
	// ViewWait is how long a read waits for what its Consistency-Token names; 0 means [readmodel.DefaultWait].
	ViewWait time.Duration
}

// Service is Billing. It is safe for concurrent use.
type Service struct {
	pool     *pgxpool.Pool
	decoder  event.Decoder
	viewWait time.Duration
}

// New returns the service. It starts nothing.
func New(cfg Config) *Service {
	return &Service{pool: cfg.Pool, decoder: cfg.Decoder, viewWait: cfg.ViewWait}
}

// Handler returns what Billing does with each event that it reads: one by one.
func (s *Service) Handler() event.Handler {
	return event.Handler{Each: map[string]event.Each{"ProfileUpdated": event.Typed(s.decoder, apply)}}
}

// applySQL is one statement, so that the journal tells what the upsert did.
const applySQL = `
WITH changed AS (
    INSERT INTO accounts AS a (user_id, version, email, display_name, address, marketing_opt_in, updated_at)
    VALUES ($2, $3, $4, $5, $6, $7, $8)
    ON CONFLICT (user_id) DO UPDATE
    SET version = excluded.version,
        email = excluded.email,
        display_name = excluded.display_name,
        address = excluded.address,
        marketing_opt_in = excluded.marketing_opt_in,
        updated_at = excluded.updated_at
    WHERE a.version < excluded.version
    RETURNING 1
)
INSERT INTO account_changes (event_id, user_id, version, superseded)
SELECT $1, $2, $3, NOT EXISTS (SELECT FROM changed)`

func apply(ctx context.Context, tx pgx.Tx, e *event.Event, p schemas.ProfileUpdated) error {
	if err := readmodel.CheckProfile(p); err != nil {
		return err
	}
	var batch pgx.Batch
	readmodel.QueueAdvance(&batch, []*event.Event{e})
	batch.Queue(applySQL, e.ID, p.UserID, p.Version, p.Email, p.DisplayName, p.Address, p.MarketingOptIn, readmodel.Occurred(e))
	if err := pipeline.Send(ctx, tx, &batch); err != nil {
		return fmt.Errorf("applying a profile to an account: %w", err)
	}
	return nil
}

// Routes adds what Billing answers to the API.
func (s *Service) Routes(api *httpapi.API) {
	readmodel.Profiles{Pool: s.pool, Path: "/billing/accounts", Table: "accounts",
		Unknown: "Billing has not heard of such a user, or not yet", Wait: s.viewWait}.Routes(api)
}
