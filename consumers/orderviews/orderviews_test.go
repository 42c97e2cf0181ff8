package orderviews

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
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
	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/producers/httpapi"
	"converge/schemas"
)

// world is the read model with its database and its HTTP side. There is no inbox: a view is right without.
type world struct {
	t    rapid.TB
	pool *pgxpool.Pool
	s    *Service
	api  *httpapi.API
	url  string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	url := pgtest.Database(t, "orderviews", func(ctx context.Context, url string) error {
		return database.Migrate(ctx, url, database.Module{Service: "orderviews", Sets: []database.Set{{Name: "orderviews", FS: Migrations}}})
	})
	pool, err := database.Open(t.Context(), url, "orderviews", 8)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	w := worldOn(t, pool)
	w.url = url
	return w
}

func worldOn(t *testing.T, pool *pgxpool.Pool) *world {
	t.Helper()
	s := New(Config{Pool: pool, Decoder: schemas.NewCodec(schemas.JSON, schemas.IDs{})})
	api, err := httpapi.New(httpapi.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s.Routes(api)
	return &world{t: t, pool: pool, s: s, api: api}
}

func (w *world) deliver(ctx context.Context, events ...*event.Event) error {
	return pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error { return w.s.apply(ctx, tx, events) })
}

func (w *world) get(path string) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	w.api.ServeHTTP(rec, httptest.NewRequest("GET", "http://localhost"+path, nil))
	return rec
}

func (w *world) shown(id string) (v view, ok bool) {
	w.t.Helper()
	rec := w.get("/order-views/" + id)
	if rec.Code == 404 {
		return view{}, false
	}
	if err := json.Unmarshal(rec.Body.Bytes(), &v); err != nil || rec.Code != 200 {
		w.t.Fatalf("%d %v %s", rec.Code, err, rec.Body)
	}
	return v, true
}

// list returns a page's ids and what it says of the next.
func (w *world) list(query string) (ids []string, next string) {
	w.t.Helper()
	rec := w.get("/order-views" + query)
	var p page
	if err := json.Unmarshal(rec.Body.Bytes(), &p); err != nil || rec.Code != 200 {
		w.t.Fatalf("%s: %d %v %s", query, rec.Code, err, rec.Body)
	}
	for _, v := range p.Items {
		ids = append(ids, v.ID)
	}
	return ids, p.NextCursor
}

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newEvent(t rapid.TB, eventType, id string, version int64, data any) *event.Event {
	t.Helper()
	value, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	at := epoch.Add(time.Duration(version) * time.Second)
	return &event.Event{ID: uuid.New(), Type: eventType, ContentType: schemas.ContentTypeJSON, Value: value, AggregateID: id,
		AggregateVersion: version, OccurredAt: at, CommittedAt: at, Topic: "orders"}
}

func placed(t rapid.TB, id, customer string, at time.Time) *event.Event {
	e := newEvent(t, "OrderPlaced", id, 1, schemas.OrderPlaced{OrderID: id, CustomerID: customer, Items: []schemas.Line{{SKU: "BOOK-1", Quantity: 1}},
		TotalAmount: 1499, Currency: "USD", PaymentMethod: "card-ok", ShipCountry: "DE"})
	e.OccurredAt = at
	return e
}

// path is the states of an order, by version.
var path = []string{"", "PENDING", "IN_PROGRESS", "IN_PROGRESS", "IN_PROGRESS", "COMPLETED"}

func moved(t rapid.TB, id, customer string, version int64) *event.Event {
	return newEvent(t, "OrderStatusChanged", id, version, schemas.OrderStatusChanged{OrderID: id, CustomerID: customer,
		State: path[version], DetailState: "PAID", TotalAmount: 1499, Currency: "USD"})
}

func TestHandlesWhatTheTopologySays(t *testing.T) {
	got := New(Config{}).Handler().Types()
	slices.Sort(got)
	_, want := schemas.ReadBy("orderviews")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-topology +handler:\n%s", diff)
	}
}

func TestAViewShowsWhatItsOrderBecame(t *testing.T) {
	w := newWorld(t)
	if rec := w.get("/order-views/o-1"); rec.Code != 404 || !strings.Contains(rec.Body.String(), "/problems/not-found") {
		t.Errorf("before the first event: %d %s", rec.Code, rec.Body)
	}
	if rec := w.get("/order-views"); rec.Body.String() != `{"items":[]}` || rec.Header().Get("Read-Model-Version") != "0" || rec.Header().Get("Read-Model-Lag") != "0.000" {
		t.Errorf("an empty model: %v %s", rec.Header(), rec.Body)
	}
	if err := w.deliver(t.Context(), placed(t, "o-1", "c-1", epoch)); err != nil {
		t.Fatal(err)
	}
	if err := w.deliver(t.Context(), moved(t, "o-1", "c-1", 2), moved(t, "o-1", "c-1", 3)); err != nil {
		t.Fatal(err)
	}
	rec := w.get("/order-views/o-1")
	want := `{"id":"o-1","customer_id":"c-1","state":"IN_PROGRESS","total":{"amount":1499,"currency":"USD"},"version":3,"updated_at":"2026-03-01T12:00:03Z"}`
	if rec.Code != 200 || rec.Body.String() != want || rec.Header().Get("Read-Model-Version") != "3" {
		t.Errorf("%d %v %s", rec.Code, rec.Header(), rec.Body)
	}
	if rec := w.get("/order-views"); rec.Body.String() != `{"items":[`+want+`]}` || rec.Header().Get("Read-Model-Version") != "3" {
		t.Errorf("%v %s", rec.Header(), rec.Body)
	}
	for _, id := range []string{"o-2", "%00", "%ff", "a%20b", strings.Repeat("x", 65)} {
		if rec := w.get("/order-views/" + id); rec.Code != 404 || !strings.Contains(rec.Body.String(), "/problems/not-found") {
			t.Errorf("%s: %d %s", id, rec.Code, rec.Body)
		}
	}
}

// A view never goes back: not by older versions, not inside a batch, not across batches.
func TestAnOlderVersionChangesNothing(t *testing.T) {
	w := newWorld(t)
	for i, step := range []struct {
		events  []*event.Event
		version int64
	}{
		{[]*event.Event{moved(t, "o-1", "c-1", 2)}, 2}, // its OrderPlaced is late
		{[]*event.Event{placed(t, "o-1", "c-1", epoch)}, 2},
		{[]*event.Event{moved(t, "o-1", "c-1", 5), moved(t, "o-1", "c-1", 3)}, 5},
		{[]*event.Event{moved(t, "o-1", "c-1", 4), moved(t, "o-1", "c-1", 2), placed(t, "o-1", "c-1", epoch)}, 5},
	} {
		if err := w.deliver(t.Context(), step.events...); err != nil {
			t.Fatal(err)
		}
		if v, _ := w.shown("o-1"); v.Version != step.version || v.State != path[step.version] {
			t.Errorf("step %d: %+v", i, v)
		}
	}
}

// Whatever the order, however cut into batches, and however often events come: a view shows the newest
// that came, and its place in the list is where it was first seen.
func TestViewsConvergeWhateverTheOrder(t *testing.T) {
	world, round := newWorld(t), 0
	rapid.Check(t, func(t *rapid.T) {
		w := *world
		w.t = t
		round++
		customer := fmt.Sprint("c-", round)
		var events []*event.Event
		for i := range rapid.IntRange(1, 3).Draw(t, "orders") {
			id := fmt.Sprintf("r%d-%d", round, i)
			events = append(events, placed(t, id, customer, epoch.Add(time.Duration(i)*time.Minute)))
			for version := range rapid.Int64Range(0, 4).Draw(t, "changes") {
				events = append(events, moved(t, id, customer, version+2))
			}
		}
		deliveries := rapid.Permutation(slices.Concat(events, events[:rapid.IntRange(0, len(events)).Draw(t, "duplicates")])).Draw(t, "deliveries")
		seen, at := map[string]int64{}, map[string]string{}
		for len(deliveries) > 0 {
			n := rapid.IntRange(1, len(deliveries)).Draw(t, "batch")
			if err := w.deliver(context.Background(), deliveries[:n]...); err != nil {
				t.Fatal(err)
			}
			for _, e := range deliveries[:n] {
				seen[e.AggregateID] = max(seen[e.AggregateID], e.AggregateVersion)
			}
			deliveries = deliveries[n:]
			var p page
			if err := json.Unmarshal(w.get("/order-views?customer_id="+customer).Body.Bytes(), &p); err != nil || len(p.Items) != len(seen) {
				t.Fatalf("%d orders were told of, %d are listed (%v)", len(seen), len(p.Items), err)
			}
			for _, v := range p.Items {
				if v.Version != seen[v.ID] || v.State != path[v.Version] || v.CustomerID != customer || v.Total != (money{1499, "USD"}) {
					t.Fatalf("the newest that came is %d, and shown is %+v", seen[v.ID], v)
				}
				var place string
				if err := w.pool.QueryRow(context.Background(), "SELECT placed_at::text FROM order_views WHERE id = $1", v.ID).Scan(&place); err != nil {
					t.Fatal(err)
				}
				if was, ok := at[v.ID]; ok && was != place {
					t.Fatalf("%s moved in the list from %s to %s", v.ID, was, place)
				}
				at[v.ID] = place
			}
		}
	})
}

// Two batches with the same orders in opposite orders do not deadlock: each has begun with its first when
// both wait for the one in the middle.
func TestBatchesOfTheSameOrdersDoNotDeadlock(t *testing.T) {
	w := newWorld(t)
	batch := func(partition int32, version int64, ids ...string) (events []*event.Event) {
		for _, id := range ids {
			e := moved(t, id, "c-1", version)
			e.Partition = partition
			events = append(events, e)
		}
		return events
	}
	var g errgroup.Group
	if err := pgx.BeginFunc(t.Context(), w.pool, func(tx pgx.Tx) error {
		if err := w.s.apply(t.Context(), tx, batch(1, 2, "m")); err != nil {
			return err
		}
		g.Go(func() error { return w.deliver(t.Context(), batch(2, 3, "a", "m", "z")...) })
		g.Go(func() error { return w.deliver(t.Context(), batch(3, 5, "z", "m", "a")...) })
		pgtest.AwaitBlocked(t, w.url, 2)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", "m", "z"} {
		if v, _ := w.shown(id); v.Version != 5 {
			t.Errorf("%+v", v)
		}
	}
}

// What no order can be is refused for good, so that it does not wait before others.
func TestWhatIsNoOrderIsADeadLetterAtOnce(t *testing.T) {
	w := newWorld(t)
	status := func(change func(*schemas.OrderStatusChanged)) *event.Event {
		data := schemas.OrderStatusChanged{OrderID: "o-1", CustomerID: "c-1", State: "PENDING", DetailState: "PENDING", TotalAmount: 1, Currency: "USD"}
		change(&data)
		return newEvent(t, "OrderStatusChanged", "o-1", 2, data)
	}
	unversioned := moved(t, "o-1", "c-1", 2)
	unversioned.AggregateVersion = 0
	broken := placed(t, "o-1", "c-1", epoch)
	broken.Value = []byte("{")
	tombstone := placed(t, "o-1", "c-1", epoch)
	tombstone.Value = nil
	for name, e := range map[string]*event.Event{
		"no JSON":           broken,
		"a tombstone":       tombstone,
		"no version":        unversioned,
		"no order":          status(func(c *schemas.OrderStatusChanged) { c.OrderID = "" }),
		"an odd customer":   status(func(c *schemas.OrderStatusChanged) { c.CustomerID = "c\x00" }),
		"an unknown state":  status(func(c *schemas.OrderStatusChanged) { c.State = "LOST" }),
		"less than nothing": status(func(c *schemas.OrderStatusChanged) { c.TotalAmount = -1 }),
		"odd money":         status(func(c *schemas.OrderStatusChanged) { c.Currency = "usd" }),
	} {
		if err := w.deliver(t.Context(), e); err == nil || event.Classify(err) != event.ClassPermanent {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, ok := w.shown("o-1"); ok {
		t.Error("it left something behind")
	}
	byHand := placed(t, "o-2", "c-1", epoch) // as kcat writes it: no version, and a time that nobody can print
	byHand.AggregateVersion, byHand.OccurredAt, byHand.RecordedAt = 0, time.Date(99999, 1, 1, 0, 0, 0, 0, time.UTC), epoch
	if err := w.deliver(t.Context(), byHand); err != nil {
		t.Fatal(err)
	}
	if v, ok := w.shown("o-2"); !ok || v.Version != 1 || !v.UpdatedAt.Equal(epoch) {
		t.Errorf("%+v", v)
	}
}

// Page by page a reader sees every order that was there when it began, once, newest first, whatever
// changes meanwhile.
func TestPagesStandStillUnderWrites(t *testing.T) {
	w := newWorld(t)
	var events []*event.Event
	var want []string
	for i := range 25 {
		// Some share their moment: the id decides, and no order falls between two pages.
		id := fmt.Sprintf("o-%02d", i)
		events = append(events, placed(t, id, fmt.Sprint("c-", i%2), epoch.Add(time.Duration(i/5)*time.Second)))
		want = append(want, id)
	}
	if err := w.deliver(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
	slices.Reverse(want)
	for _, limit := range []int{1, 2, 5, 7, 25, 100} {
		var got []string
		query := fmt.Sprintf("?limit=%d", limit)
		for cursor, pages := "", 0; ; pages++ {
			q := query
			if cursor != "" {
				q += "&cursor=" + cursor
			}
			ids, next := w.list(q)
			if len(ids) > limit || pages > 30 {
				t.Fatalf("limit %d: page %d has %q", limit, pages, ids)
			}
			got = append(got, ids...)
			if next == "" {
				break
			}
			cursor = next
			// Meanwhile a new order comes, and one that was shown changes.
			late := placed(t, fmt.Sprintf("late-%d-%d", limit, pages), "c-9", epoch.Add(time.Hour))
			if err := w.deliver(t.Context(), late, moved(t, ids[0], "c-0", 2+int64(pages%4))); err != nil {
				t.Fatal(err)
			}
		}
		got = slices.DeleteFunc(got, func(id string) bool { return strings.HasPrefix(id, "late") })
		if diff := cmp.Diff(want, got); diff != "" && limit != 100 {
			t.Errorf("limit %d:\n%s", limit, diff)
		}
	}
	if ids, next := w.list("?customer_id=c-1&limit=3"); next == "" || !slices.Equal(ids, []string{"o-23", "o-21", "o-19"}) {
		t.Errorf("%q %q", ids, next)
	}
	if ids, next := w.list("?customer_id=nobody"); ids != nil || next != "" {
		t.Errorf("%q %q", ids, next)
	}
	if ids, _ := w.list(""); len(ids) != defaultLimit {
		t.Errorf("%d by default", len(ids))
	}
}

func TestBadQueriesAreRefused(t *testing.T) {
	w := newWorld(t)
	if err := w.deliver(t.Context(), placed(t, "o-1", "c-1", epoch)); err != nil {
		t.Fatal(err)
	}
	good := cursor{epoch.Add(time.Hour), "o-1"}.String()
	for _, query := range []string{"", "?limit=1", "?limit=100", "?customer_id=c-1", "?cursor=" + good, "?limit=1&customer_id=c-1&cursor=" + good, "?other=1"} {
		if ids, _ := w.list(query); !slices.Equal(ids, []string{"o-1"}) {
			t.Errorf("%s: %q", query, ids)
		}
	}
	for _, query := range []string{
		"?limit=", "?limit=0", "?limit=-1", "?limit=101", "?limit=1.5", "?limit=x", "?limit=99999999999999999999", "?limit=1&limit=2", "?limit=%00",
		"?customer_id=", "?customer_id=a%20b", "?customer_id=%00", "?customer_id=%ff", "?customer_id=" + strings.Repeat("x", 65), "?customer_id=a&customer_id=b",
		"?cursor=", "?cursor=x", "?cursor=%00", "?cursor=" + good + "x!", "?cursor=" + good + "&cursor=" + good,
		"?cursor=" + cursorOf("1"), "?cursor=" + cursorOf("x.o-1"), "?cursor=" + cursorOf("1."), "?cursor=" + cursorOf("1.a\x00"),
		"?cursor=" + cursorOf("9223372036854775807.o-1"), "?cursor=" + cursorOf("-9223372036854775808.o-1"), "?cursor=" + cursorOf("253402300800000000.o-1"),
		"?customer_id=%zz", "?limit=%", "?customer_id=a;limit=2",
	} {
		rec := w.get("/order-views" + query)
		if rec.Code != 422 || !strings.Contains(rec.Body.String(), "/problems/validation-failed") || strings.Contains(rec.Body.String(), good) {
			t.Errorf("%q: %d %s", query, rec.Code, rec.Body)
		}
	}
}

func cursorOf(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

// Any cursor is answered: with a page, or with what is wrong with it.
func FuzzCursor(f *testing.F) {
	for _, text := range []string{cursor{epoch, "o-1"}.String(), newest.String(), "", "MS5v", cursorOf("-62135596800000001.a"), cursorOf("0.a.b")} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseCursor(text)
		if err != nil {
			return
		}
		if again, err := parseCursor(c.String()); err != nil || again.id != c.id || !again.placedAt.Equal(c.placedAt) {
			t.Errorf("%q is %+v, and again %+v %v", text, c, again, err)
		}
		if _, err := c.placedAt.MarshalJSON(); err != nil || !httpapi.ID.Valid(c.id) {
			t.Errorf("%q is %+v: %v", text, c, err)
		}
	})
}

func TestTheLagIsShown(t *testing.T) {
	w := newWorld(t)
	old := placed(t, "o-1", "c-1", epoch)
	old.CommittedAt = time.Now().Add(-time.Hour)
	if err := w.deliver(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/order-views", "/order-views/o-1"} {
		lag, err := time.ParseDuration(w.get(path).Header().Get("Read-Model-Lag") + "s")
		if err != nil || lag < time.Hour || lag > 2*time.Hour {
			t.Errorf("%s: an event an hour old: %v %v", path, lag, err)
		}
	}
}

func TestWithoutADatabaseTheReaderIsToldToComeBack(t *testing.T) {
	pool, err := database.Open(t.Context(), "postgres://127.0.0.1:1/x", "orderviews", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	w := worldOn(t, pool)
	for _, path := range []string{"/order-views", "/order-views/o-1"} {
		if rec := w.get(path); rec.Code != 503 || rec.Header().Get("Retry-After") == "" {
			t.Errorf("%s: %d %s", path, rec.Code, rec.Body)
		}
	}
}
