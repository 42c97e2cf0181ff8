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
	"errors"
	"fmt"
	"net/http"
	"strings"
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
}

// Service is Billing. It is safe for concurrent use.
type Service struct {
	pool    *pgxpool.Pool
	decoder event.Decoder
}

// New returns the service. It starts nothing.
func New(cfg Config) *Service { return &Service{pool: cfg.Pool, decoder: cfg.Decoder} }

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
	if err := check(p); err != nil {
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

// check permanently refuses what no profile can be. Whoever writes to the topic by hand may write it.
func check(p schemas.ProfileUpdated) error {
	switch {
	case !httpapi.ID.Valid(p.UserID):
		return event.Permanentf("ProfileUpdated names no user")
	case p.Version < 1:
		return event.Permanentf("ProfileUpdated has version %d: the first is 1", p.Version)
	case strings.ContainsRune(p.Email+p.DisplayName+p.Address, 0):
		return event.Permanentf("ProfileUpdated holds the character U+0000, which the database has no place for")
	}
	return nil
}

// Routes adds what Billing answers to the API.
func (s *Service) Routes(api *httpapi.API) {
	api.Handle("GET /billing/accounts/{user_id}", s.get)
}

type account struct {
	UserID         string    `json:"user_id"`
	Version        int64     `json:"version"`
	Email          string    `json:"email"`
	DisplayName    string    `json:"display_name"`
	Address        string    `json:"address"`
	MarketingOptIn bool      `json:"marketing_opt_in"`
	UpdatedAt      time.Time `json:"updated_at"`
}

const selectSQL = `
SELECT user_id, version, email, display_name, address, marketing_opt_in, updated_at
FROM accounts
WHERE user_id = $1`

// get answers GET /billing/accounts/{user_id}. Read-Model-Version is the profile's version.
func (s *Service) get(w http.ResponseWriter, r *http.Request) error {
	userID := r.PathValue("user_id")
	if !httpapi.ID.Valid(userID) {
		return noAccount()
	}
	var batch pgx.Batch
	var progress readmodel.Progress
	readmodel.QueueRead(&batch, &progress)
	var a account
	batch.Queue(selectSQL, userID).Query(func(rows pgx.Rows) (err error) {
		a, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[account])
		return err
	})
	err := s.pool.SendBatch(r.Context(), &batch).Close()
	if errors.Is(err, pgx.ErrNoRows) {
		return noAccount()
	}
	if err != nil {
		return fmt.Errorf("reading an account: %w", err)
	}
	a.UpdatedAt = a.UpdatedAt.UTC()
	readmodel.Tell(w, a.Version, progress.Lag)
	response, err := httpapi.JSON(http.StatusOK, a, nil)
	if err != nil {
		return err
	}
	return response.Write(w)
}

func noAccount() error {
	return httpapi.Fail(httpapi.NotFound, "Billing has not heard of such a user, or not yet")
}
