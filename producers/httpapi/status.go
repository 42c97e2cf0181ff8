package httpapi

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Status is how far something has come that takes its time: the body of GET …/status.
type Status struct {
	ID          uuid.UUID `json:"id"`
	State       string    `json:"state"`            // PENDING, IN_PROGRESS, COMPLETED or FAILED
	Reason      string    `json:"reason,omitempty"` // why it fails
	DetailState string    `json:"detail_state"`     // in its own words
	Version     int64     `json:"version"`          // counts the states that it entered, from 1
	UpdatedAt   time.Time `json:"updated_at"`
	Problem     *Problem  `json:"problem,omitempty"` // of what has failed
}

const (
	stateCompleted = "COMPLETED"
	stateFailed    = "FAILED"
)

// Terminal reports whether the status is the last.
func (s Status) Terminal() bool { return s.State == stateCompleted || s.State == stateFailed }

// Followed is a resource as it is now and as it was.
type Followed struct {
	// Past has the status of every version. Invariant: Past[i].Version is i+1, and there is one at least.
	Past      []Status
	CreatedAt time.Time
	Whole     any // the body of GET /path/{id}
}

// Now returns the status that is shown.
func (f *Followed) Now() Status { return f.Past[len(f.Past)-1] }

// Add adds the status of the next version: id entered a state, and fails for the reason, "" when it does not.
func (f *Followed) Add(id uuid.UUID, state, detail, reason string, at time.Time) {
	s := Status{ID: id, State: state, Reason: reason, DetailState: detail, Version: int64(len(f.Past) + 1), UpdatedAt: at.UTC()}
	if state == stateFailed {
		problem := Outcome(reason)
		s.Problem = &problem
	}
	f.Past = append(f.Past, s)
}

// Progress is a kind of resource that takes its time, as [API.Follow] shows it.
type Progress struct {
	Name string // as in order
	Pool *pgxpool.Pool
	// VersionsSQL returns id and version of the resources whose ids are $1.
	VersionsSQL string
	// Find returns the resource, nil when there is none that the context's tenant may see.
	Find func(ctx context.Context, id uuid.UUID) (*Followed, error)
	// P90 returns how long nine of ten take at most; 0: it is not known.
	P90 func() time.Duration
}

// Follow adds the routes by which clients follow a resource to its end: GET path/{id}, the whole, path/{id}/status,
// and path/{id}/events, a stream. All are told of changes that any process makes. The first two wait for one
// under Prefer: wait.
func (a *API) Follow(path string, p Progress) { a.follow(path, p, a.Watch(p.Pool, p.VersionsSQL)) }

func (a *API) follow(path string, p Progress, watch *Watch) {
	f := &follower{Progress: p, api: a, watch: watch}
	a.Handle("GET "+path+"/{id}", f.show(func(f *Followed) any { return f.Whole }))
	a.Handle("GET "+path+"/{id}/status", f.show(func(f *Followed) any { return f.Now() }))
	a.Handle("GET "+path+"/{id}/events", f.events)
}

type follower struct {
	Progress
	api   *API
	watch *Watch
}

// PathID returns the {id} of the request's path; ok is false when it is no UUID in the one spelling that is
// written here.
func PathID(r *http.Request) (id uuid.UUID, ok bool) {
	text := r.PathValue("id")
	id, err := uuid.Parse(text)
	return id, err == nil && id.String() == text
}

// lookup returns the resource of the request's path, or that there is none.
func (f *follower) lookup(r *http.Request) (uuid.UUID, *Followed, error) {
	id, ok := PathID(r)
	if !ok {
		return id, nil, f.none()
	}
	found, err := f.find(r.Context(), id)
	return id, found, err
}

func (f *follower) find(ctx context.Context, id uuid.UUID) (*Followed, error) {
	found, err := f.Find(ctx, id)
	switch {
	case err != nil:
		return nil, err
	case found == nil:
		return nil, f.none()
	case len(found.Past) == 0:
		return nil, fmt.Errorf("%s %s has no history", f.Name, id)
	}
	return found, nil
}

func (p Progress) none() error { return Fail(NotFound, "there is no such "+p.Name) }

// show returns the handler that shows a part of the resource.
func (f *follower) show(part func(*Followed) any) Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		id, found, err := f.lookup(r)
		if err != nil {
			return err
		}
		waited, err := f.watch.Await(w, r, id.String(), found.Now().Version, found.Now().Terminal())
		if err == nil && waited {
			found, err = f.find(r.Context(), id)
		}
		if err != nil {
			return err
		}
		f.Advise(w, found)
		if NotModified(w, r, found.Now().Version) {
			return nil
		}
		response, err := JSON(http.StatusOK, part(found), nil)
		if err != nil {
			return err
		}
		return response.Write(w)
	}
}

// Advise tells a client when to ask again: when nine of ten would have ended.
func (p Progress) Advise(w http.ResponseWriter, f *Followed) {
	w.Header().Set("Cache-Control", "no-cache")
	if f.Now().Terminal() {
		return
	}
	left := p.P90() - time.Since(f.CreatedAt)
	w.Header().Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(left.Seconds())))))
}
