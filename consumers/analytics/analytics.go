// Package analytics follows the profiles that Identity owns, many at a time: it keeps what reports are
// made of, and tells it over HTTP.
//
// The guarantee: a profile shows the newest version that has arrived, and never goes back, in whatever
// order and however often events come, alone or several of one user in a batch. Each event that took
// effect stands once in profile_changes. That an event is not applied twice is the runtime's inbox, in
// the same transaction. It fails to hold for events of one user with one version and different content:
// the first wins. Should a user's first events come in two partitions at the same time, the profile is
// right, but the journal may call an event applied that was superseded.
package analytics

import (
	"context"
	"embed"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
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

// Service is Analytics. It is safe for concurrent use.
type Service struct {
	pool     *pgxpool.Pool
	decoder  event.Decoder
	viewWait time.Duration
}

// New returns the service. It starts nothing.
func New(cfg Config) *Service {
	return &Service{pool: cfg.Pool, decoder: cfg.Decoder, viewWait: cfg.ViewWait}
}

// Handler returns what Analytics does with each event that it reads: a batch at a time.
func (s *Service) Handler() event.Handler {
	return event.Handler{Batch: map[string]event.Batch{"ProfileUpdated": s.apply}}
}

// apply takes the events in as if one by one, in two round trips for all.
func (s *Service) apply(ctx context.Context, tx pgx.Tx, events []*event.Event) error {
	updates := make([]schemas.ProfileUpdated, len(events))
	users := make([]string, len(events))
	for i, e := range events {
		if err := s.decoder.Decode(ctx, e.Type, e.ContentType, e.Value, &updates[i]); err != nil {
			return err
		}
		if err := readmodel.CheckProfile(updates[i]); err != nil {
			return err
		}
		users[i] = updates[i].UserID
	}
	known, err := lock(ctx, tx, events, users)
	if err != nil {
		return err
	}
	var j journal
	newest := map[string]int{} // user → index of the event whose content stays
	for i, p := range updates {
		superseded := p.Version <= known[p.UserID]
		if !superseded {
			known[p.UserID], newest[p.UserID] = p.Version, i
		}
		j.add(events[i].ID, p, superseded)
	}
	var c content
	for _, user := range slices.Sorted(maps.Keys(newest)) {
		c.add(updates[newest[user]], readmodel.Occurred(events[newest[user]]))
	}
	return save(ctx, tx, &c, &j)
}

const lockSQL = `
SELECT user_id, version
FROM profiles
WHERE user_id = ANY($1)
ORDER BY user_id
FOR UPDATE`

// lock takes the users' rows until the transaction ends, and returns their versions.
func lock(ctx context.Context, tx pgx.Tx, events []*event.Event, users []string) (map[string]int64, error) {
	known := map[string]int64{}
	var batch pgx.Batch
	readmodel.QueueAdvance(&batch, events)
	batch.Queue(lockSQL, users).Query(func(rows pgx.Rows) error {
		var user string
		var version int64
		_, err := pgx.ForEachRow(rows, []any{&user, &version}, func() error {
			known[user] = version
			return nil
		})
		return err
	})
	if err := tx.SendBatch(ctx, &batch).Close(); err != nil {
		return nil, fmt.Errorf("locking profiles: %w", err)
	}
	return known, nil
}

// content is the columns of what is to be shown, a row per user.
type content struct {
	users, emails, names, addresses []string
	versions                        []int64
	marketing                       []bool
	updated                         []time.Time
}

func (c *content) add(p schemas.ProfileUpdated, at time.Time) {
	c.users, c.versions = append(c.users, p.UserID), append(c.versions, p.Version)
	c.emails, c.names = append(c.emails, p.Email), append(c.names, p.DisplayName)
	c.addresses, c.marketing = append(c.addresses, p.Address), append(c.marketing, p.MarketingOptIn)
	c.updated = append(c.updated, at)
}

// journal is the columns of what was applied, a row per event, in order.
type journal struct {
	ids        []uuid.UUID
	users      []string
	versions   []int64
	superseded []bool
}

func (j *journal) add(id uuid.UUID, p schemas.ProfileUpdated, superseded bool) {
	j.ids, j.users = append(j.ids, id), append(j.users, p.UserID)
	j.versions, j.superseded = append(j.versions, p.Version), append(j.superseded, superseded)
}

const (
	// The version is compared again, for a user whom nobody knew when the rows were locked.
	upsertSQL = `
INSERT INTO profiles AS p (user_id, version, email, display_name, address, marketing_opt_in, updated_at)
SELECT *
FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::boolean[], $7::timestamptz[])
ON CONFLICT (user_id) DO UPDATE
SET version = excluded.version,
    email = excluded.email,
    display_name = excluded.display_name,
    address = excluded.address,
    marketing_opt_in = excluded.marketing_opt_in,
    updated_at = excluded.updated_at
WHERE p.version < excluded.version`
	journalSQL = `
INSERT INTO profile_changes (event_id, user_id, version, superseded)
SELECT u.event_id, u.user_id, u.version, u.superseded
FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::boolean[])
     WITH ORDINALITY AS u (event_id, user_id, version, superseded, ordinal)
ORDER BY u.ordinal`
)

func save(ctx context.Context, tx pgx.Tx, c *content, j *journal) error {
	var batch pgx.Batch
	if len(c.users) > 0 {
		batch.Queue(upsertSQL, c.users, c.versions, c.emails, c.names, c.addresses, c.marketing, c.updated)
	}
	batch.Queue(journalSQL, j.ids, j.users, j.versions, j.superseded)
	if err := pipeline.Send(ctx, tx, &batch); err != nil {
		return fmt.Errorf("saving profiles: %w", err)
	}
	return nil
}

// Routes adds what Analytics answers to the API.
func (s *Service) Routes(api *httpapi.API) {
	readmodel.Profiles{Pool: s.pool, Path: "/analytics/profiles", Table: "profiles",
		Unknown: "Analytics has not heard of such a user, or not yet", Wait: s.viewWait}.Routes(api)
}
