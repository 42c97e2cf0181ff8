package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/internal/database"
	"converge/internal/nettest"
	"converge/internal/pipeline"
)

// sharing is POST /charges while its lanes are taken, so that requests share what comes next.
type sharing struct {
	*world
	once   *once
	direct *pgxpool.Pool
	told   atomic.Int64
	gate   *pgx.Conn // holds the locks that those in the lanes need
	first  <-chan answer
}

// Amounts that mean something to the effect of these tests; the least ones are the lanes'.
const (
	breaksARule = iota + lanes + 1
	breaksARuleAtTheEnd
	cannotBeSent
	harmless
)

func newSharing(t *testing.T, cfg Config, pool, direct *pgxpool.Pool) *sharing {
	t.Helper()
	s := &sharing{world: newWorld(t, cfg), direct: direct}
	charge := blindCharge(&s.told)
	s.once = newOnce(s.api, pool, "charge", func(ctx context.Context, tx pgx.Tx, r *http.Request, body *Body) (Response, error) {
		response, err := charge(ctx, tx, r, body)
		if err != nil {
			return response, err
		}
		switch amount := body.Object().Int("amount", 1, MaxInt); amount {
		case 1, lanes:
			err = pipeline.Exec(ctx, tx, "SELECT pg_advisory_xact_lock($1)", amount)
		case breaksARule:
			err = pipeline.Exec(ctx, tx, "SELECT 1 / (1 - $1::bigint / $1::bigint)", amount)
		case breaksARuleAtTheEnd:
			err = pipeline.Exec(ctx, tx, "INSERT INTO charges (amount, late) VALUES ($1, 1), ($1, 1)", amount)
		case cannotBeSent:
			err = pipeline.Exec(ctx, tx, "SELECT $1::int2", 1<<20)
		}
		return response, err
	})
	s.api.Handle("POST /charges", s.once.handle)
	return s
}

func (s *sharing) post(key string, amount int) <-chan answer {
	answered := make(chan answer, 1)
	go func() {
		a, err := s.try("POST", "/charges", strings.NewReader(fmt.Sprintf(`{"amount":%d}`, amount)), "Idempotency-Key", key)
		if err != nil {
			a.body = err.Error()
		}
		answered <- a // the test waits for it, or its server's end breaks it off
	}()
	return answered
}

func heard(t testing.TB, answered <-chan answer) answer {
	t.Helper()
	select {
	case a := <-answered:
		return a
	case <-time.After(20 * time.Second):
		t.Fatal("a request is not answered")
		return answer{}
	}
}

// shut takes the lanes.
func (s *sharing) shut() {
	t := s.t
	t.Helper()
	var err error
	if s.gate, err = pgx.Connect(t.Context(), s.direct.Config().ConnString()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.gate.Close(context.WithoutCancel(t.Context())) })
	for n := 1; n <= lanes; n++ {
		s.lock("SELECT pg_advisory_lock($1)", n)
		answered := s.post(fmt.Sprint("lane ", n), n)
		if n == 1 {
			s.first = answered
		}
	}
	until(t, func() bool {
		return count(t, s.direct, `SELECT count(*) FROM pg_locks JOIN pg_database AS d ON d.oid = database
			WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted`) == lanes
	})
}

func (s *sharing) lock(sql string, n int) {
	s.t.Helper()
	if _, err := s.gate.Exec(s.t.Context(), sql, n); err != nil {
		s.t.Fatal(err)
	}
}

// open lets the first lane go, once so many requests wait. The other one is taken until the test ends.
func (s *sharing) open(waiting int) {
	s.t.Helper()
	s.wait(&s.once.claims, waiting)
	s.lock("SELECT pg_advisory_unlock($1)", 1)
	if a := heard(s.t, s.first); a.code != 201 {
		s.t.Errorf("in the first lane: %d %s", a.code, a.body)
	}
}

func (s *sharing) wait(g *group[*claim], n int) {
	s.t.Helper()
	until(s.t, func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.waiting) == n
	})
}

func until(t testing.TB, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); !holds(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("what is waited for does not come")
		}
	}
}

// anew is a pool whose every connection is a new one, which has prepared nothing.
func anew(t *testing.T, pool *pgxpool.Pool) *pgxpool.Pool {
	t.Helper()
	cfg := pool.Config()
	cfg.AfterRelease = func(*pgx.Conn) bool { return false }
	fresh, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fresh.Close)
	return fresh
}

// Requests that come while others commit are one transaction; each has its own answer.
func TestRequestsThatWaitShareATransaction(t *testing.T) {
	pool := openPool(t, 8)
	s := newSharing(t, Config{}, pool, pool)
	s.shut()
	var answered []<-chan answer
	for n := range 5 {
		answered = append(answered, s.post(fmt.Sprint(n), harmless+n))
	}
	s.open(len(answered))
	for n, of := range answered {
		first := heard(t, of)
		if first.code != 201 {
			t.Errorf("request %d: %d %s", n, first.code, first.body)
		}
		if again := heard(t, s.post(fmt.Sprint(n), harmless+n)); again.code != 200 || again.body != first.body {
			t.Errorf("request %d: %s, and again %d %s", n, first.body, again.code, again.body)
		}
	}
	for _, table := range []string{"charges", "idempotency_keys"} { // the first lane's is one transaction, theirs the other
		rows := count(t, pool, "SELECT count(*) FROM "+table)
		if n := count(t, pool, "SELECT count(DISTINCT xmin::text) FROM "+table); n != 2 || rows != 1+len(answered) {
			t.Errorf("%d transactions made %d rows of %s", n, rows, table)
		}
	}
	if n := s.told.Load(); n != int64(1+len(answered)) {
		t.Errorf("%d effects were told of", n)
	}
}

// Whoever is to blame for a shared transaction's end fails alone, and leaves nothing.
func TestNobodyFailsForAnothersFault(t *testing.T) {
	for name, blame := range map[string]struct {
		amount int
		want   string
	}{
		"a statement fails":           {breaksARule, Internal},
		"the end of it fails":         {breaksARuleAtTheEnd, Internal},
		"a statement cannot be sent":  {cannotBeSent, Internal},
		"nobody is, for once":         {harmless, ""},
		"a key that is taken already": {1, "replayed"},
	} {
		t.Run(name, func(t *testing.T) {
			direct := openPool(t, 8)
			s := newSharing(t, Config{}, anew(t, direct), direct)
			s.shut()
			good := []<-chan answer{s.post("a", harmless), s.post("b", harmless)}
			key := "c"
			if blame.want == "replayed" {
				key = "lane 1"
			}
			bad := s.post(key, blame.amount)
			good = append(good, s.post("d", harmless))
			s.open(4)
			for n, of := range good {
				if a := heard(t, of); a.code != 201 {
					t.Errorf("request %d: %d %s", n, a.code, a.body)
				}
			}
			charges := 1 + len(good)
			switch a := heard(t, bad); blame.want {
			case "":
				charges++
				if a.code != 201 {
					t.Errorf("%d %s", a.code, a.body)
				}
			case "replayed":
				if a.code != 200 || a.header.Get("Idempotency-Replayed") != "true" {
					t.Errorf("%d %s", a.code, a.body)
				}
			default:
				a.wants(t, blame.want)
			}
			if n := count(t, direct, "SELECT count(*) FROM charges"); n != charges || s.told.Load() != int64(n) {
				t.Errorf("%d charges, %d were told of, want %d", n, s.told.Load(), charges)
			}
			if n := count(t, direct, "SELECT count(*) FROM idempotency_keys"); n != charges {
				t.Errorf("%d keys are taken, want %d", n, charges)
			}
		})
	}
}

func TestTwoRequestsWithOneKeyShareATransaction(t *testing.T) {
	pool := openPool(t, 8)
	s := newSharing(t, Config{}, pool, pool)
	s.shut()
	twins := []<-chan answer{s.post("twin", harmless), s.post("twin", harmless)}
	other := s.post("other", harmless)
	s.open(3)
	one, two := heard(t, twins[0]), heard(t, twins[1])
	if one.code+two.code != 201+200 || one.body != two.body {
		t.Errorf("%d %s and %d %s", one.code, one.body, two.code, two.body)
	}
	if a := heard(t, other); a.code != 201 {
		t.Errorf("%d %s", a.code, a.body)
	}
	if n := count(t, pool, "SELECT count(*) FROM charges"); n != 1+2 {
		t.Errorf("%d charges", n)
	}
}

// A key whose owner does not come to an end holds up its own request alone.
func TestAKeyInFlightHoldsUpNobodyElse(t *testing.T) {
	pool := openPool(t, 8)
	s := newSharing(t, Config{KeyWait: time.Hour}, pool, pool)
	owner, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Rollback(context.WithoutCancel(t.Context()))
	if _, err := owner.Exec(t.Context(), "INSERT INTO idempotency_keys (operation, key, fingerprint) VALUES ('charge', $1, 'x')", digest("held")); err != nil {
		t.Fatal(err)
	}
	s.shut()
	held := s.post("held", harmless)
	s.wait(&s.once.claims, 1)
	others := []<-chan answer{s.post("a", harmless), s.post("b", harmless)}
	s.open(3)
	for n, of := range others {
		if a := heard(t, of); a.code != 201 {
			t.Errorf("request %d: %d %s", n, a.code, a.body)
		}
	}
	select {
	case a := <-held:
		t.Errorf("the request with the key was answered: %d %s", a.code, a.body)
	default:
	}
	if err := owner.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := heard(t, held); a.code != 201 {
		t.Errorf("%d %s", a.code, a.body)
	}
}

// What becomes of a shared transaction becomes of all that are in it, and their keys know.
func TestASharedCommitThatIsLostIsLookedUpByItsKeys(t *testing.T) {
	for name, step := range map[string]struct {
		how  nettest.Cut
		then []int // what the retries may be answered
	}{
		"before":            {nettest.CutBefore, []int{201}},
		"under way":         {nettest.CutDuring, []int{200, 201}},
		"the answer's loss": {nettest.CutAfter, []int{200}},
	} {
		t.Run(name, func(t *testing.T) {
			direct := openPool(t, 4)
			proxy, through := nettest.ToDatabase(t, direct.Config().ConnString())
			proxy.ImplicitCommit(claimAnsweredSQL)
			pool, err := database.Open(t.Context(), through, "shop", 4)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close) // after the second lane is let go
			s := newSharing(t, Config{}, pool, direct)
			s.shut()
			keys := []string{"a", "b", "c"}
			var answered []<-chan answer
			for _, key := range keys {
				answered = append(answered, s.post(key, harmless))
			}
			s.wait(&s.once.claims, len(keys))
			proxy.CutNext(step.how)
			s.open(len(keys))
			for _, of := range answered {
				heard(t, of).wants(t, Unavailable503)
			}
			codes := map[int]int{}
			for _, key := range keys {
				a := heard(t, s.post(key, harmless))
				codes[a.code]++
				if !slices.Contains(step.then, a.code) {
					t.Errorf("the retry got %d %s", a.code, a.body)
				}
			}
			if len(codes) != 1 {
				t.Errorf("the retries got %v: some had happened, some had not", codes)
			}
			if n := count(t, direct, "SELECT count(*) FROM charges"); n != 1+len(keys) {
				t.Errorf("%d charges", n)
			}
		})
	}
}

// Answers that are looked up together are not mixed up.
func TestRequestsThatWaitShareALookup(t *testing.T) {
	pool := openPool(t, 8)
	s := newSharing(t, Config{}, pool, pool)
	bodies := map[string]string{}
	for n := range 6 {
		key := fmt.Sprint(n)
		bodies[key] = heard(t, s.post(key, harmless+n)).body
	}
	s.api.wary.Store(wariness)
	blocker, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer blocker.Rollback(context.WithoutCancel(t.Context()))
	if _, err := blocker.Exec(t.Context(), "LOCK TABLE idempotency_keys"); err != nil {
		t.Fatal(err)
	}
	answered := map[string]<-chan answer{}
	for n := range 6 {
		answered[fmt.Sprint(n)] = s.post(fmt.Sprint(n), harmless+n)
	}
	other, fresh := s.post("0", harmless+9), s.post("fresh", harmless)
	until(t, func() bool {
		g := &s.once.lookups
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.waiting) == 8-lanes
	})
	if err := blocker.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	for key, of := range answered {
		if a := heard(t, of); a.code != 200 || a.body != bodies[key] {
			t.Errorf("%s: %d %s, want %s", key, a.code, a.body, bodies[key])
		}
	}
	heard(t, other).wants(t, KeyReused)
	if a := heard(t, fresh); a.code != 201 {
		t.Errorf("%d %s", a.code, a.body)
	}
}

// A client that comes when everybody waits for the database is not kept longer than its time.
func TestARequestThatFindsNoLaneInTimeIsToldToComeBack(t *testing.T) {
	pool := openPool(t, 8)
	s := newSharing(t, Config{BodyTime: time.Hour}, pool, pool)
	s.shut()
	over, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- s.once.share(over, &claim{key: "late"}) }()
	s.wait(&s.once.claims, 1)
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) || !unavailable(err) {
		t.Errorf("the error is %v", err)
	}
	s.open(0)
	if n := count(t, pool, "SELECT count(*) FROM idempotency_keys WHERE key = 'late'"); n != 0 {
		t.Error("it was run all the same")
	}
}
