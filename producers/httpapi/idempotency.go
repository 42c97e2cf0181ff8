package httpapi

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/internal/pipeline"
)

// Migrations creates idempotency_keys in the schema that search_path names first.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// Response is an answer that is rendered before its transaction commits, so that a retry gets the same
// bytes.
type Response struct {
	Status int
	Header map[string]string // Location, ETag and the like
	Body   []byte            // JSON
}

// JSON returns the response with v as its body.
func JSON(status int, v any, header map[string]string) (Response, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return Response{}, fmt.Errorf("writing a response: %w", err)
	}
	return Response{Status: status, Header: header, Body: body}, nil
}

// Refusal returns the response that says no for a reason of business: it is stored and replayed, with
// whatever the transaction holds. Anything else that is wrong is an error instead, which stores nothing.
func Refusal(name, detail string) (Response, error) {
	p := NewProblem(name, detail)
	return JSON(p.Status, p, map[string]string{"Content-Type": "application/problem+json"})
}

// Write sends the response.
func (r Response) Write(w http.ResponseWriter) error {
	for name, value := range r.Header {
		w.Header().Set(name, value)
	}
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	w.WriteHeader(r.Status)
	_, _ = w.Write(r.Body) // the client left: it asks again
	return nil
}

// Effect does what a request asks for, inside tx, and renders the answer. An error undoes it, and the key
// stays free. It may run before its key is known to be free, and all that it does is undone when the key is
// not; so it changes nothing but by tx, and leaves what is to be counted or told to [pipeline.After].
//
// An effect that waits for no statement's outcome takes one round trip to the database, COMMIT included, which
// under load it shares with others, and the transaction as well: its statements are quick and make no settings.
type Effect func(ctx context.Context, tx pgx.Tx, r *http.Request, body *Body) (Response, error)

// A key that is taken is an error of the claim's, 23505, after the wait for whoever has taken it: the statements
// behind it in the batch are passed over then. The wait is bounded by the statement itself: its WHERE is looked at
// before a row is written, and is one statement less.
const (
	claimKeySQL = `
INSERT INTO idempotency_keys (tenant, operation, key, fingerprint)
SELECT $1, $2, $3, $4
WHERE set_config('lock_timeout', $5, true) <> ''`
	claimAnsweredSQL = `
INSERT INTO idempotency_keys (tenant, operation, key, fingerprint, status, headers, body)
SELECT $1, $2, $3, $4, $6, $7, $8
WHERE set_config('lock_timeout', $5, true) <> ''`
	answerKeySQL = `
UPDATE idempotency_keys
SET status = $4, headers = $5, body = $6
WHERE tenant = $1 AND operation = $2 AND key = $3`
	// A purged row is expired also for who keeps answers longer than the process that purged it.
	storedKeySQL = `
SELECT fingerprint, status, headers, body, fingerprint = '' OR created_at <= now() - $4::interval
FROM idempotency_keys
WHERE tenant = $1 AND operation = $2 AND key = $3`
)

// Idempotent returns a handler that has the effect once per Idempotency-Key
// (draft-ietf-httpapi-idempotency-key-header). Key, effect and answer commit together. A request that
// meets another with its key waits for that one's end; the unique index does the waiting. A key is one tenant's,
// for one operation. After [Config.KeyRetention] its answer is no longer given, and its effect still not repeated.
func (a *API) Idempotent(pool *pgxpool.Pool, operation string, effect Effect) Handler {
	return newOnce(a, pool, operation, effect).handle
}

// once has the effect of one operation once per key. It is safe for concurrent use.
//
// The guarantee: a request is answered as fresh after its key, its effect and its answer have committed, in one
// transaction; whoever else brings the key is answered as a replay, or refused. Requests may share that
// transaction; what fails in a shared one is tried again alone, so that none fails for another's fault. It fails
// to hold for an effect that changes something other than by its transaction.
type once struct {
	api       *API
	pool      *pgxpool.Pool
	operation string
	effect    Effect
	claims    group[*claim]
	lookups   group[*lookup]
}

const (
	// lanes is how many transactions that requests share are under way at once, of one operation: while the database
	// flushes one, it can work on the next. More make them smaller.
	lanes = 2
	// shares bounds the requests in one.
	shares = 64
	// sharedWait is how long those that share a transaction wait for a lock that one of them needs.
	sharedWait = 5 * time.Millisecond
)

func newOnce(a *API, pool *pgxpool.Pool, operation string, effect Effect) *once {
	o := &once{api: a, pool: pool, operation: operation, effect: effect}
	o.claims = group[*claim]{run: o.commit, lanes: lanes, most: shares}
	o.lookups = group[*lookup]{run: o.look, lanes: lanes, most: shares}
	return o
}

func (o *once) handle(w http.ResponseWriter, r *http.Request) error {
	raw, err := o.api.readRaw(w, r)
	if err != nil {
		return err
	}
	if err := checkMedia(r, mediaJSON); err != nil {
		return err
	}
	key, err := readKey(r)
	if err != nil {
		return err
	}
	body, err := parseBody(raw)
	if err != nil {
		return err
	}
	_, route, _ := strings.Cut(r.Pattern, " ")
	count := func(result string) { o.api.metrics.idempotency.WithLabelValues(route, result).Inc() }
	response, replayed, err := o.answer(r, key, body)
	switch {
	case isProblem(err, KeyInFlight):
		count(keyInFlight)
		return err
	case isProblem(err, KeyReused):
		count(keyReused)
		return err
	case isProblem(err, KeyExpired):
		count(keyExpired)
		return err
	case err != nil:
		return err
	case replayed:
		count(keyReplayed)
		w.Header().Set("Idempotency-Replayed", "true")
	default:
		count(keyFresh)
	}
	return response.Write(w)
}

func isProblem(err error, name string) bool {
	var e *Error
	return errors.As(err, &e) && e.Problem.Type == "/problems/"+name
}

// claim is one request's wish to own a key.
type claim struct {
	tenant      string
	key         string // its digest
	fingerprint []byte
	held        bool // the key is its transaction's

	// Of an effect that waits for nothing:
	response   Response
	headers    []byte // the response's, in JSON
	statements []*pgx.QueuedQuery
	shared     bool // by the transaction that it was last in
}

func (c *claim) hold(pgconn.CommandTag) error {
	c.held = true
	return nil
}

// digest is what is stored of a key: PostgreSQL logs that of a row which is there already, and what clients send
// has no place there.
func digest(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:])
}

// wariness is after how many fresh keys in a row it is forgotten that keys come again. A key that comes again
// is cheaper to look up than to stumble over, one that is fresh need not be looked up; the index decides either
// way.
const wariness = 100

// answer has the effect, or finds the answer of the request that had it.
func (o *once) answer(r *http.Request, key string, body *Body) (response Response, replayed bool, err error) {
	// An effect that has begun is finished: a client that leaves must find the same answer later.
	ctx, cancel := o.bounded(r.Context())
	defer cancel()
	c := &claim{tenant: Tenant(ctx), key: digest(key), fingerprint: fingerprintOf(r, body.raw)}
	if o.api.wary.Load() > 0 {
		response, found, err := o.replay(ctx, c)
		if found || err != nil {
			return response, found, err
		}
		o.api.wary.Add(-1)
	}
	response, err = o.claim(ctx, c, r, body)
	switch {
	case err == nil:
		return response, false, nil
	case c.held: // what else goes wrong is not the key's
		return Response{}, false, err
	case lockTimeout(err):
		return Response{}, false, Fail(KeyInFlight, "").retryAfter(1)
	case !taken(err):
		return Response{}, false, fmt.Errorf("claiming an idempotency key: %w", err)
	}
	o.api.wary.Store(wariness)
	response, found, err := o.replay(ctx, c)
	if err == nil && !found {
		err = errors.New("a taken idempotency key is not there")
	}
	return response, true, err
}

// bounded returns a context that outlives the client, and ends when a request has taken as long as it may.
func (o *once) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), o.api.cfg.BodyTime+o.api.cfg.KeyWait)
}

// claim has the effect and commits it with the key and the answer. When it returns an error and the key is not
// held, the error is the claim's.
func (o *once) claim(ctx context.Context, c *claim, r *http.Request, body *Body) (Response, error) {
	tx := pipeline.Lazy(o.pool, func(batch *pgx.Batch) {
		batch.Queue(claimKeySQL, c.tenant, o.operation, c.key, c.fingerprint, milliseconds(o.api.cfg.KeyWait)).Exec(c.hold)
	})
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // after a commit it does nothing
	var err error
	if c.response, err = o.effect(ctx, tx, r, body); err != nil {
		if begin := tx.Start(ctx); begin != nil && !c.held { // whose key it is comes before what is wrong with the request
			return Response{}, begin
		}
		return Response{}, err
	}
	if c.headers, err = json.Marshal(c.response.Header); err != nil {
		c.held = true
		return Response{}, fmt.Errorf("storing an answer: %w", err)
	}
	if statements, committed, ok := tx.HandOver(); ok {
		c.statements = statements
		if err := o.share(ctx, c); err != nil {
			return Response{}, fmt.Errorf("committing an effect: %w", err)
		}
		committed()
		return c.response, nil
	}
	if err := pipeline.Exec(ctx, tx, answerKeySQL, c.tenant, o.operation, c.key, c.response.Status, string(c.headers), c.response.Body); err != nil {
		return Response{}, fmt.Errorf("storing an answer: %w", err)
	}
	if err := tx.Commit(ctx); err != nil {
		return Response{}, fmt.Errorf("committing an effect: %w", err)
	}
	return c.response, nil
}

// share commits a claim that waits for nothing, in a transaction with others that come at the same time. When
// that fails and the database is there, who of them is to blame shows when each is alone.
func (o *once) share(ctx context.Context, c *claim) error {
	err := o.claims.do(ctx, c)
	if err != nil && c.shared && !outage(err) {
		err = o.commit(ctx, []*claim{c})
	}
	return err
}

// commit commits the claims in one round trip: a pipeline up to its Sync is a transaction (PostgreSQL's
// documentation, 55.2.4, Pipelining).
func (o *once) commit(ctx context.Context, claims []*claim) error {
	ctx, cancel := o.bounded(ctx) // not by how long the first of them has waited
	defer cancel()
	shared, wait := len(claims) > 1, o.api.cfg.KeyWait
	if shared {
		wait = min(wait, sharedWait)
	}
	var batch pgx.Batch
	for _, c := range claims {
		c.held, c.shared = false, shared
		batch.Queue(claimAnsweredSQL, c.tenant, o.operation, c.key, c.fingerprint, milliseconds(wait),
			c.response.Status, string(c.headers), c.response.Body).Exec(c.hold)
		for _, s := range c.statements { // queued anew: once sent, a query knows its statement by a name of that connection's
			batch.Queue(s.SQL, s.Arguments...)
		}
	}
	return o.pool.SendBatch(ctx, &batch).Close()
}

func milliseconds(d time.Duration) string { return fmt.Sprintf("%dms", d.Milliseconds()) }

// taken reports SQLSTATE 23505.
func taken(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "23505"
}

// lookup is the question for a key's stored answer.
type lookup struct {
	of          *claim
	found       bool
	fingerprint []byte
	response    Response
	headers     []byte
	expired     bool
}

// look asks for several answers in one round trip.
func (o *once) look(ctx context.Context, lookups []*lookup) error {
	ctx, cancel := o.bounded(ctx)
	defer cancel()
	var batch pgx.Batch
	for _, l := range lookups {
		batch.Queue(storedKeySQL, l.of.tenant, o.operation, l.of.key, o.api.cfg.KeyRetention).QueryRow(func(row pgx.Row) error {
			err := row.Scan(&l.fingerprint, &l.response.Status, &l.headers, &l.response.Body, &l.expired)
			l.found = err == nil
			if errors.Is(err, pgx.ErrNoRows) {
				err = nil
			}
			return err
		})
	}
	return o.pool.SendBatch(ctx, &batch).Close()
}

// replay returns the stored answer, if there is one. What was created then is 200 now. Of an expired key there is
// only to say where its resource is; what the retry asks for does not matter any more.
func (o *once) replay(ctx context.Context, c *claim) (response Response, found bool, err error) {
	stored := &lookup{of: c}
	if err := o.lookups.do(ctx, stored); err != nil {
		return Response{}, false, fmt.Errorf("reading a stored answer: %w", err)
	}
	if !stored.found {
		return Response{}, false, nil
	}
	if !stored.expired && string(stored.fingerprint) != string(c.fingerprint) {
		return Response{}, false, Fail(KeyReused, "")
	}
	response = stored.response
	if err := jsonv2.Unmarshal(stored.headers, &response.Header); err != nil {
		return Response{}, false, fmt.Errorf("reading a stored answer: %w", err)
	}
	if stored.expired {
		e := Fail(KeyExpired, fmt.Sprintf("answers are kept for %v", o.api.cfg.KeyRetention))
		e.Problem.Resource = response.Header["Location"]
		return Response{}, false, e
	}
	if response.Status == http.StatusCreated {
		response.Status = http.StatusOK
	}
	return response, true, nil
}

// fingerprintOf tells requests apart that share a key: method, route and body. The media type without its
// parameters belongs to it too, and adds nothing while [checkMedia] lets one pass alone: the day a second one
// passes, it has to go in for that one only, or the keys that are stored belong to no request any more.
func fingerprintOf(r *http.Request, raw []byte) []byte {
	hash := sha256.New()
	fmt.Fprintf(hash, "%s\n%s\n", r.Method, r.URL.EscapedPath())
	hash.Write(raw)
	return hash.Sum(nil)
}

// maxKey bounds an Idempotency-Key, in characters.
const maxKey = 255

// readKey returns the Idempotency-Key: bare, or as a structured-field string (RFC 9651); both are one key.
func readKey(r *http.Request) (string, error) {
	values := r.Header.Values("Idempotency-Key")
	if len(values) == 0 || (len(values) == 1 && strings.TrimSpace(values[0]) == "") {
		return "", Fail(KeyMissing, "")
	}
	if len(values) > 1 {
		return "", Fail(KeyInvalid, "the header stands more than once")
	}
	key := strings.TrimSpace(values[0])
	if strings.HasPrefix(key, `"`) {
		inner, ok := unquote(key)
		if !ok {
			return "", Fail(KeyInvalid, "the quoted string is not well formed")
		}
		key = inner
	}
	if key == "" || len(key) > maxKey {
		return "", Fail(KeyInvalid, "a key has 1 to 255 characters")
	}
	for _, c := range []byte(key) {
		if c < 0x20 || c > 0x7e {
			return "", Fail(KeyInvalid, "a key is printable ASCII")
		}
	}
	return key, nil
}

func unquote(text string) (string, bool) {
	if len(text) < 2 || !strings.HasSuffix(text, `"`) {
		return "", false
	}
	var out strings.Builder
	inner := text[1 : len(text)-1]
	for i := 0; i < len(inner); i++ {
		c := inner[i]
		switch {
		case c == '"':
			return "", false
		case c == '\\':
			i++
			if i == len(inner) || (inner[i] != '"' && inner[i] != '\\') {
				return "", false
			}
			c = inner[i]
		}
		out.WriteByte(c)
	}
	return out.String(), true
}
