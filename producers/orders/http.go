package orders

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"converge/producers/catalog"
	"converge/producers/httpapi"
)

// Routes adds what Orders answers to the API.
func (s *Service) Routes(api *httpapi.API) {
	api.Handle("POST /orders", api.Idempotent(s.pool, "orders.place", s.post(api)))
	api.Follow("/orders", s.progress())
	api.Handle("DELETE /orders/{id}", func(w http.ResponseWriter, r *http.Request) error { return s.delete(api, w, r) })
}

// progress says how orders are followed.
func (s *Service) progress() httpapi.Progress {
	return httpapi.Progress{Name: "order", Pool: s.pool, VersionsSQL: versionsSQL, P90: s.metrics.P90,
		Find: func(ctx context.Context, id uuid.UUID) (*httpapi.Followed, error) {
			v, found, err := find(ctx, s.pool, id)
			if err != nil || !found || !httpapi.Owns(ctx, v.customerID) {
				return nil, err
			}
			return v.followed(), nil
		}}
}

// accepted is the answer to POST /orders.
type accepted struct {
	ID        uuid.UUID `json:"id"`
	State     string    `json:"state"`
	Version   int64     `json:"version"`
	StatusURL string    `json:"status_url"`
	CreatedAt time.Time `json:"created_at"`
}

// body is an order whole.
type body struct {
	httpapi.Status
	CustomerID string   `json:"customer_id"`
	Items      []item   `json:"items"`
	Total      money    `json:"total"`
	History    []change `json:"history"`
}

type money struct {
	Amount   int64  `json:"amount"` // minor units
	Currency string `json:"currency"`
}

// followed returns the order as it is and as it was at every version. Each entry of its history is one, and no
// version changes anything else that is shown.
func (v *view) followed() *httpapi.Followed {
	f := &httpapi.Followed{CreatedAt: v.createdAt}
	for _, c := range v.history {
		f.Add(v.id, c.State.Public(), string(c.State), v.outcome.ReasonIn(c.State), c.At)
	}
	if len(f.Past) > 0 {
		f.Whole = body{Status: f.Now(), CustomerID: httpapi.Bare(v.customerID), Items: v.items, Total: money{v.total, v.currency}, History: v.history}
	}
	return f
}

// post returns the effect of POST /orders.
func (s *Service) post(api *httpapi.API) httpapi.Effect {
	return func(ctx context.Context, tx pgx.Tx, _ *http.Request, b *httpapi.Body) (httpapi.Response, error) {
		p, err := readPlacement(b)
		if err != nil {
			return httpapi.Response{}, err
		}
		p.customerID = httpapi.Own(ctx, p.customerID)
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
		}, map[string]string{"Location": location, "ETag": httpapi.ETag(v.version), "Consistency-Token": token(api, v)})
	}
}

// token returns what a read model that is to show the order is given.
func token(api *httpapi.API, v *view) string { return api.Token("orders/"+v.id.String(), v.version) }

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

func noOrder() error { return httpapi.Fail(httpapi.NotFound, "there is no such order") }

// delete answers DELETE /orders/{id}: 202 means that the order will end FAILED, cancelled.
func (s *Service) delete(api *httpapi.API, w http.ResponseWriter, r *http.Request) error {
	id, ok := httpapi.PathID(r)
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
	f := v.followed()
	s.progress().Advise(w, f)
	response, err := httpapi.JSON(http.StatusAccepted, f.Now(), map[string]string{"ETag": httpapi.ETag(v.version), "Consistency-Token": token(api, v)})
	if err != nil {
		return err
	}
	return response.Write(w)
}
