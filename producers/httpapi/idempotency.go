package httpapi

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

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
// stays free.
type Effect func(ctx context.Context, tx pgx.Tx, r *http.Request, body *Body) (Response, error)

const (
	claimKeySQL = `
INSERT INTO idempotency_keys (tenant, operation, key, fingerprint)
VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING`
	// A purged row is expired also for who keeps answers longer than the process that purged it.
	storedKeySQL = `
SELECT fingerprint, status, headers, body, fingerprint = '' OR created_at <= now() - $4::interval
FROM idempotency_keys
WHERE tenant = $1 AND operation = $2 AND key = $3`
	answerKeySQL = `
UPDATE idempotency_keys
SET status = $4, headers = $5, body = $6
WHERE tenant = $1 AND operation = $2 AND key = $3`
)

// Idempotent returns a handler that has the effect once per Idempotency-Key
// (draft-ietf-httpapi-idempotency-key-header). Key, effect and answer commit together. A request that
// meets another with its key waits for that one's end; the unique index does the waiting. A key is one tenant's,
// for one operation. After [Config.KeyRetention] its answer is no longer given, and its effect still not repeated.
func (a *API) Idempotent(pool *pgxpool.Pool, operation string, effect Effect) Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		raw, err := a.readRaw(w, r)
		if err != nil {
			return err
		}
		if err := checkMedia(r); err != nil {
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
		count := func(result string) { a.metrics.idempotency.WithLabelValues(route, result).Inc() }
		response, replayed, err := a.once(r, pool, operation, key, body, effect)
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
}

func isProblem(err error, name string) bool {
	var e *Error
	return errors.As(err, &e) && e.Problem.Type == "/problems/"+name
}

func (a *API) once(r *http.Request, pool *pgxpool.Pool, operation, key string, body *Body, effect Effect) (response Response, replayed bool, err error) {
	// An effect that has begun is finished: a client that leaves must find the same answer later.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), a.cfg.BodyTime+a.cfg.KeyWait)
	defer cancel()
	tenant, fingerprint := Tenant(ctx), fingerprintOf(r, body.raw)
	var claimed bool
	tx, err := pipeline.Begin(ctx, pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(batch *pgx.Batch) {
		batch.Queue("SELECT set_config('lock_timeout', $1, true)", fmt.Sprintf("%dms", a.cfg.KeyWait.Milliseconds()))
		batch.Queue(claimKeySQL, tenant, operation, key, fingerprint).Exec(func(tag pgconn.CommandTag) error {
			claimed = tag.RowsAffected() == 1
			return nil
		})
	})
	switch {
	case lockTimeout(err): // any other lock that the effect waits for is not the key's
		return Response{}, false, Fail(KeyInFlight, "").retryAfter(1)
	case err != nil:
		return Response{}, false, fmt.Errorf("claiming an idempotency key: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // after a commit it does nothing
	if !claimed {
		// A statement of its own: its snapshot is newer than the wait.
		response, err = a.replay(ctx, tx, operation, key, fingerprint)
		return response, true, err
	}
	if response, err = effect(ctx, tx, r, body); err != nil {
		return Response{}, false, err
	}
	headers, err := json.Marshal(response.Header)
	if err != nil {
		return Response{}, false, fmt.Errorf("storing an answer: %w", err)
	}
	if err := pipeline.Exec(ctx, tx, answerKeySQL, tenant, operation, key, response.Status, string(headers), response.Body); err != nil {
		return Response{}, false, fmt.Errorf("storing an answer: %w", err)
	}
	if err := tx.Commit(ctx); err != nil {
		return Response{}, false, fmt.Errorf("committing an effect: %w", err)
	}
	return response, false, nil
}

// replay returns the stored answer. What was created then is 200 now. Of an expired key there is only to say
// where its resource is; what the retry asks for does not matter any more.
func (a *API) replay(ctx context.Context, tx pgx.Tx, operation, key string, fingerprint []byte) (Response, error) {
	var response Response
	var stored, headers []byte
	var expired bool
	if err := tx.QueryRow(ctx, storedKeySQL, Tenant(ctx), operation, key, a.cfg.KeyRetention).
		Scan(&stored, &response.Status, &headers, &response.Body, &expired); err != nil {
		return Response{}, fmt.Errorf("reading a stored answer: %w", err)
	}
	if !expired && string(stored) != string(fingerprint) {
		return Response{}, Fail(KeyReused, "")
	}
	if err := json.Unmarshal(headers, &response.Header); err != nil {
		return Response{}, fmt.Errorf("reading a stored answer: %w", err)
	}
	if expired {
		e := Fail(KeyExpired, fmt.Sprintf("answers are kept for %v", a.cfg.KeyRetention))
		e.Problem.Resource = response.Header["Location"]
		return Response{}, e
	}
	if response.Status == http.StatusCreated {
		response.Status = http.StatusOK
	}
	return response, nil
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
