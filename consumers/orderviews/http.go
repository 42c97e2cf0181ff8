package orderviews

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"converge/consumers/readmodel"
	"converge/producers/httpapi"
)

// Routes adds what the read model answers to the API.
func (s *Service) Routes(api *httpapi.API) {
	waits := readmodel.NewWaits(api, s.pool, "order_views", "id", s.viewWait)
	api.Handle("GET /order-views", func(w http.ResponseWriter, r *http.Request) error { return s.list(api, waits, w, r) })
	api.Handle("GET /order-views/{id}", func(w http.ResponseWriter, r *http.Request) error { return s.get(api, waits, w, r) })
}

// view is an order as the read model shows it.
type view struct {
	ID         string    `json:"id"`
	CustomerID string    `json:"customer_id"`
	State      string    `json:"state"`
	Total      money     `json:"total"`
	Version    int64     `json:"version"`
	UpdatedAt  time.Time `json:"updated_at"`

	placedAt time.Time
	tenant   string
}

type money struct {
	Amount   int64  `json:"amount"` // minor units
	Currency string `json:"currency"`
}

const columns = `id, customer_id, state, total_amount, currency, version, updated_at, placed_at`

func scan(r pgx.CollectableRow) (view, error) {
	var v view
	err := r.Scan(&v.ID, &v.CustomerID, &v.State, &v.Total.Amount, &v.Total.Currency, &v.Version, &v.UpdatedAt, &v.placedAt)
	v.UpdatedAt = v.UpdatedAt.UTC()
	v.tenant, v.CustomerID = httpapi.TenantOf(v.CustomerID), httpapi.Bare(v.CustomerID)
	return v, err
}

const oneSQL = `
SELECT ` + columns + `
FROM order_views
WHERE id = $1`

// get answers GET /order-views/{id}. Read-Model-Version is the order's version, 0 when there is none.
func (s *Service) get(api *httpapi.API, waits *readmodel.Waits, w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("id")
	if !httpapi.ID.Valid(id) {
		return noView()
	}
	wanted, err := api.ReadToken(r, "orders/"+id)
	if err != nil {
		return err
	}
	standing, err := waits.Await(w, r, id, wanted)
	if err != nil {
		return err
	}
	found, progress, err := s.query(r, oneSQL, id)
	if err != nil {
		return err
	}
	var v view
	if len(found) > 0 && found[0].tenant == httpapi.Tenant(r.Context()) {
		v = found[0]
	}
	readmodel.Tell(w, v.Version, progress.Lag)
	if err := standing.Refuse(v.Version > 0); err != nil {
		return err
	}
	if v.Version == 0 {
		return noView()
	}
	return write(w, v)
}

func noView() error {
	return httpapi.Fail(httpapi.NotFound, "the read model has not heard of such an order, or not yet")
}

// query returns the views and how far the model is, in one round trip.
func (s *Service) query(r *http.Request, sql string, args ...any) ([]view, readmodel.Progress, error) {
	var found []view
	var progress readmodel.Progress
	var batch pgx.Batch
	readmodel.QueueRead(&batch, &progress)
	batch.Queue(sql, args...).Query(func(rows pgx.Rows) (err error) {
		found, err = pgx.CollectRows(rows, scan)
		return err
	})
	if err := s.pool.SendBatch(r.Context(), &batch).Close(); err != nil {
		return nil, progress, fmt.Errorf("reading order views: %w", err)
	}
	return found, progress, nil
}

// page is a part of a list, newest first.
type page struct {
	Items      []view `json:"items"`
	NextCursor string `json:"next_cursor,omitempty"` // "" at the end
}

const (
	// The tenant is written as the index has it: order_views_of_tenant.
	allSQL = `
SELECT ` + columns + `
FROM order_views
WHERE (placed_at, id) < ($1, $2)
  AND left(customer_id, greatest(strpos(customer_id, '/') - 1, 0)) = $4
ORDER BY placed_at DESC, id DESC
LIMIT $3`
	ofCustomerSQL = `
SELECT ` + columns + `
FROM order_views
WHERE (placed_at, id) < ($1, $2)
  AND customer_id = $4
ORDER BY placed_at DESC, id DESC
LIMIT $3`
)

// list answers GET /order-views, of the orders of a tenant. Read-Model-Version is how many changes the model has
// taken in: it grows whenever any list may have changed. With the Consistency-Token of any order it waits for that
// order. A list is always there: still behind, it is as it is, or 503 for who is strict.
func (s *Service) list(api *httpapi.API, waits *readmodel.Waits, w http.ResponseWriter, r *http.Request) error {
	q, err := readQuery(r.URL.RawQuery)
	if err != nil {
		return err
	}
	order, wanted, err := api.ReadTokenOf(r, "orders")
	if err != nil {
		return err
	}
	standing, err := waits.Await(w, r, order, wanted)
	if err != nil {
		return err
	}
	sql, args := allSQL, []any{q.before.placedAt, q.before.id, q.limit + 1, httpapi.Tenant(r.Context())}
	if q.customerID != "" {
		sql, args[3] = ofCustomerSQL, httpapi.Own(r.Context(), q.customerID)
	}
	found, progress, err := s.query(r, sql, args...)
	if err != nil {
		return err
	}
	readmodel.Tell(w, progress.Changes, progress.Lag)
	if err := standing.Refuse(true); err != nil {
		return err
	}
	p := page{Items: found}
	if len(found) > q.limit {
		last := found[q.limit-1]
		p.Items, p.NextCursor = found[:q.limit], cursor{last.placedAt, last.ID}.String()
	}
	if p.Items == nil {
		p.Items = []view{}
	}
	return write(w, p)
}

const (
	defaultLimit = 20
	maxLimit     = 100
)

type query struct {
	customerID string // "" is every customer
	limit      int
	before     cursor
}

func readQuery(raw string) (query, error) {
	q := query{limit: defaultLimit, before: newest}
	given, err := url.ParseQuery(raw)
	if err != nil { // what cannot be read may have been a filter: without it the answer would be everybody's
		return q, httpapi.Fail(httpapi.ValidationFailed, "the query string is not well formed")
	}
	for _, name := range []string{"customer_id", "limit", "cursor"} {
		if len(given[name]) > 1 {
			return q, refuse(name, "stands more than once")
		}
	}
	if given.Has("customer_id") {
		if q.customerID = given.Get("customer_id"); !httpapi.ID.Valid(q.customerID) {
			return q, refuse("customer_id", httpapi.ID.Detail)
		}
	}
	if given.Has("limit") {
		n, err := strconv.Atoi(given.Get("limit"))
		if err != nil || n < 1 || n > maxLimit {
			return q, refuse("limit", fmt.Sprintf("must be an integer between 1 and %d", maxLimit))
		}
		q.limit = n
	}
	if given.Has("cursor") {
		var err error
		if q.before, err = parseCursor(given.Get("cursor")); err != nil {
			return q, refuse("cursor", "must be the next_cursor of an earlier page")
		}
	}
	return q, nil
}

func refuse(name, detail string) error {
	return httpapi.Fail(httpapi.ValidationFailed, "the query parameter "+name+" "+detail)
}

// cursor is where a page ended. It names a place in the order of all views, not a row: the page after it is
// the same whether or not the row changes. With another customer_id the list goes on from that place.
type cursor struct {
	placedAt time.Time
	id       string
}

// newest is before every view: PostgreSQL keeps microseconds, up to the year 294276.
var newest = cursor{placedAt: time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)}

// String returns the cursor as clients are given it: opaque, so that it may change.
func (c cursor) String() string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(c.placedAt.UnixMicro(), 10) + "." + c.id))
}

var errCursor = errors.New("not a cursor")

func parseCursor(text string) (cursor, error) {
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return cursor{}, errCursor
	}
	micros, id, ok := strings.Cut(string(raw), ".")
	n, err := strconv.ParseInt(micros, 10, 64)
	if !ok || err != nil || !httpapi.ID.Valid(id) {
		return cursor{}, errCursor
	}
	c := cursor{time.UnixMicro(n), id}
	if c.placedAt.After(newest.placedAt) || c.placedAt.Before(time.Time{}) {
		return cursor{}, errCursor // beyond what a database keeps
	}
	return c, nil
}

func write(w http.ResponseWriter, v any) error {
	response, err := httpapi.JSON(http.StatusOK, v, nil)
	if err != nil {
		return err
	}
	return response.Write(w)
}
