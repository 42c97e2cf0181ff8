package readmodel

import (
	"net/http"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"converge/producers/httpapi"
)

// DefaultWait is how long a read waits for what its token names.
const DefaultWait = 2 * time.Second

// Waits lets reads of a table wait until it shows the version that their token names. It is safe for concurrent
// use.
type Waits struct {
	watch *httpapi.Watch
	most  time.Duration
}

// NewWaits returns the waits for the column version of the table, whose rows are told apart by the column key.
// most is for reads that do not say how long; 0 means [DefaultWait].
func NewWaits(api *httpapi.API, pool *pgxpool.Pool, table, key string, most time.Duration) *Waits {
	if most == 0 {
		most = DefaultWait
	}
	return &Waits{api.Watch(pool, "SELECT "+key+", version FROM "+table+" WHERE "+key+" = ANY($1)"), most}
}

// Standing is where the model is, for a reader with a token.
type Standing int

const (
	Fresh   Standing = iota // it shows what the token names; or there is no token
	Behind                  // it does not, and the reader takes what is there
	Lagging                 // it does not, and the reader said handling=strict
)

// Await waits until the table shows the version of the row, at most as long as the reader prefers, and says in
// Preference-Applied what it went by. Version 0 is what there is without a token: it does not wait.
//
// A read that begins after Await has returned Fresh sees that version or a newer one: versions of a row do not go back.
func (v *Waits) Await(w http.ResponseWriter, r *http.Request, id string, version int64) (Standing, error) {
	if version == 0 {
		return Fresh, nil
	}
	p := httpapi.ReadPreference(r)
	wait := v.most
	if p.Waits {
		wait = p.Wait
	}
	p.Waited(w)
	if p.Strict {
		w.Header().Add("Preference-Applied", "handling=strict")
	}
	switch reached, err := v.watch.Reach(r, id, version, wait); {
	case err != nil:
		return Behind, err
	case reached:
		return Fresh, nil
	case p.Strict:
		return Lagging, nil
	}
	return Behind, nil
}

// Refuse returns read-model-lagging when the reader is to have no answer: it is strict, or nothing is there yet.
func (s Standing) Refuse(there bool) error {
	if s == Lagging || s == Behind && !there {
		e := httpapi.Fail(httpapi.ReadModelLagging, "")
		e.Header = http.Header{"Retry-After": {"1"}}
		return e
	}
	return nil
}
