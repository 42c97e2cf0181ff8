// Package orderviews is the read side of orders (CQRS): a table shaped for lists, built from what Orders
// tells, and nothing that Orders has to know of.
//
// The guarantee: a view shows the newest state that has arrived, and never goes back, in whatever order
// and however often events come; an order's place in a list never changes, so that reading page by page
// shows every order that was there when the reading began, once. It may be behind the order: each answer
// tells how far. It fails to hold for events of one order with one version and different content: the
// first wins.
package orderviews

import (
	"context"
	"embed"
	"fmt"
	"maps"
	"regexp"
	"slices"
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

// Service is the read model of orders. It is safe for concurrent use.
type Service struct {
	pool     *pgxpool.Pool
	decoder  event.Decoder
	viewWait time.Duration
}

// New returns the service. It starts nothing.
func New(cfg Config) *Service {
	return &Service{pool: cfg.Pool, decoder: cfg.Decoder, viewWait: cfg.ViewWait}
}

// Handler returns what the read model does with each event that it reads: a batch at a time.
func (s *Service) Handler() event.Handler {
	return event.Handler{Batch: map[string]event.Batch{"OrderPlaced": s.apply, "OrderStatusChanged": s.apply}}
}

// row is a view as it is stored.
type row struct {
	id, customerID, state, currency string
	total                           int64 // minor units
	version                         int64
	placedAt, updatedAt             time.Time
}

// apply takes the events in as if one by one, in one round trip for all.
func (s *Service) apply(ctx context.Context, tx pgx.Tx, events []*event.Event) error {
	views := map[string]row{}
	for _, e := range events {
		v, err := s.read(ctx, e)
		if err != nil {
			return err
		}
		if old, ok := views[v.id]; ok {
			if v.placedAt = old.placedAt; v.version <= old.version {
				continue
			}
		}
		views[v.id] = v
	}
	return save(ctx, tx, events, views)
}

var (
	states   = []string{"PENDING", "IN_PROGRESS", "COMPLETED", "FAILED"}
	currency = regexp.MustCompile(`^[A-Z]{3}$`)
)

// read returns the view that the event alone would make. Either type tells all that a view shows, so one
// whose OrderPlaced is a dead letter is there nevertheless, placed when first heard of.
func (s *Service) read(ctx context.Context, e *event.Event) (row, error) {
	at := readmodel.Occurred(e)
	v := row{version: e.AggregateVersion, placedAt: at, updatedAt: at}
	switch e.Type {
	case "OrderPlaced":
		var p schemas.OrderPlaced
		if err := s.decoder.Decode(ctx, e.Type, e.ContentType, e.Value, &p); err != nil {
			return row{}, err
		}
		v.id, v.customerID, v.state, v.total, v.currency = p.OrderID, p.CustomerID, states[0], p.TotalAmount, p.Currency
		v.version = max(v.version, 1) // it is the first that there is to tell, also when it does not say so
	case "OrderStatusChanged":
		var c schemas.OrderStatusChanged
		if err := s.decoder.Decode(ctx, e.Type, e.ContentType, e.Value, &c); err != nil {
			return row{}, err
		}
		v.id, v.customerID, v.state, v.total, v.currency = c.OrderID, c.CustomerID, c.State, c.TotalAmount, c.Currency
	}
	return v, v.check(e)
}

// check permanently refuses what no order can be. Whoever writes to the topic by hand may write it.
func (v row) check(e *event.Event) error {
	switch {
	case !httpapi.ID.Valid(v.id), !httpapi.Stored.Valid(v.customerID):
		return event.Permanentf("%s names no order or no customer", e.Type)
	case v.version < 1:
		return event.Permanentf("%s has no aggregate_version: nobody can know whether it is newer", e.Type)
	case !slices.Contains(states, v.state):
		return event.Permanentf("%s tells a state that is not known here", e.Type)
	case v.total < 0, !currency.MatchString(v.currency):
		return event.Permanentf("%s tells a total that is no amount of money", e.Type)
	}
	return nil
}

const upsertSQL = `
INSERT INTO order_views AS v (id, customer_id, state, total_amount, currency, version, placed_at, updated_at)
SELECT *
FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::bigint[], $7::timestamptz[], $8::timestamptz[])
ON CONFLICT (id) DO UPDATE
SET state = excluded.state,
    version = excluded.version,
    updated_at = excluded.updated_at
WHERE v.version < excluded.version`

// save writes the views in the order of their ids, so that two transactions do not deadlock.
func save(ctx context.Context, tx pgx.Tx, events []*event.Event, views map[string]row) error {
	var (
		ids, customers, states, currencies []string
		totals, versions                   []int64
		placed, updated                    []time.Time
	)
	for _, id := range slices.Sorted(maps.Keys(views)) {
		v := views[id]
		ids, customers, states = append(ids, v.id), append(customers, v.customerID), append(states, v.state)
		totals, currencies, versions = append(totals, v.total), append(currencies, v.currency), append(versions, v.version)
		placed, updated = append(placed, v.placedAt), append(updated, v.updatedAt)
	}
	var batch pgx.Batch
	readmodel.QueueAdvance(&batch, events)
	batch.Queue(upsertSQL, ids, customers, states, totals, currencies, versions, placed, updated)
	if err := pipeline.Send(ctx, tx, &batch); err != nil {
		return fmt.Errorf("saving order views: %w", err)
	}
	return nil
}
