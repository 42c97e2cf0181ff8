package transfers

import (
	"context"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"converge/producers/catalog"
	"converge/producers/httpapi"
)

// Routes adds what Transfers answers to the API.
func (s *Service) Routes(api *httpapi.API) {
	api.Handle("POST /transfers", api.Idempotent(s.pool, "transfers.request", s.postTransfer))
	api.Handle("GET /transfers/{id}", s.get(func(v *view) any { return bodyOf(v) }))
	api.Handle("GET /transfers/{id}/status", s.get(func(v *view) any { return statusOf(v) }))
	api.Handle("POST /accounts", api.Idempotent(s.pool, "accounts.open", s.postAccount))
	api.Handle("GET /accounts/{id}", s.getAccount)
}

// accepted is the answer to POST /transfers.
type accepted struct {
	ID        uuid.UUID `json:"id"`
	State     string    `json:"state"`
	Version   int64     `json:"version"`
	StatusURL string    `json:"status_url"`
	CreatedAt time.Time `json:"created_at"`
}

// status is what there is to know of a transfer's progress.
type status struct {
	ID          uuid.UUID        `json:"id"`
	State       string           `json:"state"`
	Reason      string           `json:"reason,omitempty"`
	DetailState State            `json:"detail_state"`
	Version     int64            `json:"version"`
	UpdatedAt   time.Time        `json:"updated_at"`
	Problem     *httpapi.Problem `json:"problem,omitempty"` // of a failed transfer
}

// body is a transfer whole.
type body struct {
	status
	FromAccount string   `json:"from_account"`
	ToAccount   string   `json:"to_account"`
	Amount      int64    `json:"amount"` // minor units
	Currency    string   `json:"currency"`
	History     []change `json:"history"`
}

func statusOf(v *view) status {
	st := status{
		ID:          v.id,
		State:       v.saga.State.Public(),
		Reason:      v.saga.Reason,
		DetailState: v.saga.State,
		Version:     v.version,
		UpdatedAt:   v.updatedAt.UTC(),
	}
	if v.saga.State == Failed {
		problem := httpapi.Outcome(v.saga.Reason)
		st.Problem = &problem
	}
	return st
}

func bodyOf(v *view) body {
	return body{status: statusOf(v), FromAccount: v.terms.from, ToAccount: v.terms.to, Amount: v.terms.amount, Currency: v.terms.currency, History: v.history}
}

var currency = httpapi.Matching(`^[A-Z]{3}$`, "must be an ISO 4217 code, as in USD")

// postTransfer is the effect of POST /transfers. What only the Ledger can know, whether the money is there,
// is not asked here.
func (s *Service) postTransfer(ctx context.Context, tx pgx.Tx, _ *http.Request, b *httpapi.Body) (httpapi.Response, error) {
	o := b.Object()
	asked := terms{
		from:     o.String("from_account", httpapi.ID),
		to:       o.String("to_account", httpapi.ID),
		amount:   o.Int("amount", 1, httpapi.MaxInt),
		currency: o.OptionalString("currency", catalog.Currency, currency),
	}
	if asked.from != "" && asked.from == asked.to {
		o.Fail("to_account", "must not be the account that pays")
	}
	known, err := findAccounts(ctx, tx, asked.from, asked.to)
	if err != nil {
		return httpapi.Response{}, err
	}
	for _, a := range known {
		if asked.currency != "" && asked.currency != a.currency {
			o.Fail("currency", "must be the currency of the accounts")
			break
		}
	}
	if err := b.Err(); err != nil {
		return httpapi.Response{}, err
	}
	v, err := s.request(ctx, tx, asked, known)
	if err != nil {
		return httpapi.Response{}, err
	}
	location := "/transfers/" + v.id.String()
	return httpapi.JSON(http.StatusAccepted, accepted{
		ID:        v.id,
		State:     v.saga.State.Public(),
		Version:   v.version,
		StatusURL: location + "/status",
		CreatedAt: v.createdAt,
	}, map[string]string{"Location": location})
}

// get returns the handler that shows a transfer.
func (s *Service) get(show func(*view) any) httpapi.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		id, ok := parseID(r.PathValue("id"))
		if !ok {
			return noTransfer()
		}
		v, found, err := find(r.Context(), s.pool, id)
		if err != nil {
			return err
		}
		if !found {
			return noTransfer()
		}
		s.advise(w, v)
		if httpapi.NotModified(w, r, v.version) {
			return nil
		}
		return write(w, show(v))
	}
}

func noTransfer() error { return httpapi.Fail(httpapi.NotFound, "there is no such transfer") }

// advise tells a client when to ask again: when nine of ten transfers would have ended.
func (s *Service) advise(w http.ResponseWriter, v *view) {
	w.Header().Set("Cache-Control", "no-cache")
	if v.saga.State.Terminal() {
		return
	}
	left := s.metrics.P90() - time.Since(v.createdAt)
	w.Header().Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(left.Seconds())))))
}

// accountBody is an account. Its balance is what the Ledger last said; when a transfer has ended, what it did
// is in it.
type accountBody struct {
	ID       string `json:"id"`
	Currency string `json:"currency"`
	Balance  int64  `json:"balance"` // minor units
	Version  int64  `json:"version"`
}

func accountBodyOf(a account) accountBody { return accountBody{a.id, a.currency, a.balance, a.version} }

// postAccount is the effect of POST /accounts.
func (s *Service) postAccount(ctx context.Context, tx pgx.Tx, _ *http.Request, b *httpapi.Body) (httpapi.Response, error) {
	o := b.Object()
	a := account{
		id:       o.String("id", httpapi.ID),
		currency: o.OptionalString("currency", catalog.Currency, currency),
		opening:  o.Int("opening_balance", 0, httpapi.MaxInt),
		version:  1,
	}
	a.balance = a.opening
	if err := b.Err(); err != nil {
		return httpapi.Response{}, err
	}
	taken, err := s.open(ctx, tx, a)
	if err != nil {
		return httpapi.Response{}, err
	}
	if taken {
		return httpapi.Refusal(httpapi.Conflict, "there is an account of this id")
	}
	return httpapi.JSON(http.StatusCreated, accountBodyOf(a), map[string]string{
		"Location": "/accounts/" + a.id,
		"ETag":     httpapi.ETag(a.version),
	})
}

func (s *Service) getAccount(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("id")
	if !catalog.ValidID(id) {
		return noAccount()
	}
	found, err := findAccounts(r.Context(), s.pool, id)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return noAccount()
	}
	if httpapi.NotModified(w, r, found[0].version) {
		return nil
	}
	return write(w, accountBodyOf(found[0]))
}

func noAccount() error { return httpapi.Fail(httpapi.NotFound, "there is no such account") }

func write(w http.ResponseWriter, v any) error {
	response, err := httpapi.JSON(http.StatusOK, v, nil)
	if err != nil {
		return err
	}
	return response.Write(w)
}
