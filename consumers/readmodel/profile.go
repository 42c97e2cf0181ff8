package readmodel

import (
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

// Profiles serves the profiles of a table at GET path/{user_id}. Read-Model-Version is the profile's version.
type Profiles struct {
	Pool    *pgxpool.Pool
	Path    string
	Table   string // its columns are Profile's
	Unknown string // the detail of the problem when the table has no such user
}

// Routes adds the path to the API.
func (p Profiles) Routes(api *httpapi.API) { api.Handle("GET "+p.Path+"/{user_id}", p.get) }

func (p Profiles) get(w http.ResponseWriter, r *http.Request) error {
	userID := r.PathValue("user_id")
	if !httpapi.ID.Valid(userID) {
		return httpapi.Fail(httpapi.NotFound, p.Unknown)
	}
	var batch pgx.Batch
	var progress Progress
	QueueRead(&batch, &progress)
	var found Profile
	batch.Queue(`
SELECT user_id, version, email, display_name, address, marketing_opt_in, updated_at
FROM `+p.Table+`
WHERE user_id = $1`, userID).Query(func(rows pgx.Rows) (err error) {
		found, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Profile])
		return err
	})
	err := p.Pool.SendBatch(r.Context(), &batch).Close()
	if errors.Is(err, pgx.ErrNoRows) {
		return httpapi.Fail(httpapi.NotFound, p.Unknown)
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", p.Table, err)
	}
	found.UpdatedAt = found.UpdatedAt.UTC()
	Tell(w, found.Version, progress.Lag)
	response, err := httpapi.JSON(http.StatusOK, found, nil)
	if err != nil {
		return err
	}
	return response.Write(w)
}
