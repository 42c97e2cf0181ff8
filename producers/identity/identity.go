// Package identity owns user profiles. Work enters by HTTP; each change is an event that Billing and
// Analytics follow.
//
// The guarantee: a profile changes only from the version that the client named, and each version is
// announced exactly as it was stored, in one transaction. It fails to hold for nobody: whoever writes the
// table by hand makes a version that is not announced.
//
// A user is known by the name that [httpapi.Own] makes, in the table and in events, so that tenants have users
// and e-mail addresses of their own; a tenant sees the bare id.
package identity

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/consumers/event"
	"converge/producers/httpapi"
	"converge/producers/outbox"
	"converge/schemas"
)

// Migrations creates the tables of this service.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// Config is what the service needs; every member must be given.
type Config struct {
	Pool   *pgxpool.Pool
	Outbox *outbox.Outbox
}

// Service serves profiles. It is safe for concurrent use.
type Service struct {
	pool   *pgxpool.Pool
	outbox *outbox.Outbox
}

// New returns the service.
func New(cfg Config) *Service { return &Service{pool: cfg.Pool, outbox: cfg.Outbox} }

// Routes adds GET, PUT and PATCH /profiles/{user_id}.
func (s *Service) Routes(api *httpapi.API) {
	api.Handle("GET /profiles/{user_id}", s.get)
	api.Handle("PUT /profiles/{user_id}", s.write(api, api.ReadBody, readPut))
	api.Handle("PATCH /profiles/{user_id}", s.write(api, api.ReadPatch, readPatch))
}

// profile is a profile as it is stored and shown; its UserID is the stored name until it is shown.
type profile struct {
	UserID         string    `json:"user_id"`
	Version        int64     `json:"version"`
	Email          string    `json:"email"`
	DisplayName    string    `json:"display_name"`
	Address        string    `json:"address"`
	MarketingOptIn bool      `json:"marketing_opt_in"`
	UpdatedAt      time.Time `json:"updated_at"`
	LastChanged    []string  `json:"-"` // members that this version gave another value
}

func (p profile) content() content {
	return content{p.Email, p.DisplayName, p.Address, p.MarketingOptIn}
}

const selectSQL = `
SELECT user_id, version, email, display_name, address, marketing_opt_in, updated_at, last_changed
FROM profiles
WHERE user_id = $1`

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// find returns the profile; its version is 0 when there is none.
func find(ctx context.Context, db querier, sql, userID string) (profile, error) {
	rows, err := db.Query(ctx, sql, userID)
	if err != nil {
		return profile{}, fmt.Errorf("reading a profile: %w", err)
	}
	p, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[profile])
	if errors.Is(err, pgx.ErrNoRows) {
		return profile{}, nil
	}
	if err != nil {
		return profile{}, fmt.Errorf("reading a profile: %w", err)
	}
	p.UpdatedAt = p.UpdatedAt.UTC()
	return p, nil
}

func (s *Service) get(w http.ResponseWriter, r *http.Request) error {
	userID := r.PathValue("user_id")
	if !httpapi.ID.Valid(userID) {
		return httpapi.Fail(httpapi.NotFound, "there is no such profile")
	}
	p, err := find(r.Context(), s.pool, selectSQL, httpapi.Own(r.Context(), userID))
	if err != nil {
		return err
	}
	if p.Version == 0 {
		return httpapi.Fail(httpapi.NotFound, "there is no such profile")
	}
	if httpapi.NotModified(w, r, p.Version) {
		return nil
	}
	return respond(w, http.StatusOK, p)
}

func respond(w http.ResponseWriter, status int, p profile) error {
	p.UserID = httpapi.Bare(p.UserID)
	response, err := httpapi.JSON(status, p, map[string]string{"ETag": httpapi.ETag(p.Version)})
	if err != nil {
		return err
	}
	return response.Write(w)
}

// write returns the handler of a change. read and parse say what it makes of the profile.
func (s *Service) write(api *httpapi.API, read func(http.ResponseWriter, *http.Request) (*httpapi.Body, error),
	parse func(*httpapi.Body) (edit, error)) httpapi.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		userID := r.PathValue("user_id")
		if !httpapi.ID.Valid(userID) {
			return httpapi.Fail(httpapi.NotFound, "the id in the path "+httpapi.ID.Detail)
		}
		body, err := read(w, r)
		if err != nil {
			return err
		}
		wanted, err := parse(body)
		if err != nil {
			return err
		}
		condition, err := httpapi.ReadPrecondition(r)
		if err != nil {
			return err
		}
		p, err := s.apply(r, httpapi.Own(r.Context(), userID), wanted, condition)
		if err != nil {
			return err
		}
		status := http.StatusOK
		if condition.Creates() && r.Method == http.MethodPut {
			status = http.StatusCreated
		}
		w.Header().Set("Consistency-Token", api.Token("profiles/"+p.UserID, p.Version))
		return respond(w, status, p)
	}
}

// apply changes the profile in a transaction of its own.
func (s *Service) apply(r *http.Request, userID string, wanted edit, condition httpapi.Precondition) (p profile, err error) {
	// A change that has begun is finished, also when the client leaves: its retry finds the outcome.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), changeTime)
	defer cancel()
	for range tries {
		err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) (err error) {
			if condition.Creates() && condition.Holds(0) {
				p, err = s.create(ctx, tx, r.Method, userID, wanted)
			} else {
				p, err = s.change(ctx, tx, r.Method, userID, wanted, condition)
			}
			return err
		})
		if err == nil || event.Classify(err) != event.ClassContention {
			break
		}
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.ConstraintName == "profiles_email_key" {
		return profile{}, httpapi.Fail(httpapi.Conflict, "another profile has this e-mail address")
	}
	return p, err
}

const (
	changeTime = 10 * time.Second
	// tries is how often a change is begun that loses to another: two profiles that swap their addresses at
	// the same time deadlock.
	tries = 3
)

const (
	insertSQL = `
INSERT INTO profiles (user_id, email, display_name, address, marketing_opt_in, version, updated_at)
VALUES ($1, $2, $3, $4, $5, 1, $6)
ON CONFLICT (user_id) DO NOTHING`
	lockSQL   = selectSQL + ` FOR UPDATE`
	updateSQL = `
UPDATE profiles
SET email = $2, display_name = $3, address = $4, marketing_opt_in = $5, version = version + 1, updated_at = $6, last_changed = $7
WHERE user_id = $1`
)

// of returns the profile with another content, as of now.
func (p profile) of(c content) profile {
	p.Email, p.DisplayName, p.Address, p.MarketingOptIn = c.email, c.displayName, c.address, c.marketingOptIn
	p.Version++
	p.UpdatedAt = time.Now().UTC().Truncate(time.Microsecond) // what the database keeps
	return p
}

// create makes a new profile, and announces it. A PATCH makes none: where there is nothing, there is nothing to patch.
func (s *Service) create(ctx context.Context, tx pgx.Tx, method, userID string, wanted edit) (profile, error) {
	if method == http.MethodPatch {
		current, err := find(ctx, tx, selectSQL, userID)
		if err == nil && current.Version == 0 {
			err = httpapi.Fail(httpapi.NotFound, "there is no such profile to patch: PUT makes one")
		} else if err == nil {
			err = stale(current.Version)
		}
		return profile{}, err
	}
	p := profile{UserID: userID}.of(wanted(content{}))
	tag, err := tx.Exec(ctx, insertSQL, userID, p.Email, p.DisplayName, p.Address, p.MarketingOptIn, p.UpdatedAt)
	if err != nil {
		return profile{}, fmt.Errorf("creating a profile: %w", err)
	}
	if tag.RowsAffected() == 0 {
		current, err := find(ctx, tx, selectSQL, userID)
		if err != nil {
			return profile{}, err
		}
		return profile{}, stale(current.Version)
	}
	return p, s.announce(ctx, tx, p)
}

// change applies the edit where the condition holds, and announces the new version. A retry whose first try got
// through, from exactly the version named and to exactly this content, finds it done: no new version, no event.
// A patch that leaves everything as it is makes none either; a PUT replaces the profile, if only by its like.
func (s *Service) change(ctx context.Context, tx pgx.Tx, method, userID string, wanted edit, condition httpapi.Precondition) (profile, error) {
	current, err := find(ctx, tx, lockSQL, userID)
	if err != nil {
		return profile{}, err
	}
	if !condition.Holds(current.Version) {
		if condition.HeldBefore(current.Version) && current.content().done(wanted, current.LastChanged) {
			return current, nil
		}
		return profile{}, stale(current.Version)
	}
	next := current.of(wanted(current.content()))
	members := changed(current.content(), next.content())
	if method == http.MethodPatch && len(members) == 0 {
		return current, nil
	}
	if _, err := tx.Exec(ctx, updateSQL, userID, next.Email, next.DisplayName, next.Address, next.MarketingOptIn, next.UpdatedAt, members); err != nil {
		return profile{}, fmt.Errorf("changing a profile: %w", err)
	}
	return next, s.announce(ctx, tx, next)
}

// stale is the refusal of a change from a version that is not there. Its ETag is of the one that is, if any.
func stale(version int64) error {
	e := httpapi.Fail(httpapi.PreconditionFailed, "")
	if version > 0 {
		e.Header = http.Header{}
		e.Header.Set("ETag", httpapi.ETag(version))
	}
	return e
}

func (s *Service) announce(ctx context.Context, tx pgx.Tx, p profile) error {
	return s.outbox.Append(ctx, tx, outbox.Event{Type: "ProfileUpdated", AggregateType: "profile", AggregateID: p.UserID,
		AggregateVersion: p.Version, OccurredAt: p.UpdatedAt, Data: schemas.ProfileUpdated{
			UserID:         p.UserID,
			Version:        p.Version,
			Email:          p.Email,
			DisplayName:    p.DisplayName,
			Address:        p.Address,
			MarketingOptIn: p.MarketingOptIn,
		}})
}
