package httpapi

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"

	"converge/consumers/event"
	"converge/producers/outbox"
)

// Config is what an [API] needs. The zero Config does.
type Config struct {
	Logger     *slog.Logger          // nil: slog.Default()
	Registerer prometheus.Registerer // nil: metrics are kept but nowhere shown
	// AllowRemote answers requests for any host name. Without it, and without Tokens, only those for a loopback
	// name or address are answered, so that a page that rebinds its name to this machine gets nothing. A page has
	// no token.
	AllowRemote bool
	// MaxBody bounds a body, in bytes; 0 means 64 KiB.
	MaxBody int64
	// BodyTime bounds how long a body may take to arrive; 0 means 10 s.
	BodyTime time.Duration
	// MaxInFlight bounds the requests that are processed at once; 0 means 512.
	MaxInFlight int
	// MaxWaiting bounds the requests that wait for a change, streams among them, beside those that are
	// processed; 0 means 1024.
	MaxWaiting int
	// KeyWait bounds how long a request waits for another with its Idempotency-Key; 0 means 2 s.
	KeyWait time.Duration
	// KeyRetention is how long the answer for an Idempotency-Key is given again; 0 means 72 h. Whoever sends the
	// key later is told that it has expired. [Keys] forgets what is older.
	KeyRetention time.Duration
	// Tokens says who may ask; the zero Tokens lets everybody in.
	Tokens Tokens
	// TokenKey signs consistency tokens; processes that serve one database share it. nil: a random one, whose
	// tokens end with the process.
	TokenKey []byte
}

// Handler answers a request, or returns what went wrong: an [*Error] becomes its problem, trouble with the
// database 503, anything else 500. After writing to w it must return nil.
type Handler func(w http.ResponseWriter, r *http.Request) error

// API is a router whose every answer has the manners of this package. Add routes before it serves; serving
// is safe for concurrent use.
type API struct {
	cfg     Config
	mux     *http.ServeMux
	routes  []string
	public  map[string]bool // patterns that need no token
	slots   chan struct{}   // of those that are processed
	waiting chan struct{}   // of those that wait
	origin  *http.CrossOriginProtection
	metrics *metrics
	wary    atomic.Int64 // fresh keys to go until keys are no longer looked up before they are claimed
}

// New returns an API without routes but for the pages of problem types.
func New(cfg Config) (*API, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = 64 << 10
	}
	if cfg.BodyTime == 0 {
		cfg.BodyTime = 10 * time.Second
	}
	if cfg.MaxInFlight == 0 {
		cfg.MaxInFlight = 512
	}
	if cfg.MaxWaiting == 0 {
		cfg.MaxWaiting = 1024
	}
	if cfg.KeyWait == 0 {
		cfg.KeyWait = 2 * time.Second
	}
	if cfg.KeyRetention == 0 {
		cfg.KeyRetention = defaultKeyRetention
	}
	if cfg.TokenKey == nil {
		cfg.TokenKey = make([]byte, sha256.Size)
		_, _ = rand.Read(cfg.TokenKey) // never fails
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	a := &API{cfg: cfg, mux: http.NewServeMux(), public: map[string]bool{}, slots: make(chan struct{}, cfg.MaxInFlight),
		waiting: make(chan struct{}, cfg.MaxWaiting), origin: http.NewCrossOriginProtection(), metrics: m}
	a.HandlePublic("GET /problems/{type}", problemPage)
	return a, nil
}

// Handle adds a route, as http.ServeMux writes patterns: "POST /orders", "GET /orders/{id}".
func (a *API) Handle(pattern string, handle Handler) {
	method, path, ok := strings.Cut(pattern, " ")
	if !ok {
		panic("httpapi: the pattern " + pattern + " has no method")
	}
	a.routes = append(a.routes, pattern)
	a.metrics.prepare(method, path)
	a.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if err := handle(w, r); err != nil {
			a.fail(w, r, err)
		}
	})
}

// HandlePublic adds a route that answers without a token too: what is the same for everybody.
func (a *API) HandlePublic(pattern string, handle Handler) {
	a.public[pattern] = true
	a.Handle(pattern, handle)
}

// Routes returns the patterns of all routes, in the order in which they were added.
func (a *API) Routes() []string { return append([]string{}, a.routes...) }

// ServeHTTP answers a request.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	id := uuid.NewString()
	recorder := &recorder{ResponseWriter: w}
	recorder.Header().Set("X-Request-Id", id)
	recorder.Header().Set("X-Content-Type-Options", "nosniff")
	tenant, stranger := a.cfg.Tokens.tenant(r)
	taken := &place{}
	r = r.WithContext(context.WithValue(context.WithValue(withRequest(r, id), tenantKey{}, tenant), placeKey{}, taken))
	handler, pattern := a.mux.Handler(r)
	defer func() { a.finish(recorder, r, pattern, began, taken.waited, recover()) }()
	if r.ContentLength != 0 {
		// Before it answers, net/http reads what is left of a body, also of one that no handler wants. It takes
		// the deadline back when the body is whole.
		_ = http.NewResponseController(w).SetReadDeadline(began.Add(a.cfg.BodyTime)) // a writer without a connection has none
	}
	if stranger != nil && !a.public[pattern] {
		a.fail(recorder, r, stranger)
		return
	}
	if refusal := refuse(a.origin, r, a.cfg.AllowRemote || a.cfg.Tokens.Required()); refusal != nil {
		refusal.write(recorder)
		return
	}
	select {
	case a.slots <- struct{}{}:
		taken.inFlight = true
		defer a.leave(taken)
	default:
		Fail(TooManyRequests, "").retryAfter(1).write(recorder)
		return
	}
	if pattern == "" {
		noRoute(recorder, r, handler)
		return
	}
	a.mux.ServeHTTP(recorder, r)
}

// finish counts and logs a request. What it panicked with becomes its answer, if that has not begun; half an
// answer, and none for a client that left, break the connection, for they must not look whole.
func (a *API) finish(w *recorder, r *http.Request, pattern string, began time.Time, waited bool, panicked any) {
	id := requestID(r.Context())
	if panicked != nil && panicked != http.ErrAbortHandler {
		a.cfg.Logger.Error("request panicked", "request_id", id, "route", pattern, "panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
		if w.status == 0 {
			Fail(Internal, "").write(w)
			panicked = nil
		}
	}
	a.metrics.observe(r.Method, pattern, w.code(), time.Since(began), waited)
	a.cfg.Logger.Debug("request", "request_id", id, "method", r.Method, "route", pattern, "status", w.code(), "duration", time.Since(began))
	if panicked != nil || w.status == clientLeft {
		panic(http.ErrAbortHandler)
	}
}

// fail turns a handler's error into its answer.
func (a *API) fail(w http.ResponseWriter, r *http.Request, err error) {
	var known *Error
	switch {
	case errors.As(err, &known):
		known.write(w)
	case r.Context().Err() != nil:
		// The client left; what happened to its transaction the database knows.
		if r, ok := w.(*recorder); ok {
			r.status = clientLeft
		}
	case unavailable(err):
		a.cfg.Logger.Warn("request met an unavailable dependency", "request_id", requestID(r.Context()), "error", err)
		Fail(Unavailable503, "").retryAfter(1).write(w)
	default:
		a.cfg.Logger.Error("request failed", "request_id", requestID(r.Context()), "error", err)
		Fail(Internal, "").write(w)
	}
}

// clientLeft is what log and metrics say of a request that nobody waits for any more; it is not sent.
const clientLeft = 499

func unavailable(err error) bool { return outage(err) || event.Classify(err) == event.ClassContention }

func outage(err error) bool {
	return event.Classify(err) == event.ClassInfrastructure ||
		errors.Is(err, io.ErrUnexpectedEOF) // a connection to the database that ended; a body's end has a problem of its own
}

// lockTimeout reports SQLSTATE 55P03.
func lockTimeout(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "55P03"
}

type requestKey struct{}

func requestID(ctx context.Context) string {
	id, _ := ctx.Value(requestKey{}).(string)
	return id
}

// traceparent is W3C Trace Context, version 00; ids of zeros alone are none.
var traceparent = regexp.MustCompile(`^00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}$`)

// withRequest gives the context the request's id, and the cause of the events that it will lead to. Their
// correlation id is the client's, else its trace's, where these are well formed; else the request's id.
func withRequest(r *http.Request, id string) context.Context {
	cause := outbox.Cause{CorrelationID: id, CausationID: id}
	if trace := traceparent.FindStringSubmatch(r.Header.Get("Traceparent")); trace != nil &&
		strings.Trim(trace[1], "0") != "" && strings.Trim(trace[2], "0") != "" {
		cause.Traceparent, cause.CorrelationID = trace[0], trace[1]
	}
	if given := r.Header.Get("X-Correlation-Id"); ID.Valid(given) {
		cause.CorrelationID = given
	}
	return outbox.WithCause(context.WithValue(r.Context(), requestKey{}, id), cause)
}

// recorder remembers the status for log and metrics.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *recorder) code() int {
	if r.status == 0 {
		return http.StatusOK
	}
	return r.status
}
