package transfers

import (
	"context"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"converge/producers/catalog"
	"converge/producers/httpapi"
)

// Routes adds what Transfers answers to the API.
func (s *Service) Routes(api *httpapi.API) {
	api.Handle("POST /transfers", api.Idempotent(s.pool, "transfers.request", s.postTransfer(api)))
	api.Follow("/transfers", s.progress())
	api.Handle("POST /accounts", api.Idempotent(s.pool, "accounts.open", s.postAccount(api)))
	api.Handle("GET /accounts/{id}", s.getAccount)
}

// progress says how transfers are followed. One is of the tenant whose account pays.
func (s *Service) progress() httpapi.Progress {
	return httpapi.Progress{Name: "transfer", Pool: s.pool, VersionsSQL: versionsSQL, P90: s.metrics.P90,
		Find: func(ctx context.Context, id uuid.UUID) (*httpapi.Followed, error) {
			v, found, err := find(ctx, s.pool, id)
			if err != nil || !found || !httpapi.Owns(ctx, v.terms.from) {
				return nil, err
			}
			return v.followed(), nil
		}}
}

// accepted is the answer to POST /transfers.
type accepted struct {
	ID        uuid.UUID `json:"id"`
	State     string    `json:"state"`
	Version   int64     `json:"version"`
	StatusURL string    `json:"status_url"`
	CreatedAt time.Time `json:"created_at"`
}

// body is a transfer whole.
type body struct {
	httpapi.Status
	FromAccount string   `json:"from_account"`
	ToAccount   string   `json:"to_account"`
	Amount      int64    `json:"amount"` // minor units
	Currency    string   `json:"currency"`
	History     []change `json:"history"`
}

// followed returns the transfer as it is and as it was at every version. Each entry of its history is one, and no
// version changes anything else that is shown.
func (v *view) followed() *httpapi.Followed {
	f := &httpapi.Followed{CreatedAt: v.createdAt}
	reason := ""
	for _, c := range v.history {
		if c.State.Fails() {
			reason = v.saga.Reason
		}
		f.Add(v.id, c.State.Public(), string(c.State), reason, c.At)
	}
	if len(f.Past) > 0 {
		f.Whole = body{Status: f.Now(), FromAccount: httpapi.Bare(v.terms.from), ToAccount: httpapi.Bare(v.terms.to), Amount: v.terms.amount,
			Currency: v.terms.currency, History: v.history}
	}
	return f
}

var currency = httpapi.Matching(`^[A-Z]{3}$`, "must be an ISO 4217 code, as in USD")

// postTransfer returns the effect of POST /transfers. What only the Ledger can know, whether the money is there,
// is not asked here.
func (s *Service) postTransfer(api *httpapi.API) httpapi.Effect {
	return func(ctx context.Context, tx pgx.Tx, _ *http.Request, b *httpapi.Body) (httpapi.Response, error) {
		asked, known, err := readTransfer(ctx, tx, b)
		if err != nil {
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
		}, map[string]string{"Location": location, "ETag": httpapi.ETag(v.version), "Consistency-Token": api.Token("transfers/"+v.id.String(), v.version)})
	}
}

// readTransfer reads the body of POST /transfers, and says of everything that is wrong with it. known are those of
// the accounts that are open.
func readTransfer(ctx context.Context, tx pgx.Tx, b *httpapi.Body) (asked terms, known []account, err error) {
	o := b.Object()
	asked = terms{
		from:     o.String("from_account", httpapi.ID),
		to:       o.String("to_account", httpapi.ID),
		amount:   o.Int("amount", 1, httpapi.MaxInt),
		currency: o.OptionalString("currency", catalog.Currency, currency),
	}
	if asked.from != "" && asked.from == asked.to {
		o.Fail("to_account", "must not be the account that pays")
	}
	asked.from, asked.to = httpapi.Own(ctx, asked.from), httpapi.Own(ctx, asked.to)
	if known, err = findAccounts(ctx, tx, asked.from, asked.to); err != nil {
		return asked, nil, err
	}
	for _, a := range known {
		if asked.currency != "" && asked.currency != a.currency {
			o.Fail("currency", "must be the currency of the accounts")
			break
		}
	}
	return asked, known, b.Err()
}

// accountBody is an account. Its balance is what the Ledger last said; when a transfer has ended, what it did
// is in it.
type accountBody struct {
	ID       string `json:"id"`
	Currency string `json:"currency"`
	Balance  int64  `json:"balance"` // minor units
	Version  int64  `json:"version"`
}

func accountBodyOf(a account) accountBody {
	return accountBody{httpapi.Bare(a.id), a.currency, a.balance, a.version}
}

// postAccount returns the effect of POST /accounts.
func (s *Service) postAccount(api *httpapi.API) httpapi.Effect {
	return func(ctx context.Context, tx pgx.Tx, _ *http.Request, b *httpapi.Body) (httpapi.Response, error) {
		o := b.Object()
		id := o.String("id", httpapi.ID)
		a := account{
			id:       httpapi.Own(ctx, id),
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
			"Location":          "/accounts/" + id,
			"ETag":              httpapi.ETag(a.version),
			"Consistency-Token": api.Token("accounts/"+a.id, a.version),
		})
	}
}

func (s *Service) getAccount(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("id")
	if !catalog.ValidID(id) {
		return noAccount()
	}
	found, err := findAccounts(r.Context(), s.pool, httpapi.Own(r.Context(), id))
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
