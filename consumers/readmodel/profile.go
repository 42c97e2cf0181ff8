package readmodel

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/consumers/event"
	"converge/producers/httpapi"
	"converge/schemas"
)

// Profile is what a follower of the profiles shows of a user, and the columns that it keeps, in this order.
type Profile struct {
	UserID         string    `json:"user_id"`
	Version        int64     `json:"version"`
	Email          string    `json:"email"`
	DisplayName    string    `json:"display_name"`
	Address        string    `json:"address"`
	MarketingOptIn bool      `json:"marketing_opt_in"`
	UpdatedAt      time.Time `json:"updated_at"`
}

// CheckProfile permanently refuses what no profile can be. Whoever writes to the topic by hand may write it.
// Users are told by their stored names, with the tenant where there is one.
func CheckProfile(p schemas.ProfileUpdated) error {
	switch {
	case !httpapi.Stored.Valid(p.UserID):
		return event.Permanentf("ProfileUpdated names no user")
	case p.Version < 1:
		return event.Permanentf("ProfileUpdated has version %d: the first is 1", p.Version)
	case strings.ContainsRune(p.Email+p.DisplayName+p.Address, 0):
		return event.Permanentf("ProfileUpdated holds the character U+0000, which the database has no place for")
	}
	return nil
}

// Profiles serves the profiles of a table at GET path/{user_id}, to the tenant whose they are.
// Read-Model-Version is the profile's version, 0 when there is none.
type Profiles struct {
	Pool    *pgxpool.Pool
	Path    string
	Table   string        // its columns are Profile's
	Unknown string        // the detail of the problem when the table has no such user
	Wait    time.Duration // for what a token names; 0 means [DefaultWait]
}

// Routes adds the path to the API.
func (p Profiles) Routes(api *httpapi.API) {
	waits := NewWaits(api, p.Pool, p.Table, "user_id", p.Wait)
	api.Handle("GET "+p.Path+"/{user_id}", func(w http.ResponseWriter, r *http.Request) error { return p.get(api, waits, w, r) })
}

func (p Profiles) get(api *httpapi.API, waits *Waits, w http.ResponseWriter, r *http.Request) error {
	if !httpapi.ID.Valid(r.PathValue("user_id")) {
		return httpapi.Fail(httpapi.NotFound, p.Unknown)
	}
	userID := httpapi.Own(r.Context(), r.PathValue("user_id"))
	wanted, err := api.ReadToken(r, "profiles/"+userID)
	if err != nil {
		return err
	}
	standing, err := waits.Await(w, r, userID, wanted)
	if err != nil {
		return err
	}
	found, progress, err := p.read(r.Context(), userID)
	if err != nil {
		return err
	}
	Tell(w, found.Version, progress.Lag)
	if err := standing.Refuse(found.Version > 0); err != nil {
		return err
	}
	if found.Version == 0 {
		return httpapi.Fail(httpapi.NotFound, p.Unknown)
	}
	found.UserID = httpapi.Bare(found.UserID)
	response, err := httpapi.JSON(http.StatusOK, found, nil)
	if err != nil {
		return err
	}
	return response.Write(w)
}

// read returns the zero Profile when there is none.
func (p Profiles) read(ctx context.Context, userID string) (found Profile, progress Progress, err error) {
	var batch pgx.Batch
	QueueRead(&batch, &progress)
	batch.Queue(`
SELECT user_id, version, email, display_name, address, marketing_opt_in, updated_at
FROM `+p.Table+`
WHERE user_id = $1`, userID).Query(func(rows pgx.Rows) (err error) {
		found, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Profile])
		return err
	})
	if err := p.Pool.SendBatch(ctx, &batch).Close(); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return Profile{}, progress, fmt.Errorf("reading %s: %w", p.Table, err)
	}
	found.UpdatedAt = found.UpdatedAt.UTC()
	return found, progress, nil
}
