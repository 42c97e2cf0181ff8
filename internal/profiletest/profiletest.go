// Package profiletest is what every follower of the profiles must do: one suite over all of them, and the world
// that it needs.
//
// The guarantee: a follower that passes shows of each user the newest version that has come, whatever the order
// and however often events come, and keeps a journal of every event, once. It cannot tell what a follower does
// with events of several partitions at the same time.
package profiletest

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"converge/consumers/event"
	"converge/consumers/inbox"
	"converge/consumers/readmodel"
	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/producers/httpapi"
	"converge/schemas"
)

// Service is what a follower is to its runtime and its API.
type Service interface {
	Handler() event.Handler
	Routes(api *httpapi.API)
}

// Follower says which service is to be tried. Its journal has the columns seq, user_id, version and superseded.
type Follower struct {
	Name       string // of the service, its schema and its role
	Migrations fs.FS
	Path       string // GET Path/{user_id}
	Journal    string // table
	New        func(pool *pgxpool.Pool, decoder event.Decoder) Service
}

// World is a follower with its database, its HTTP side, and the part of the runtime that it leans on.
type World struct {
	URL  string
	Pool *pgxpool.Pool

	t        rapid.TB
	follower Follower
	handler  event.Handler
	api      *httpapi.API
	tenants  *httpapi.API // the same for who brings a token, see [tenantTokens]
}

// tenantTokens are whom the second API lets in.
const tenantTokens = "token-a a\ntoken-b b\n"

// World returns a world of its own, which ends with the test.
func (f Follower) World(t *testing.T) *World {
	t.Helper()
	url := pgtest.Database(t, f.Name, func(ctx context.Context, url string) error {
		return database.Migrate(ctx, url, database.Module{Service: f.Name, Sets: []database.Set{
			{Name: "inbox", FS: inbox.Migrations}, {Name: f.Name, FS: f.Migrations}}})
	})
	pool, err := database.Open(t.Context(), url, f.Name, 8)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	w := f.on(t, pool)
	w.URL = url
	return w
}

func (f Follower) on(t *testing.T, pool *pgxpool.Pool) *World {
	t.Helper()
	s := f.New(pool, schemas.NewCodec(schemas.JSON, schemas.IDs{}))
	api, err := httpapi.New(httpapi.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s.Routes(api)
	tokens, err := httpapi.ReadTokens(strings.NewReader(tenantTokens))
	if err != nil {
		t.Fatal(err)
	}
	tenants, err := httpapi.New(httpapi.Config{Tokens: tokens})
	if err != nil {
		t.Fatal(err)
	}
	f.New(pool, schemas.NewCodec(schemas.JSON, schemas.IDs{})).Routes(tenants)
	return &World{Pool: pool, t: t, follower: f, handler: s.Handler(), api: api, tenants: tenants}
}

// Deliver is what the runtime does with records of one partition: the inbox and the handler in one
// transaction, for those that are fresh.
func (w *World) Deliver(ctx context.Context, events ...*event.Event) error {
	return pgx.BeginFunc(ctx, w.Pool, func(tx pgx.Tx) error {
		var fresh []*event.Event
		for _, e := range events {
			isFresh, err := inbox.Once(ctx, tx, w.follower.Name, inbox.Entry{ID: e.ID, Day: inbox.Day(e.ID, e.OccurredAt)})
			if err != nil {
				return err
			}
			if isFresh {
				fresh = append(fresh, e)
			}
		}
		if len(fresh) == 0 {
			return nil
		}
		return w.Apply(ctx, tx, fresh...)
	})
}

// Apply hands the events to the follower, in a transaction of the caller's.
func (w *World) Apply(ctx context.Context, tx pgx.Tx, events ...*event.Event) error {
	if batch := w.handler.Batch["ProfileUpdated"]; batch != nil {
		return batch(ctx, tx, events)
	}
	for _, e := range events {
		if err := w.handler.Each["ProfileUpdated"](ctx, tx, e); err != nil {
			return err
		}
	}
	return nil
}

// get reads a user; headers are names and values.
func (w *World) get(user string, headers ...string) *httptest.ResponseRecorder {
	return w.ask(w.api, "GET", user, headers...)
}

func (w *World) ask(api *httpapi.API, method, user string, headers ...string) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	req := httptest.NewRequest(method, "http://localhost"+w.follower.Path+"/"+user, nil)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	api.ServeHTTP(rec, req)
	return rec
}

// Shown returns what the follower believes of the user; ok is false when it has not heard of one.
func (w *World) Shown(user string) (p readmodel.Profile, ok bool) {
	w.t.Helper()
	rec := w.get(user)
	if rec.Code == http.StatusNotFound {
		return p, false
	}
	if err := json.Unmarshal(rec.Body.Bytes(), &p); err != nil || rec.Code != http.StatusOK {
		w.t.Fatalf("%d %v %s", rec.Code, err, rec.Body)
	}
	return p, true
}

// Journal returns what was applied of the user, in order.
func (w *World) Journal(user string) (applied []string) {
	w.t.Helper()
	rows, err := w.Pool.Query(context.Background(), `
SELECT 'v' || version || CASE WHEN superseded THEN ' superseded' ELSE '' END
FROM `+w.follower.Journal+`
WHERE user_id = $1
ORDER BY seq`, user)
	if err == nil {
		applied, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return applied
}

// Epoch is when the events happened: version n of a profile n seconds later.
var Epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// Updated returns the event of a version, whose content says which version it is of.
func Updated(t rapid.TB, user string, version int64) *event.Event {
	t.Helper()
	value, err := json.Marshal(schemas.ProfileUpdated{UserID: user, Version: version, Email: fmt.Sprintf("%s-%d@example.org", user, version),
		DisplayName: fmt.Sprint("version ", version), MarketingOptIn: version%2 == 0})
	if err != nil {
		t.Fatal(err)
	}
	at := Epoch.Add(time.Duration(version) * time.Second)
	return &event.Event{ID: uuid.New(), Type: "ProfileUpdated", ContentType: schemas.ContentTypeJSON, Value: value, AggregateID: user,
		AggregateVersion: version, OccurredAt: at, CommittedAt: at, Topic: "identity", Key: []byte(user)}
}

// Run runs the suite.
func Run(t *testing.T, f Follower) {
	for name, test := range map[string]func(*testing.T, Follower){
		"handles what the topology says":                  handles,
		"shows what a profile became":                     shows,
		"an event takes effect once":                      once,
		"an older version changes nothing":                older,
		"converges whatever the order":                    converges,
		"what is no profile is a dead letter at once":     refuses,
		"the lag is shown":                                lag,
		"an effect that is rolled back never was":         rollsBack,
		"without a database the reader is told to return": outage,
		"a read waits for what its token names":           waits,
		"a read that waits leaves room":                   waitsAside,
		"a stale answer says so or is none":               stale,
		"a profile is its tenant's":                       tenants,
	} {
		t.Run(name, func(t *testing.T) { test(t, f) })
	}
}

func handles(t *testing.T, f Follower) {
	got := f.New(nil, nil).Handler().Types()
	slices.Sort(got)
	_, want := schemas.ReadBy(f.Name)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-topology +handler:\n%s", diff)
	}
}

func shows(t *testing.T, f Follower) {
	w := f.World(t)
	if rec := w.get("u-1"); rec.Code != 404 || !strings.Contains(rec.Body.String(), "/problems/not-found") {
		t.Errorf("before the first event: %d %s", rec.Code, rec.Body)
	}
	for version := range int64(3) {
		if err := w.Deliver(t.Context(), Updated(t, "u-1", version+1)); err != nil {
			t.Fatal(err)
		}
	}
	rec := w.get("u-1")
	want := `{"user_id":"u-1","version":3,"email":"u-1-3@example.org","display_name":"version 3","address":"","marketing_opt_in":false,"updated_at":"2026-03-01T12:00:03Z"}`
	if rec.Code != 200 || rec.Body.String() != want || rec.Header().Get("Content-Type") != "application/json" || rec.Header().Get("Read-Model-Version") != "3" {
		t.Errorf("%d %v %s", rec.Code, rec.Header(), rec.Body)
	}
	for _, path := range []string{"u-2", "%00", "%ff", "a%20b", strings.Repeat("x", 65)} {
		if rec := w.get(path); rec.Code != 404 || !strings.Contains(rec.Body.String(), "/problems/not-found") {
			t.Errorf("%s: %d %s", path, rec.Code, rec.Body)
		}
	}
}

func once(t *testing.T, f Follower) {
	w := f.World(t)
	first, second := Updated(t, "u-1", 1), Updated(t, "u-1", 2)
	var g errgroup.Group
	for range 16 {
		for _, e := range []*event.Event{first, second} {
			g.Go(func() error { return w.Deliver(t.Context(), e) })
		}
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if applied := w.Journal("u-1"); len(applied) != 2 {
		t.Errorf("applied %q", applied)
	}
	if a, _ := w.Shown("u-1"); a.Version != 2 {
		t.Errorf("%+v", a)
	}
}

func older(t *testing.T, f Follower) {
	w := f.World(t)
	for _, version := range []int64{2, 1, 2, 5, 3, 4} {
		if err := w.Deliver(t.Context(), Updated(t, "u-1", version)); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"v2", "v1 superseded", "v2 superseded", "v5", "v3 superseded", "v4 superseded"}, w.Journal("u-1")); diff != "" {
		t.Error(diff)
	}
	if a, _ := w.Shown("u-1"); a.Version != 5 || a.DisplayName != "version 5" || a.Email != "u-1-5@example.org" || !a.UpdatedAt.Equal(Epoch.Add(5*time.Second)) {
		t.Errorf("%+v", a)
	}
}

// Whatever the order and however often events come, a profile never goes back, and ends at the newest
// version; every event stands in the journal once.
func converges(t *testing.T, f Follower) {
	w := f.World(t)
	world, round := w, 0
	rapid.Check(t, func(t *rapid.T) {
		w := *world
		w.t = t
		round++
		users := rapid.IntRange(1, 2).Draw(t, "users")
		var events []*event.Event
		newest := map[string]int64{}
		for i := range users {
			user := fmt.Sprintf("r%d-%d", round, i)
			for _, version := range rapid.SliceOfN(rapid.Int64Range(1, 5), 1, 4).Draw(t, "versions") {
				events = append(events, Updated(t, user, version))
				newest[user] = max(newest[user], version)
			}
		}
		deliveries := rapid.Permutation(slices.Concat(events, events[:rapid.IntRange(0, len(events)).Draw(t, "duplicates")])).Draw(t, "deliveries")
		seen := map[string]int64{}
		for len(deliveries) > 0 {
			n := rapid.IntRange(1, len(deliveries)).Draw(t, "batch")
			if err := w.Deliver(context.Background(), deliveries[:n]...); err != nil {
				t.Fatal(err)
			}
			for _, e := range deliveries[:n] {
				seen[e.AggregateID] = max(seen[e.AggregateID], e.AggregateVersion)
			}
			for user, version := range seen {
				if p, ok := w.Shown(user); !ok || p.Version != version || p.DisplayName != fmt.Sprint("version ", version) {
					t.Fatalf("the newest that came is %d, and shown is %+v", version, p)
				}
			}
			deliveries = deliveries[n:]
		}
		applied := 0
		for user, version := range newest {
			if a, _ := w.Shown(user); a.Version != version {
				t.Errorf("%s ends at version %d, not %d", user, a.Version, version)
			}
			applied += len(w.Journal(user))
		}
		if applied != len(events) {
			t.Errorf("%d events stand in the journal %d times", len(events), applied)
		}
	})
}

// What no profile can be is refused for good, so that it does not wait before others.
func refuses(t *testing.T, f Follower) {
	w := f.World(t)
	raw := func(value string) *event.Event {
		e := Updated(t, "u-1", 1)
		e.Value = []byte(value)
		return e
	}
	for name, e := range map[string]*event.Event{
		"no JSON":         raw(`{`),
		"no members":      raw(`{}`),
		"no user":         raw(`{"user_id":"","version":1,"email":"a@b","display_name":"A"}`),
		"two tenants":     raw(`{"user_id":"a/b/c","version":1,"email":"a@b","display_name":"A"}`),
		"an odd user":     raw(`{"user_id":"a b","version":1,"email":"a@b","display_name":"A"}`),
		"version 0":       raw(`{"user_id":"u-1","version":0,"email":"a@b","display_name":"A"}`),
		"a huge version":  raw(`{"user_id":"u-1","version":99999999999999999999,"email":"a@b","display_name":"A"}`),
		"NUL":             raw(`{"user_id":"u-1","version":1,"email":"a@b","display_name":"A\u0000"}`),
		"a lone half":     raw(`{"user_id":"u-1","version":1,"email":"a@b","display_name":"\ud800"}`),
		"invalid UTF-8":   raw("{\"user_id\":\"u-1\",\"version\":1,\"email\":\"a@b\",\"display_name\":\"\xff\"}"),
		"Avro, not given": raw("\x00\x00\x00\x00\x01\xff\xff"),
		"a tombstone":     raw(""),
	} {
		if err := w.Deliver(t.Context(), e); err == nil || event.Classify(err) != event.ClassPermanent {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, ok := w.Shown("u-1"); ok || len(w.Journal("u-1")) != 0 {
		t.Error("it left something behind")
	}
	odd := Updated(t, "u-1", 1) // a time that no answer could hold is replaced
	odd.OccurredAt = time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC)
	odd.RecordedAt, odd.CommittedAt = Epoch, odd.OccurredAt
	if err := w.Deliver(t.Context(), odd); err != nil {
		t.Fatal(err)
	}
	if a, _ := w.Shown("u-1"); !a.UpdatedAt.Equal(Epoch) {
		t.Errorf("%+v", a)
	}
}

// The lag is that of the event taken in last, from its commit to its effect.
func lag(t *testing.T, f Follower) {
	w := f.World(t)
	lag := func() float64 {
		t.Helper()
		seconds, err := time.ParseDuration(w.get("u-1").Header().Get("Read-Model-Lag") + "s")
		if err != nil {
			t.Fatal(err)
		}
		return seconds.Seconds()
	}
	old, future := Updated(t, "u-1", 1), Updated(t, "u-1", 2)
	old.CommittedAt = time.Now().Add(-time.Hour)
	future.CommittedAt = time.Now().Add(time.Hour) // a clock that is ahead
	if err := w.Deliver(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if got := lag(); got < 3600 || got > 7200 {
		t.Errorf("an event an hour old: %v s", got)
	}
	if err := w.Deliver(t.Context(), future); err != nil {
		t.Fatal(err)
	}
	if got := lag(); got != 0 {
		t.Errorf("an event of the future: %v s", got)
	}
}

// A failed transaction takes the progress, the journal and the inbox row with it.
func rollsBack(t *testing.T, f Follower) {
	w := f.World(t)
	e := Updated(t, "u-1", 1)
	owner, err := pgx.Connect(t.Context(), w.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close(context.WithoutCancel(t.Context()))
	exec := func(sql string) {
		t.Helper()
		if _, err := owner.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec("ALTER TABLE " + f.Name + "." + f.Journal + " ADD CONSTRAINT full_up CHECK (false)")
	if err := w.Deliver(t.Context(), e); err == nil || event.Classify(err) == event.ClassPermanent {
		t.Fatalf("%v", err)
	}
	if _, ok := w.Shown("u-1"); ok {
		t.Error("half an effect is shown")
	}
	exec("ALTER TABLE " + f.Name + "." + f.Journal + " DROP CONSTRAINT full_up")
	if err := w.Deliver(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"v1"}, w.Journal("u-1")); diff != "" {
		t.Error(diff)
	}
}

func outage(t *testing.T, f Follower) {
	pool, err := database.Open(t.Context(), "postgres://127.0.0.1:1/x", f.Name, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	w := f.on(t, pool)
	if rec := w.get("u-1"); rec.Code != 503 || rec.Header().Get("Retry-After") == "" || !strings.Contains(rec.Body.String(), "/problems/dependency-unavailable") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}
