package analytics

import (
	"context"
	"encoding/json"
	"fmt"
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
	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/producers/httpapi"
	"converge/schemas"
)

// world is Analytics with its database, its HTTP side, and the part of the runtime that it leans on.
type world struct {
	t    rapid.TB
	pool *pgxpool.Pool
	s    *Service
	api  http.Handler
	url  string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	url := pgtest.Database(t, "analytics", func(ctx context.Context, url string) error {
		return database.Migrate(ctx, url, database.Module{Service: "analytics", Sets: []database.Set{
			{Name: "inbox", FS: inbox.Migrations}, {Name: "analytics", FS: Migrations}}})
	})
	pool, err := database.Open(t.Context(), url, "analytics", 8)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	s := New(Config{Pool: pool, Decoder: schemas.NewCodec(schemas.JSON, schemas.IDs{})})
	api, err := httpapi.New(httpapi.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s.Routes(api)
	return &world{t, pool, s, api, url}
}

// deliver is what the runtime does with records of one partition: the inbox and the handler in one
// transaction, for those that are fresh.
func (w *world) deliver(ctx context.Context, events ...*event.Event) error {
	return pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		var fresh []*event.Event
		for _, e := range events {
			isFresh, err := inbox.Once(ctx, tx, "analytics", inbox.Entry{ID: e.ID, Day: inbox.Day(e.ID, e.OccurredAt)})
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
		return w.s.Handler().Batch["ProfileUpdated"](ctx, tx, fresh)
	})
}

func (w *world) get(path string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", "http://localhost"+path, nil)
	rec := httptest.NewRecorder()
	w.api.ServeHTTP(rec, r)
	return rec
}

// shown returns what Analytics believes of the user; ok is false when it has not heard of one.
func (w *world) shown(user string) (a profile, ok bool) {
	w.t.Helper()
	rec := w.get("/analytics/profiles/" + user)
	if rec.Code == 404 {
		return profile{}, false
	}
	if err := json.Unmarshal(rec.Body.Bytes(), &a); err != nil || rec.Code != 200 {
		w.t.Fatalf("%d %v %s", rec.Code, err, rec.Body)
	}
	return a, true
}

// journal returns what was applied of the user, in order.
func (w *world) journal(user string) (applied []string) {
	w.t.Helper()
	rows, err := w.pool.Query(context.Background(), `
SELECT 'v' || version || CASE WHEN superseded THEN ' superseded' ELSE '' END
FROM profile_changes
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

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// updated returns the event of a version, whose content says which version it is of.
func updated(t rapid.TB, user string, version int64) *event.Event {
	t.Helper()
	value, err := json.Marshal(schemas.ProfileUpdated{UserID: user, Version: version, Email: fmt.Sprintf("%s-%d@example.org", user, version),
		DisplayName: fmt.Sprint("version ", version), MarketingOptIn: version%2 == 0})
	if err != nil {
		t.Fatal(err)
	}
	at := epoch.Add(time.Duration(version) * time.Second)
	return &event.Event{ID: uuid.New(), Type: "ProfileUpdated", ContentType: schemas.ContentTypeJSON, Value: value, AggregateID: user,
		AggregateVersion: version, OccurredAt: at, CommittedAt: at, Topic: "identity", Key: []byte(user)}
}

func TestHandlesWhatTheTopologySays(t *testing.T) {
	got := New(Config{}).Handler().Types()
	slices.Sort(got)
	_, want := schemas.ReadBy("analytics")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-topology +handler:\n%s", diff)
	}
}

func TestAProfileShowsWhatItsProfileBecame(t *testing.T) {
	w := newWorld(t)
	if rec := w.get("/analytics/profiles/u-1"); rec.Code != 404 || !strings.Contains(rec.Body.String(), "/problems/not-found") {
		t.Errorf("before the first event: %d %s", rec.Code, rec.Body)
	}
	for version := range int64(3) {
		if err := w.deliver(t.Context(), updated(t, "u-1", version+1)); err != nil {
			t.Fatal(err)
		}
	}
	rec := w.get("/analytics/profiles/u-1")
	want := `{"user_id":"u-1","version":3,"email":"u-1-3@example.org","display_name":"version 3","address":"","marketing_opt_in":false,"updated_at":"2026-03-01T12:00:03Z"}`
	if rec.Code != 200 || rec.Body.String() != want || rec.Header().Get("Content-Type") != "application/json" || rec.Header().Get("Read-Model-Version") != "3" {
		t.Errorf("%d %v %s", rec.Code, rec.Header(), rec.Body)
	}
	for _, path := range []string{"u-2", "%00", "%ff", "a%20b", strings.Repeat("x", 65)} {
		if rec := w.get("/analytics/profiles/" + path); rec.Code != 404 || !strings.Contains(rec.Body.String(), "/problems/not-found") {
			t.Errorf("%s: %d %s", path, rec.Code, rec.Body)
		}
	}
}

func TestAnEventTakesEffectOnce(t *testing.T) {
	w := newWorld(t)
	first, second := updated(t, "u-1", 1), updated(t, "u-1", 2)
	var g errgroup.Group
	for range 16 {
		for _, e := range []*event.Event{first, second} {
			g.Go(func() error { return w.deliver(t.Context(), e) })
		}
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if applied := w.journal("u-1"); len(applied) != 2 {
		t.Errorf("applied %q", applied)
	}
	if a, _ := w.shown("u-1"); a.Version != 2 {
		t.Errorf("%+v", a)
	}
}

func TestAnOlderVersionChangesNothing(t *testing.T) {
	w := newWorld(t)
	for _, version := range []int64{2, 1, 2, 5, 3, 4} {
		if err := w.deliver(t.Context(), updated(t, "u-1", version)); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"v2", "v1 superseded", "v2 superseded", "v5", "v3 superseded", "v4 superseded"}, w.journal("u-1")); diff != "" {
		t.Error(diff)
	}
	if a, _ := w.shown("u-1"); a.Version != 5 || a.DisplayName != "version 5" || a.Email != "u-1-5@example.org" || !a.UpdatedAt.Equal(epoch.Add(5*time.Second)) {
		t.Errorf("%+v", a)
	}
}

// Whatever the order and however often events come, a profile never goes back, and ends at the newest
// version; every event stands in the journal once.
func TestProfilesConvergeWhateverTheOrder(t *testing.T) {
	w := newWorld(t)
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
				events = append(events, updated(t, user, version))
				newest[user] = max(newest[user], version)
			}
		}
		deliveries := rapid.Permutation(slices.Concat(events, events[:rapid.IntRange(0, len(events)).Draw(t, "duplicates")])).Draw(t, "deliveries")
		seen := map[string]int64{}
		for len(deliveries) > 0 {
			n := rapid.IntRange(1, len(deliveries)).Draw(t, "batch")
			if err := w.deliver(context.Background(), deliveries[:n]...); err != nil {
				t.Fatal(err)
			}
			for _, e := range deliveries[:n] {
				seen[e.AggregateID] = max(seen[e.AggregateID], e.AggregateVersion)
			}
			for user, version := range seen {
				if p, ok := w.shown(user); !ok || p.Version != version || p.DisplayName != fmt.Sprint("version ", version) {
					t.Fatalf("the newest that came is %d, and shown is %+v", version, p)
				}
			}
			deliveries = deliveries[n:]
		}
		applied := 0
		for user, version := range newest {
			if a, _ := w.shown(user); a.Version != version {
				t.Errorf("%s ends at version %d, not %d", user, a.Version, version)
			}
			applied += len(w.journal(user))
		}
		if applied != len(events) {
			t.Errorf("%d events stand in the journal %d times", len(events), applied)
		}
	})
}

// A batch is taken in as if its events came one by one.
func TestABatchIsTakenInAsIfOneByOne(t *testing.T) {
	w := newWorld(t)
	if err := w.deliver(t.Context(), updated(t, "u-1", 2)); err != nil {
		t.Fatal(err)
	}
	twice := updated(t, "u-2", 1)
	if err := w.deliver(t.Context(), updated(t, "u-1", 1), updated(t, "u-2", 3), updated(t, "u-1", 3), twice, updated(t, "u-1", 5),
		updated(t, "u-1", 4), twice, updated(t, "u-1", 5), updated(t, "u-3", 1)); err != nil {
		t.Fatal(err)
	}
	for user, want := range map[string][]string{
		"u-1": {"v2", "v1 superseded", "v3", "v5", "v4 superseded", "v5 superseded"},
		"u-2": {"v3", "v1 superseded"},
		"u-3": {"v1"},
	} {
		if diff := cmp.Diff(want, w.journal(user)); diff != "" {
			t.Errorf("%s:\n%s", user, diff)
		}
	}
	for user, version := range map[string]int64{"u-1": 5, "u-2": 3, "u-3": 1} {
		if p, _ := w.shown(user); p.Version != version || p.DisplayName != fmt.Sprint("version ", version) || !p.UpdatedAt.Equal(epoch.Add(time.Duration(version)*time.Second)) {
			t.Errorf("%s: %+v", user, p)
		}
	}
	old := updated(t, "u-3", 1) // a batch in which nothing is new
	if err := w.deliver(t.Context(), old, updated(t, "u-1", 1)); err != nil {
		t.Fatal(err)
	}
	if p, _ := w.shown("u-3"); p.Version != 1 {
		t.Errorf("%+v", p)
	}
}

// Two batches with the same users in opposite orders do not deadlock, also when nobody knows the users yet:
// each has begun with its first user when both wait for the one in the middle.
func TestBatchesOfTheSameUsersDoNotDeadlock(t *testing.T) {
	w := newWorld(t)
	batch := func(partition int32, version int64, users ...string) (events []*event.Event) {
		for _, user := range users {
			e := updated(t, user, version)
			e.Partition = partition
			events = append(events, e)
		}
		return events
	}
	var g errgroup.Group
	if err := pgx.BeginFunc(t.Context(), w.pool, func(tx pgx.Tx) error {
		if err := w.s.apply(t.Context(), tx, batch(1, 1, "m")); err != nil {
			return err
		}
		g.Go(func() error { return w.deliver(t.Context(), batch(2, 2, "a", "m", "z")...) })
		g.Go(func() error { return w.deliver(t.Context(), batch(3, 3, "z", "m", "a")...) })
		awaitBlocked(t, w.url, 2)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"a", "m", "z"} {
		if p, _ := w.shown(user); p.Version != 3 {
			t.Errorf("%+v", p)
		}
	}
}

// Of two transactions that hear of a user for the first time, the later waits, and compares again.
func TestAFirstVersionThatComesLateChangesNothing(t *testing.T) {
	w := newWorld(t)
	newer, older := updated(t, "u-1", 5), updated(t, "u-1", 3)
	newer.Partition, older.Partition = 1, 2
	var g errgroup.Group
	if err := pgx.BeginFunc(t.Context(), w.pool, func(tx pgx.Tx) error {
		if err := w.s.apply(t.Context(), tx, []*event.Event{newer}); err != nil {
			return err
		}
		g.Go(func() error { return w.deliver(t.Context(), older) })
		awaitBlocked(t, w.url, 1)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if p, _ := w.shown("u-1"); p.Version != 5 || p.DisplayName != "version 5" {
		t.Errorf("%+v", p)
	}
}

// awaitBlocked returns when so many sessions of the database wait for another's lock.
func awaitBlocked(t *testing.T, url string, sessions int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		var blocked int
		if err := conn.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0").Scan(&blocked); err != nil {
			t.Fatalf("%d sessions wait for a lock, not %d: %v", blocked, sessions, err)
		}
		if blocked >= sessions {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// What no profile can be is refused for good, so that it does not wait before others.
func TestWhatIsNoProfileIsADeadLetterAtOnce(t *testing.T) {
	w := newWorld(t)
	raw := func(value string) *event.Event {
		e := updated(t, "u-1", 1)
		e.Value = []byte(value)
		return e
	}
	for name, e := range map[string]*event.Event{
		"no JSON":         raw(`{`),
		"no members":      raw(`{}`),
		"no user":         raw(`{"user_id":"","version":1,"email":"a@b","display_name":"A"}`),
		"an odd user":     raw(`{"user_id":"a b","version":1,"email":"a@b","display_name":"A"}`),
		"version 0":       raw(`{"user_id":"u-1","version":0,"email":"a@b","display_name":"A"}`),
		"a huge version":  raw(`{"user_id":"u-1","version":99999999999999999999,"email":"a@b","display_name":"A"}`),
		"NUL":             raw(`{"user_id":"u-1","version":1,"email":"a@b","display_name":"A\u0000"}`),
		"a lone half":     raw(`{"user_id":"u-1","version":1,"email":"a@b","display_name":"\ud800"}`),
		"invalid UTF-8":   raw("{\"user_id\":\"u-1\",\"version\":1,\"email\":\"a@b\",\"display_name\":\"\xff\"}"),
		"Avro, not given": raw("\x00\x00\x00\x00\x01\xff\xff"),
		"a tombstone":     raw(""),
	} {
		if err := w.deliver(t.Context(), e); err == nil || event.Classify(err) != event.ClassPermanent {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, ok := w.shown("u-1"); ok || len(w.journal("u-1")) != 0 {
		t.Error("it left something behind")
	}
	odd := updated(t, "u-1", 1) // a time that no answer could hold is replaced
	odd.OccurredAt = time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC)
	odd.RecordedAt, odd.CommittedAt = epoch, odd.OccurredAt
	if err := w.deliver(t.Context(), odd); err != nil {
		t.Fatal(err)
	}
	if a, _ := w.shown("u-1"); !a.UpdatedAt.Equal(epoch) {
		t.Errorf("%+v", a)
	}
}

// The lag is that of the event taken in last, from its commit to its effect.
func TestTheLagIsShown(t *testing.T) {
	w := newWorld(t)
	lag := func() float64 {
		t.Helper()
		seconds, err := time.ParseDuration(w.get("/analytics/profiles/u-1").Header().Get("Read-Model-Lag") + "s")
		if err != nil {
			t.Fatal(err)
		}
		return seconds.Seconds()
	}
	old, future := updated(t, "u-1", 1), updated(t, "u-1", 2)
	old.CommittedAt = time.Now().Add(-time.Hour)
	future.CommittedAt = time.Now().Add(time.Hour) // a clock that is ahead
	if err := w.deliver(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if got := lag(); got < 3600 || got > 7200 {
		t.Errorf("an event an hour old: %v s", got)
	}
	if err := w.deliver(t.Context(), future); err != nil {
		t.Fatal(err)
	}
	if got := lag(); got != 0 {
		t.Errorf("an event of the future: %v s", got)
	}
}

// A failed transaction takes the progress, the journal and the inbox row with it.
func TestAnEffectThatIsRolledBackIsAsIfItNeverWas(t *testing.T) {
	w := newWorld(t)
	e := updated(t, "u-1", 1)
	owner, err := pgx.Connect(t.Context(), w.url)
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
	exec("ALTER TABLE analytics.profile_changes ADD CONSTRAINT full_up CHECK (false)")
	if err := w.deliver(t.Context(), e); err == nil || event.Classify(err) == event.ClassPermanent {
		t.Fatalf("%v", err)
	}
	if _, ok := w.shown("u-1"); ok {
		t.Error("half an effect is shown")
	}
	exec("ALTER TABLE analytics.profile_changes DROP CONSTRAINT full_up")
	if err := w.deliver(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"v1"}, w.journal("u-1")); diff != "" {
		t.Error(diff)
	}
}

func TestWithoutADatabaseTheReaderIsToldToComeBack(t *testing.T) {
	pool, err := database.Open(t.Context(), "postgres://127.0.0.1:1/x", "analytics", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	api, err := httpapi.New(httpapi.Config{})
	if err != nil {
		t.Fatal(err)
	}
	New(Config{Pool: pool}).Routes(api)
	w := &world{t: t, api: api}
	if rec := w.get("/analytics/profiles/u-1"); rec.Code != 503 || rec.Header().Get("Retry-After") == "" || !strings.Contains(rec.Body.String(), "/problems/dependency-unavailable") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}
