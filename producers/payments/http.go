package payments

import (
	"context"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"converge/producers/catalog"
	"converge/producers/httpapi"
)

// Routes adds what Payments answers to the API.
func (s *Service) Routes(api *httpapi.API) {
	api.Handle("POST /payments", api.Idempotent(s.pool, "payments.pay", s.post(api)))
	api.Handle("GET /payments", s.list)
	api.Handle("GET /payments/{id}", s.get(api.Watch(s.pool, versionsSQL)))
}

// body is a payment.
type body struct {
	ID        uuid.UUID `json:"id"`
	ReceiptID string    `json:"receipt_id"`
	OrderID   string    `json:"order_id"`
	Amount    int64     `json:"amount"` // minor units
	Currency  string    `json:"currency"`
	State     State     `json:"state"`
	CreatedAt time.Time `json:"created_at"`
	History   []change  `json:"history"`
}

func bodyOf(p *payment) body {
	return body{p.id, "R-" + p.id.String(), p.orderID, *p.terms.amount, p.terms.currency, p.state, p.createdAt.UTC(), p.history}
}

var currency = httpapi.Matching(`^[A-Z]{3}$`, "must be an ISO 4217 code, as in USD")

// post returns the effect of POST /payments. The slow and the failing card act in sagas only.
func (s *Service) post(api *httpapi.API) httpapi.Effect {
	return func(ctx context.Context, tx pgx.Tx, _ *http.Request, b *httpapi.Body) (httpapi.Response, error) {
		o := b.Object()
		orderID := o.IDOrNumber("order_id")
		amount := o.Int("amount", 1, httpapi.MaxInt)
		terms := terms{
			amount:   &amount,
			currency: o.OptionalString("currency", catalog.Currency, currency),
			method:   o.OptionalString("payment_method", catalog.CardOK, httpapi.OneOf(catalog.PaymentMethods()...)),
		}
		if err := b.Err(); err != nil {
			return httpapi.Response{}, err
		}
		if terms.method == catalog.CardDeclined {
			return httpapi.Refusal("payment-declined", "")
		}
		p, err := insert(ctx, tx, httpapi.Tenant(ctx), orderID, terms)
		if err != nil {
			return httpapi.Response{}, err
		}
		return httpapi.JSON(http.StatusCreated, bodyOf(p), map[string]string{
			"Location":          "/payments/" + p.id.String(),
			"ETag":              httpapi.ETag(p.version),
			"Consistency-Token": api.Token("payments/"+p.id.String(), p.version),
		})
	}
}

// get returns the handler that shows a payment, and waits for its next version under Prefer: wait.
func (s *Service) get(watch *httpapi.Watch) httpapi.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		p, err := s.lookup(r)
		if err != nil {
			return err
		}
		waited, err := watch.Await(w, r, p.id.String(), p.version, p.final())
		if err == nil && waited {
			p, err = s.lookup(r)
		}
		if err != nil {
			return err
		}
		w.Header().Set("Cache-Control", "no-cache")
		if httpapi.NotModified(w, r, p.version) {
			return nil
		}
		return write(w, bodyOf(p))
	}
}

// lookup returns the payment of the request's path.
func (s *Service) lookup(r *http.Request) (*payment, error) {
	id, ok := httpapi.PathID(r)
	if !ok {
		return nil, noPayment()
	}
	found, err := read(r.Context(), s.pool, oneSQL, id)
	if err == nil && len(found) == 0 {
		err = noPayment()
	}
	if err != nil {
		return nil, err
	}
	return found[0], nil
}

func noPayment() error { return httpapi.Fail(httpapi.NotFound, "there is no such payment") }

// list answers GET /payments?order_id=: what was ever asked for an order, oldest first.
func (s *Service) list(w http.ResponseWriter, r *http.Request) error {
	orders := r.URL.Query()["order_id"]
	if len(orders) != 1 || !catalog.ValidID(orders[0]) {
		return httpapi.Fail(httpapi.ValidationFailed, "the query must name one order_id")
	}
	found, err := read(r.Context(), s.pool, ofOrderSQL, orders[0])
	if err != nil {
		return err
	}
	items := []body{}
	for _, p := range found {
		items = append(items, bodyOf(p))
	}
	return write(w, map[string]any{"items": items})
}

func write(w http.ResponseWriter, v any) error {
	response, err := httpapi.JSON(http.StatusOK, v, nil)
	if err != nil {
		return err
	}
	return response.Write(w)
}
