package httpapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"converge/internal/database"
	"converge/internal/nettest"
	"converge/internal/pipeline"
)

func TestARetryGetsTheStoredAnswer(t *testing.T) {
	pool := openPool(t, 4)
	w := newWorld(t, Config{})
	w.api.Handle("POST /charges", w.api.Idempotent(pool, "charge", charge))
	first := w.do("POST", "/charges", `{"amount":5}`, "Idempotency-Key", "k")
	if first.code != 201 || first.header.Get("Idempotency-Replayed") != "" {
		t.Fatalf("%d %v %s", first.code, first.header, first.body)
	}
	// Bare and quoted are one key, and parameters of the media type do not count.
	for _, headers := range [][]string{
		{"Idempotency-Key", "k"},
		{"Idempotency-Key", `"k"`},
		{"Idempotency-Key", "  k "},
		{"Idempotency-Key", "k", "Content-Type", "application/json; charset=utf-8"},
	} {
		again := w.do("POST", "/charges", `{"amount":5}`, headers...)
		if again.code != 200 || again.body != first.body || again.header.Get("Idempotency-Replayed") != "true" {
			t.Errorf("%q: %d %v %s", headers, again.code, again.header, again.body)
		}
		for _, name := range []string{"Location", "ETag", "Consistency-Token", "Content-Type"} {
			if again.header.Get(name) != first.header.Get(name) || again.header.Get(name) == "" {
				t.Errorf("%q: %s is %q, was %q", headers, name, again.header.Get(name), first.header.Get(name))
			}
		}
		if again.header.Get("X-Request-Id") == first.header.Get("X-Request-Id") {
			t.Error("two requests have one id")
		}
	}
	if n := count(t, pool, "SELECT count(*) FROM charges"); n != 1 {
		t.Errorf("%d charges", n)
	}
	if fresh, replayed := w.keyMetric(keyFresh), w.keyMetric(keyReplayed); fresh != 1 || replayed != 4 {
		t.Errorf("counted %v fresh, %v replayed", fresh, replayed)
	}
}

// A 202 stays a 202, for it still says where to look.
func TestAnAcceptedRequestIsAcceptedAgain(t *testing.T) {
	pool := openPool(t, 2)
	w := newWorld(t, Config{})
	w.api.Handle("POST /charges", w.api.Idempotent(pool, "charge", func(context.Context, pgx.Tx, *http.Request, *Body) (Response, error) {
		return JSON(http.StatusAccepted, "x", nil)
	}))
	for range 2 {
		if a := w.do("POST", "/charges", `{}`, "Idempotency-Key", "k"); a.code != 202 || a.body != `"x"` {
			t.Errorf("%d %s", a.code, a.body)
		}
	}
}

func TestAKeyBelongsToOneRequest(t *testing.T) {
	pool := openPool(t, 4)
	w := newWorld(t, Config{})
	w.api.Handle("POST /charges", w.api.Idempotent(pool, "charge", charge))
	w.api.Handle("POST /elsewhere", w.api.Idempotent(pool, "charge", charge))
	w.api.Handle("PUT /charges", w.api.Idempotent(pool, "charge", charge))
	w.api.Handle("POST /refunds", w.api.Idempotent(pool, "refund", charge))
	first := w.do("POST", "/charges", `{"amount":5}`, "Idempotency-Key", "k")
	for _, other := range []struct{ method, path, body string }{
		{"POST", "/charges", `{"amount":"nonsense"}`}, // first, while nobody looks keys up
		{"POST", "/charges", `{"amount":6}`},
		{"POST", "/charges", `{"amount":5 }`}, // it is the bytes that count
		{"POST", "/elsewhere", `{"amount":5}`},
		{"PUT", "/charges", `{"amount":5}`},
	} {
		w.do(other.method, other.path, other.body, "Idempotency-Key", "k").wants(t, KeyReused)
	}
	if again := w.do("POST", "/charges", `{"amount":5}`, "Idempotency-Key", "k"); again.body != first.body || again.code != 200 {
		t.Errorf("the original was touched: %d %s", again.code, again.body)
	}
	if a := w.do("POST", "/refunds", `{"amount":7}`, "Idempotency-Key", "k"); a.code != 201 {
		t.Errorf("another operation has keys of its own: %d %s", a.code, a.body)
	}
	if n := count(t, pool, "SELECT count(*) FROM charges"); n != 2 {
		t.Errorf("%d charges", n)
	}
}

func TestKeysThatAreNone(t *testing.T) {
	pool := openPool(t, 2)
	w := newWorld(t, Config{})
	w.api.Handle("POST /charges", w.api.Idempotent(pool, "charge", charge))
	long := strings.Repeat("x", 256)
	for name, step := range map[string]struct {
		want    string
		headers []string
	}{
		"none":              {KeyMissing, nil},
		"blank":             {KeyMissing, []string{"Idempotency-Key", "  "}},
		"empty string":      {KeyInvalid, []string{"Idempotency-Key", `""`}},
		"open string":       {KeyInvalid, []string{"Idempotency-Key", `"k`}},
		"one quote":         {KeyInvalid, []string{"Idempotency-Key", `"`}},
		"two strings":       {KeyInvalid, []string{"Idempotency-Key", `"a""b"`}},
		"bad escape":        {KeyInvalid, []string{"Idempotency-Key", `"a\b"`}},
		"escape at the end": {KeyInvalid, []string{"Idempotency-Key", `"a\"`}},
		"two lines":         {KeyInvalid, []string{"Idempotency-Key", "k", "Idempotency-Key", "k"}},
		"too long":          {KeyInvalid, []string{"Idempotency-Key", long}},
		"not ASCII":         {KeyInvalid, []string{"Idempotency-Key", "schlüssel"}},
		"a tab":             {KeyInvalid, []string{"Idempotency-Key", "a\tb"}},
	} {
		t.Run(name, func(t *testing.T) { w.do("POST", "/charges", `{"amount":5}`, step.headers...).wants(t, step.want) })
	}
	for _, key := range []string{long[1:], `"a\"b\\c"`, "~!@#$%^&*()", "abc-123"} {
		if a := w.do("POST", "/charges", `{"amount":5}`, "Idempotency-Key", key); a.code != 201 {
			t.Errorf("%s: %d %s", key, a.code, a.body)
		}
	}
	if a := w.do("POST", "/charges", `{"amount":5}`, "Idempotency-Key", `a"b\c`); a.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("a bare key and its quoted form are two: %d %s", a.code, a.body)
	}
}

// The storm: one key, 64 clients, more than the pool has connections.
func TestSixtyFourClientsOnOneKeyMakeOneEffect(t *testing.T) {
	var told atomic.Int64
	for name, effect := range map[string]Effect{"waits for its statements": charge, "waits for none": blindCharge(&told)} {
		t.Run(name, func(t *testing.T) {
			pool := openPool(t, 8)
			w := newWorld(t, Config{KeyWait: 10 * time.Second})
			w.api.Handle("POST /charges", w.api.Idempotent(pool, "charge", effect))
			w.storm(t, 64)
			if n := count(t, pool, "SELECT count(*) FROM charges"); n != 1 {
				t.Errorf("%d charges", n)
			}
		})
	}
	if n := told.Load(); n != 1 {
		t.Errorf("%d effects were told of", n)
	}
}

// storm sends one request from many clients at once: one answer is the first, all are the same.
func (w *world) storm(t *testing.T, clients int) {
	t.Helper()
	var g errgroup.Group
	answers := make([]answer, clients)
	for i := range answers {
		g.Go(func() (err error) {
			answers[i], err = w.try("POST", "/charges", strings.NewReader(`{"amount":5}`), "Idempotency-Key", "k")
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	codes := map[int]int{}
	for _, a := range answers {
		codes[a.code]++
		if a.body != answers[0].body {
			t.Errorf("%s and %s", a.body, answers[0].body)
		}
	}
	if diff := cmp.Diff(map[int]int{201: 1, 200: clients - 1}, codes); diff != "" {
		t.Error(diff)
	}
}

// trips counts what is sent to the database and waited for.
type trips struct{ n atomic.Int64 }

func (c *trips) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.n.Add(1)
	return ctx
}
func (c *trips) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (c *trips) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	c.n.Add(1)
	return ctx
}
func (c *trips) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (c *trips) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

// A key is fresh in one round trip; where keys come again they are looked up, in one as well.
func TestAKeyCostsOneRoundTrip(t *testing.T) {
	cfg, sent := openPool(t, 1).Config(), &trips{}
	cfg.ConnConfig.Tracer = sent
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	w := newWorld(t, Config{})
	w.api.Handle("POST /charges", w.api.Idempotent(pool, "charge", blindCharge(new(atomic.Int64))))
	cost := func(key string) int64 {
		before := sent.n.Load()
		if a := w.do("POST", "/charges", `{"amount":5}`, "Idempotency-Key", key); a.code > 201 {
			t.Errorf("%d %s", a.code, a.body)
		}
		return sent.n.Load() - before
	}
	if n := cost("first"); n != 1 {
		t.Errorf("a fresh key took %d round trips", n)
	}
	cost("first") // stumbles
	if n := cost("first"); n != 1 {
		t.Errorf("a replay took %d round trips", n)
	}
	if n := cost("second"); n != 2 {
		t.Errorf("a fresh key among replays took %d round trips", n)
	}
	for i := range wariness {
		cost(fmt.Sprint("fresh ", i))
	}
	if n := cost("last"); n != 1 {
		t.Errorf("a fresh key after many took %d round trips", n)
	}
}

// Whatever ends a request without an answer of its own leaves nothing behind: no effect, no key.
func TestARequestThatFailsDoesNotBurnItsKey(t *testing.T) {
	pool := openPool(t, 4)
	if _, err := pool.Exec(t.Context(), "INSERT INTO charges (amount, late) VALUES (1, 1)"); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, Config{})
	var fault func(ctx context.Context, tx pgx.Tx) error
	w.api.Handle("POST /charges", w.api.Idempotent(pool, "charge", func(ctx context.Context, tx pgx.Tx, r *http.Request, body *Body) (Response, error) {
		response, err := charge(ctx, tx, r, body)
		if err == nil && fault != nil {
			err = fault(ctx, tx)
		}
		return response, err
	}))
	for name, step := range map[string]struct {
		want  string
		fault func(ctx context.Context, tx pgx.Tx) error
	}{
		"error":   {Internal, func(context.Context, pgx.Tx) error { return errors.New("secret") }},
		"problem": {ValidationFailed, func(context.Context, pgx.Tx) error { return Fail(ValidationFailed, "") }},
		"panic":   {Internal, func(context.Context, pgx.Tx) error { panic("secret") }},
		"failed at COMMIT": {Internal, func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO charges (amount, late) VALUES (2, 1)")
			return err
		}},
		"error that was swallowed": {Internal, func(ctx context.Context, tx pgx.Tx) error {
			_, _ = tx.Exec(ctx, "SELECT 1/0")
			return nil
		}},
		"lost connection": {Unavailable503, func(ctx context.Context, tx pgx.Tx) error {
			return errors.Join(terminate(ctx, tx.Conn()), tx.QueryRow(ctx, "SELECT 1").Scan(new(int)))
		}},
		"lost connection at COMMIT": {Unavailable503, func(ctx context.Context, tx pgx.Tx) error {
			return tx.Conn().PgConn().Conn().Close()
		}},
		"lost race": {Unavailable503, func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `DO $$ BEGIN RAISE SQLSTATE '40P01'; END $$`)
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			before := count(t, pool, "SELECT count(*) FROM charges")
			fault = step.fault
			a := w.do("POST", "/charges", `{"amount":5}`, "Idempotency-Key", name)
			a.wants(t, step.want)
			if strings.Contains(a.body, "secret") || strings.Contains(a.body, "SELECT") || strings.Contains(a.body, "charges_late") {
				t.Errorf("the answer tells too much: %s", a.body)
			}
			if retry := a.header.Get("Retry-After"); (retry != "") != (step.want == Unavailable503) {
				t.Errorf("Retry-After is %q", retry)
			}
			if n := count(t, pool, "SELECT count(*) FROM charges") - before; n != 0 {
				t.Errorf("%d effects stayed", n)
			}
			fault = nil
			if again := w.do("POST", "/charges", `{"amount":5}`, "Idempotency-Key", name); again.code != 201 {
				t.Errorf("the key is burned: %d %s", again.code, again.body)
			}
		})
	}
	if fresh := w.keyMetric(keyFresh); fresh != 8 {
		t.Errorf("counted %v fresh", fresh)
	}
}

// terminate ends a connection from the server's side, as a failover does.
func terminate(ctx context.Context, conn *pgx.Conn) error {
	admin, err := pgx.Connect(ctx, conn.Config().ConnString())
	if err != nil {
		return err
	}
	defer admin.Close(ctx)
	_, err = admin.Exec(ctx, "SELECT pg_terminate_backend($1)", conn.PgConn().PID())
	return err
}

// Whether a COMMIT whose connection was lost has happened, the key knows.
func TestALostCommitIsLookedUpByItsKey(t *testing.T) {
	for name, step := range map[string]struct {
		how  nettest.Cut
		then []int // what the retry may be answered
	}{
		"before":            {nettest.CutBefore, []int{201}},
		"under way":         {nettest.CutDuring, []int{200, 201}},
		"the answer's loss": {nettest.CutAfter, []int{200}},
	} {
		t.Run(name, func(t *testing.T) {
			direct := openPool(t, 1)
			proxy, through := nettest.ToDatabase(t, direct.Config().ConnString())
			proxy.ImplicitCommit(claimAnsweredSQL)
			pool, err := database.Open(t.Context(), through, "shop", 2)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			w := newWorld(t, Config{})
			for route, effect := range map[string]Effect{"waits": charge, "waits for none": blindCharge(new(atomic.Int64))} {
				path := "/" + strings.ReplaceAll(route, " ", "-")
				w.api.Handle("POST "+path, w.api.Idempotent(pool, route, effect))
				before := count(t, direct, "SELECT count(*) FROM charges")
				proxy.CutNext(step.how)
				w.do("POST", path, `{"amount":5}`, "Idempotency-Key", "k").wants(t, Unavailable503)
				if a := w.do("POST", path, `{"amount":5}`, "Idempotency-Key", "k"); !slices.Contains(step.then, a.code) {
					t.Errorf("%s: the retry got %d %s", route, a.code, a.body)
				}
				if n := count(t, direct, "SELECT count(*) FROM charges") - before; n != 1 {
					t.Errorf("%s: %d charges", route, n)
				}
			}
		})
	}
}

// A refusal for a reason of business is an answer like any other.
func TestARefusalIsStoredWithWhatTheTransactionHolds(t *testing.T) {
	pool := openPool(t, 2)
	w := newWorld(t, Config{})
	w.api.Handle("POST /charges", w.api.Idempotent(pool, "charge", func(ctx context.Context, tx pgx.Tx, r *http.Request, body *Body) (Response, error) {
		if _, err := charge(ctx, tx, r, body); err != nil {
			return Response{}, err
		}
		return Refusal("payment-declined", "")
	}))
	for i := range 2 {
		a := w.do("POST", "/charges", `{"amount":5}`, "Idempotency-Key", "k")
		a.wants(t, "payment-declined")
		if a.header.Get("Content-Type") != "application/problem+json" || (a.header.Get("Idempotency-Replayed") == "true") != (i == 1) {
			t.Errorf("%v", a.header)
		}
	}
	if n := count(t, pool, "SELECT count(*) FROM charges"); n != 1 {
		t.Errorf("%d charges", n)
	}
}

// gate is an effect that waits inside its transaction until it is let go.
type gate struct {
	entered, leave chan struct{}
	once           sync.Once
}

func newGate() *gate { return &gate{entered: make(chan struct{}), leave: make(chan struct{})} }

func (g *gate) open() { g.once.Do(func() { close(g.leave) }) }

func (g *gate) effect(ctx context.Context, tx pgx.Tx, r *http.Request, body *Body) (Response, error) {
	response, err := charge(ctx, tx, r, body)
	if err != nil {
		return Response{}, err // the key is another's
	}
	close(g.entered)
	<-g.leave
	return response, nil
}

// What waits for the owner of its key is told to come back; what comes back gets the owner's answer.
func TestARequestWhoseKeyIsInFlightIsToldToAskAgain(t *testing.T) {
	pool := openPool(t, 4)
	w := newWorld(t, Config{KeyWait: 20 * time.Millisecond})
	g := newGate()
	defer g.open()
	w.api.Handle("POST /charges", w.api.Idempotent(pool, "charge", g.effect))
	var owner answer
	var wait errgroup.Group
	wait.Go(func() (err error) {
		owner, err = w.try("POST", "/charges", strings.NewReader(`{"amount":5}`), "Idempotency-Key", "k")
		return err
	})
	<-g.entered
	for _, body := range []string{`{"amount":5}`, `{"amount":6}`} { // whose key it is, nobody knows yet
		a := w.do("POST", "/charges", body, "Idempotency-Key", "k")
		a.wants(t, KeyInFlight)
		if a.header.Get("Retry-After") != "1" {
			t.Errorf("%v", a.header)
		}
	}
	g.open()
	if err := wait.Wait(); err != nil || owner.code != 201 {
		t.Fatalf("%v %d %s", err, owner.code, owner.body)
	}
	if a := w.do("POST", "/charges", `{"amount":5}`, "Idempotency-Key", "k"); a.code != 200 || a.body != owner.body {
		t.Errorf("%d %s", a.code, a.body)
	}
	if n := w.keyMetric(keyInFlight); n != 2 {
		t.Errorf("counted %v in flight", n)
	}
}

// A client that gives up while its effect is under way finds the answer when it comes back.
func TestAnEffectIsFinishedAlthoughItsClientLeft(t *testing.T) {
	pool := openPool(t, 4)
	w := newWorld(t, Config{KeyWait: 10 * time.Second})
	g := newGate()
	defer g.open()
	left := make(chan struct{})
	w.api.Handle("POST /charges", w.api.Idempotent(pool, "charge", func(ctx context.Context, tx pgx.Tx, r *http.Request, body *Body) (Response, error) {
		response, err := g.effect(ctx, tx, r, body)
		if err != nil {
			return Response{}, err
		}
		<-r.Context().Done() // the server has noticed
		close(left)
		return response, ctx.Err()
	}))
	ctx, leave := context.WithCancel(t.Context())
	var wait errgroup.Group
	wait.Go(func() error {
		req, err := http.NewRequestWithContext(ctx, "POST", w.server.URL+"/charges", strings.NewReader(`{"amount":5}`))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", "k")
		if res, err := http.DefaultClient.Do(req); err == nil {
			res.Body.Close()
			return errors.New("an answer came")
		}
		return nil
	})
	<-g.entered
	leave()
	if err := wait.Wait(); err != nil {
		t.Fatal(err)
	}
	g.open()
	<-left
	a := w.do("POST", "/charges", `{"amount":5}`, "Idempotency-Key", "k")
	if a.code != 200 || a.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("%d %s", a.code, a.body)
	}
	if n := count(t, pool, "SELECT count(*) FROM charges"); n != 1 {
		t.Errorf("%d charges", n)
	}
}

func TestWithoutADatabaseARequestIsToldToComeBack(t *testing.T) {
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := socket.Addr().String()
	socket.Close()
	pool, err := database.Open(t.Context(), "postgres://"+nobody+"/x", "shop", 2)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	w := newWorld(t, Config{})
	w.api.Handle("POST /charges", w.api.Idempotent(pool, "charge", charge))
	a := w.do("POST", "/charges", `{"amount":5}`, "Idempotency-Key", "k")
	a.wants(t, Unavailable503)
	if a.header.Get("Retry-After") == "" {
		t.Errorf("%v", a.header)
	}
}

// A request with everything wrong is told of one thing after the other, in the order that the contract fixes.
func TestRequestsAreRefusedInOrder(t *testing.T) {
	pool := openPool(t, 2)
	w := newWorld(t, Config{MaxBody: 100, BodyTime: 500 * time.Millisecond, KeyWait: 30 * time.Second, Tokens: tokens(t, "t-1 acme")})
	w.api.Handle("POST /charges", w.api.Idempotent(pool, "charge", func(ctx context.Context, tx pgx.Tx, r *http.Request, body *Body) (Response, error) {
		response, err := charge(ctx, tx, r, body)
		if err != nil {
			return response, err
		}
		if _, err := ReadPrecondition(r); err != nil {
			return Response{}, err
		}
		return Refusal(Conflict, "")
	}))
	huge, short := strings.Repeat("9", 101), "{"
	// Each step mends what the one before was refused for, and nothing else.
	for _, step := range []struct {
		method, path, body, want string
		stalls                   bool
		headers                  []string
	}{
		{"GET", "/nothing", huge, Unauthorized, false, []string{"Sec-Fetch-Site", "cross-site"}},
		{"PUT", "/charges", huge, Unauthorized, false, []string{"Sec-Fetch-Site", "cross-site"}},
		{"PUT", "/nothing", huge, ForbiddenOrigin, false, []string{"Authorization", "Bearer t-1", "Sec-Fetch-Site", "cross-site"}},
		{"PUT", "/nothing", huge, NotFound, false, []string{"Authorization", "Bearer t-1"}},
		{"PUT", "/charges", huge, MethodNotAllowed, false, []string{"Authorization", "Bearer t-1"}},
		{"POST", "/charges", huge, PayloadTooLarge, true, []string{"Authorization", "Bearer t-1", "Content-Type", "text/plain"}},
		{"POST", "/charges", short, RequestTimeout, true, []string{"Authorization", "Bearer t-1", "Content-Type", "text/plain"}},
		{"POST", "/charges", short, UnsupportedMedia, false, []string{"Authorization", "Bearer t-1", "Content-Type", "text/plain"}},
		{"POST", "/charges", short, KeyMissing, false, []string{"Authorization", "Bearer t-1"}},
		{"POST", "/charges", short, KeyInvalid, false, []string{"Authorization", "Bearer t-1", "Idempotency-Key", `"`}},
		{"POST", "/charges", short, MalformedRequest, false, []string{"Authorization", "Bearer t-1", "Idempotency-Key", "taken"}},
		{"POST", "/charges", `{}`, ValidationFailed, false, []string{"Authorization", "Bearer t-1", "Idempotency-Key", "taken"}},
		{"POST", "/charges", `{"amount":1}`, PreconditionRequired, false, []string{"Authorization", "Bearer t-1", "Idempotency-Key", "taken"}},
		{"POST", "/charges", `{"amount":1}`, Conflict, false, []string{"Authorization", "Bearer t-1", "Idempotency-Key", "taken", "If-Match", "*"}},
		{"POST", "/charges", `{}`, KeyReused, false, []string{"Authorization", "Bearer t-1", "Idempotency-Key", "taken"}}, // before 422
	} {
		t.Run(step.want, func(t *testing.T) {
			body := io.Reader(strings.NewReader(step.body))
			if step.stalls { // the rest, if there is any, does not come
				reader, writer := io.Pipe()
				defer writer.Close()
				go func() { _, _ = io.WriteString(writer, step.body) }() // ends with the pipe
				body = reader
			}
			a, err := w.try(step.method, step.path, body, step.headers...)
			if err != nil {
				t.Fatal(err)
			}
			a.wants(t, step.want)
		})
	}
	if n := count(t, pool, "SELECT count(*) FROM idempotency_keys"); n != 1 {
		t.Errorf("%d keys are taken", n)
	}
}

// A body that says that it is too large is not waited for.
func TestABodyThatWillBeTooLargeIsRefusedAtOnce(t *testing.T) {
	w := bodyWorld(t, Config{MaxBody: 1000, BodyTime: time.Hour})
	conn := w.dial()
	fmt.Fprintf(conn, "PUT /order HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1001\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || res.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("%v %v", err, res)
	}
}

// A key that is taken is an error to PostgreSQL, which logs it with the row that is there already, and that has nothing
// of what the client sent.
func TestATakenKeyIsNotInTheLogOfPostgreSQL(t *testing.T) {
	pool := openPool(t, 1)
	w := newWorld(t, Config{})
	said := ""
	w.api.Handle("POST /charges", w.api.Idempotent(pool, "charge", func(ctx context.Context, tx pgx.Tx, r *http.Request, body *Body) (Response, error) {
		response, err := charge(ctx, tx, r, body)
		var pg *pgconn.PgError
		if begin := tx.(*pipeline.Tx).Start(ctx); errors.As(begin, &pg) {
			said = fmt.Sprint(pg.Message, pg.Detail, pg.Hint, pg.Where)
		}
		return response, err
	}))
	for range 2 {
		if a := w.do("POST", "/charges", `{"amount":5}`, "Idempotency-Key", "a-key-of-clients"); a.code > 201 {
			t.Fatalf("%d %s", a.code, a.body)
		}
	}
	if !strings.Contains(said, digest("a-key-of-clients")) || strings.Contains(said, "a-key") {
		t.Errorf("PostgreSQL said %q", said)
	}
}
