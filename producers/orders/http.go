package orders

import (
	"context"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"converge/producers/catalog"
	"converge/producers/httpapi"
)

// Routes adds what Orders answers to the API.
func (s *Service) Routes(api *httpapi.API) {
	api.Handle("POST /orders", api.Idempotent(s.pool, "orders.place", s.post))
	api.Handle("GET /orders/{id}", s.get(func(v *view) any { return s.orderBody(v) }))
	api.Handle("GET /orders/{id}/status", s.get(func(v *view) any { return statusOf(v) }))
	api.Handle("DELETE /orders/{id}", s.delete)
}

// accepted is the answer to POST /orders.
type accepted struct {
	ID        uuid.UUID `json:"id"`
	State     string    `json:"state"`
	Version   int64     `json:"version"`
	StatusURL string    `json:"status_url"`
	CreatedAt time.Time `json:"created_at"`
}

// status is what there is to know of an order's progress.
type status struct {
	ID          uuid.UUID        `json:"id"`
	State       string           `json:"state"`
	Reason      string           `json:"reason,omitempty"`
	DetailState State            `json:"detail_state"`
	Version     int64            `json:"version"`
	UpdatedAt   time.Time        `json:"updated_at"`
	Problem     *httpapi.Problem `json:"problem,omitempty"` // of a failed order
}

// body is an order whole.
type body struct {
	status
	CustomerID string   `json:"customer_id"`
	Items      []item   `json:"items"`
	Total      money    `json:"total"`
	History    []change `json:"history"`
}

type money struct {
	Amount   int64  `json:"amount"` // minor units
	Currency string `json:"currency"`
}

func statusOf(v *view) status {
	st := status{
		ID:          v.id,
		State:       v.state.Public(),
		Reason:      v.outcome.Reason(),
		DetailState: v.state,
		Version:     v.version,
		UpdatedAt:   v.updatedAt.UTC(),
	}
	if v.state == Failed {
		problem := httpapi.Outcome(v.outcome.Reason())
		st.Problem = &problem
	}
	return st
}

func (s *Service) orderBody(v *view) body {
	return body{status: statusOf(v), CustomerID: v.customerID, Items: v.items, Total: money{v.total, v.currency}, History: v.history}
}

// post is the effect of POST /orders.
func (s *Service) post(ctx context.Context, tx pgx.Tx, _ *http.Request, b *httpapi.Body) (httpapi.Response, error) {
	p, err := readPlacement(b)
	if err != nil {
		return httpapi.Response{}, err
	}
	v, err := s.place(ctx, tx, p)
	if err != nil {
		return httpapi.Response{}, err
	}
	location := "/orders/" + v.id.String()
	return httpapi.JSON(http.StatusAccepted, accepted{
		ID:        v.id,
		State:     v.state.Public(),
		Version:   v.version,
		StatusURL: location + "/status",
		CreatedAt: v.createdAt,
	}, map[string]string{"Location": location})
}

const (
	maxItems    = 50
	maxQuantity = 1000
)

var country = httpapi.Matching(`^[A-Z]{2}$`, "must be an ISO 3166-1 alpha-2 code, as in DE")

// readPlacement reads the body of POST /orders, and says of everything that is wrong with it.
func readPlacement(b *httpapi.Body) (placement, error) {
	o := b.Object()
	p := placement{customerID: o.String("customer_id", httpapi.ID)}
	o.Objects("items", 1, maxItems, func(_ int, line *httpapi.Object) {
		it := item{SKU: line.String("sku", httpapi.ID), Quantity: int(line.Int("quantity", 1, maxQuantity))}
		if it.SKU == "" {
			return
		}
		if _, known := catalog.Lookup(it.SKU); !known {
			line.Fail("sku", "must be one of the products at /products")
		}
		if slices.ContainsFunc(p.items, func(other item) bool { return other.SKU == it.SKU }) {
			line.Fail("sku", "must not stand in two items")
		}
		p.items = append(p.items, it)
	})
	p.method = o.OptionalString("payment_method", catalog.CardOK, httpapi.OneOf(catalog.PaymentMethods()...))
	p.country = catalog.DefaultCountry
	if to := o.OptionalObject("ship_to"); to != nil {
		p.country = to.String("country", country)
	}
	return p, b.Err()
}

// get returns the handler that shows an order.
func (s *Service) get(show func(*view) any) httpapi.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		v, err := s.lookup(r)
		if err != nil {
			return err
		}
		s.advise(w, v)
		if httpapi.NotModified(w, r, v.version) {
			return nil
		}
		response, err := httpapi.JSON(http.StatusOK, show(v), nil)
		if err != nil {
			return err
		}
		return response.Write(w)
	}
}

func (s *Service) lookup(r *http.Request) (*view, error) {
	id, ok := parseID(r.PathValue("id"))
	if !ok {
		return nil, noOrder()
	}
	v, found, err := find(r.Context(), s.pool, id)
	if err == nil && !found {
		err = noOrder()
	}
	return v, err
}

func noOrder() error { return httpapi.Fail(httpapi.NotFound, "there is no such order") }

// advise tells a client when to ask again: when nine of ten orders would have ended.
func (s *Service) advise(w http.ResponseWriter, v *view) {
	w.Header().Set("Cache-Control", "no-cache")
	if v.state.Terminal() {
		return
	}
	left := s.metrics.P90() - time.Since(v.createdAt)
	w.Header().Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(left.Seconds())))))
}

// delete answers DELETE /orders/{id}: 202 means that the order will end FAILED, cancelled.
func (s *Service) delete(w http.ResponseWriter, r *http.Request) error {
	id, ok := parseID(r.PathValue("id"))
	if !ok {
		return noOrder()
	}
	var v *view
	err := pgx.BeginFunc(r.Context(), s.pool, func(tx pgx.Tx) error {
		found, accepted, err := s.cancel(r.Context(), tx, id)
		switch {
		case err != nil:
			return err
		case !found:
			return noOrder()
		case !accepted:
			return httpapi.Fail(httpapi.TooLateToCancel, "")
		}
		v, _, err = find(r.Context(), tx, id)
		return err
	})
	if err != nil {
		return err
	}
	s.advise(w, v)
	response, err := httpapi.JSON(http.StatusAccepted, statusOf(v), map[string]string{"ETag": httpapi.ETag(v.version)})
	if err != nil {
		return err
	}
	return response.Write(w)
}
