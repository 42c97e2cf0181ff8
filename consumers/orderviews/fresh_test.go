package orderviews

import (
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"converge/consumers/event"
	"converge/producers/httpapi"
	"converge/schemas"
)

// read asks the API; headers are names and values.
func read(api *httpapi.API, method, path string, headers ...string) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	req := httptest.NewRequest(method, "http://localhost"+path, nil)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	api.ServeHTTP(rec, req)
	return rec
}

func lagging(rec *httptest.ResponseRecorder) bool {
	return rec.Code == 503 && rec.Header().Get("Retry-After") == "1" && rec.Header().Get("Read-Model-Lag") != "" &&
		rec.Header().Get("Read-Model-Version") != "" && strings.Contains(rec.Body.String(), "/problems/read-model-lagging")
}

// A view and a list wait for the order that a token names, until the model has come so far.
func TestReadsWaitForTheOrderThatATokenNames(t *testing.T) {
	w := newWorld(t)
	for _, view := range []string{"/order-views/o-1", "/order-views", "/order-views?customer_id=c-1"} {
		if _, err := w.pool.Exec(t.Context(), "TRUNCATE order_views"); err != nil {
			t.Fatal(err)
		}
		answers := make(chan *httptest.ResponseRecorder)
		for version := range int64(2) {
			go func() {
				answers <- read(w.api, "GET", view, "Consistency-Token", w.api.Token("orders/o-1", version+1), "Prefer", "wait=30, handling=strict")
			}()
			e := placed(t, "o-1", "c-1", epoch)
			if version == 1 {
				e = moved(t, "o-1", "c-1", 2)
			}
			if err := w.deliver(t.Context(), e); err != nil {
				t.Fatal(err)
			}
			if rec := <-answers; rec.Code != 200 || !strings.Contains(rec.Body.String(), `"state":"`+path[version+1]+`"`) {
				t.Errorf("%s: version %d: %d %s", view, version+1, rec.Code, rec.Body)
			}
		}
	}
}

// A reader whose time is over gets what is there, or is told that the model lags. A list is always there.
func TestAStaleViewIsToldApart(t *testing.T) {
	w := newWorld(t)
	if err := w.deliver(t.Context(), placed(t, "o-1", "c-1", epoch)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path    string
		order   string
		version int64
		lags    [2]bool // lenient, strict
	}{
		{"/order-views/o-1", "o-1", 1, [2]bool{false, false}},
		{"/order-views/o-1", "o-1", 2, [2]bool{false, true}},
		{"/order-views/o-2", "o-2", 1, [2]bool{true, true}},
		{"/order-views", "o-1", 1, [2]bool{false, false}},
		{"/order-views", "o-1", 2, [2]bool{false, true}},
		{"/order-views", "o-2", 1, [2]bool{false, true}},
		{"/order-views?customer_id=c-9", "o-1", 2, [2]bool{false, true}},
	} {
		for i, handling := range []string{"lenient", "strict"} {
			for _, method := range []string{"GET", "HEAD"} {
				rec := read(w.api, method, c.path, "Consistency-Token", w.api.Token("orders/"+c.order, c.version), "Prefer", "wait=0, handling="+handling)
				ok := rec.Code == 200
				if c.lags[i] {
					ok = lagging(rec)
				}
				if applied := slices.Contains(rec.Header().Values("Preference-Applied"), "handling=strict"); !ok || applied != (handling == "strict") {
					t.Errorf("%s %s for version %d of %s, %s: %d %v %s", method, c.path, c.version, c.order, handling, rec.Code, rec.Header(), rec.Body)
				}
			}
		}
	}
	for path, token := range map[string]string{
		"/order-views/o-1":             w.api.Token("orders/o-2", 1),
		"/order-views/o-1?":            w.api.Token("profiles/o-1", 1),
		"/order-views":                 w.api.Token("profiles/o-1", 1),
		"/order-views?customer_id=c-1": "1",
	} {
		if rec := read(w.api, "GET", path, "Consistency-Token", token); rec.Code != 400 || !strings.Contains(rec.Body.String(), "/problems/invalid-token") {
			t.Errorf("%s: %d %s", path, rec.Code, rec.Body)
		}
	}
	s := New(Config{Pool: w.pool, ViewWait: 100 * time.Millisecond})
	api, err := httpapi.New(httpapi.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s.Routes(api)
	began := time.Now()
	if rec := read(api, "GET", "/order-views/o-1", "Consistency-Token", api.Token("orders/o-1", 2)); rec.Code != 200 || time.Since(began) < 100*time.Millisecond {
		t.Errorf("%d after %v", rec.Code, time.Since(began))
	}
}

// Orders belong to tenants: each sees its own, one by one and in its lists, under the names that it gave.
func TestAViewIsItsTenants(t *testing.T) {
	w := newWorld(t)
	tokens, err := httpapi.ReadTokens(strings.NewReader("token-a a\ntoken-b b\n"))
	if err != nil {
		t.Fatal(err)
	}
	api, err := httpapi.New(httpapi.Config{Tokens: tokens})
	if err != nil {
		t.Fatal(err)
	}
	New(Config{Pool: w.pool, Decoder: schemas.NewCodec(schemas.JSON, schemas.IDs{})}).Routes(api)
	var events []*event.Event
	for i, customer := range []string{"a/c-1", "b/c-1", "c-1", "a/c-2", "ab/c-1"} {
		events = append(events, placed(t, "o-"+string(rune('0'+i)), customer, epoch.Add(time.Duration(i)*time.Second)))
	}
	if err := w.deliver(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
	as := func(tenant, path string, headers ...string) *httptest.ResponseRecorder {
		if tenant == "" {
			return read(w.api, "GET", path, headers...)
		}
		return read(api, "GET", path, append(headers, "Authorization", "Bearer token-"+tenant)...)
	}
	for tenant, own := range map[string]map[string][]string{
		"":  {"": {"o-2"}, "?customer_id=c-1": {"o-2"}, "?customer_id=c-2": nil},
		"a": {"": {"o-3", "o-0"}, "?customer_id=c-1": {"o-0"}, "?customer_id=c-2": {"o-3"}},
		"b": {"": {"o-1"}, "?customer_id=c-1": {"o-1"}, "?customer_id=c-2": nil},
	} {
		for query, want := range own {
			rec := as(tenant, "/order-views"+query)
			var got []string
			for _, id := range []string{"o-4", "o-3", "o-2", "o-1", "o-0"} {
				if strings.Contains(rec.Body.String(), `"id":"`+id+`"`) {
					got = append(got, id)
				}
			}
			if rec.Code != 200 || !slices.Equal(got, want) || strings.Contains(rec.Body.String(), "/c-") {
				t.Errorf("the list of %q%s: %d %s, want %q", tenant, query, rec.Code, rec.Body, want)
			}
		}
		if rec := as(tenant, "/order-views?customer_id=a%2Fc-1"); rec.Code != 422 {
			t.Errorf("a customer by its stored name: %d %s", rec.Code, rec.Body)
		}
		for i, e := range events {
			rec := as(tenant, "/order-views/"+e.AggregateID)
			if mine := slices.Contains(own[""], e.AggregateID); mine != (rec.Code == 200) || !mine && rec.Code != 404 || strings.Contains(rec.Body.String(), "/c-") {
				t.Errorf("order %d to %q: %d %s", i, tenant, rec.Code, rec.Body)
			}
		}
	}
	if rec := as("b", "/order-views/o-0", "Consistency-Token", api.Token("orders/o-0", 9), "Prefer", "wait=0"); rec.Code == 200 {
		t.Errorf("with its token b sees a's order: %s", rec.Body)
	}
	seen := ""
	for cursor := ""; ; { // page by page, past what is others'
		rec := as("a", "/order-views?limit=1"+cursor)
		_, next, more := strings.Cut(rec.Body.String(), `"next_cursor":"`)
		seen += rec.Body.String()
		if !more {
			break
		}
		cursor = "&cursor=" + strings.TrimSuffix(next, `"}`)
	}
	if strings.Count(seen, `"id":`) != 2 {
		t.Errorf("page by page: %s", seen)
	}
}

// Whatever there is of others, a list is read along an index, in its order.
func TestListsAreReadAlongAnIndex(t *testing.T) {
	w := newWorld(t)
	for index, sql := range map[string]string{"order_views_of_tenant": allSQL, "order_views_of_customer": ofCustomerSQL} {
		tx, err := w.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(t.Context()) }()
		if _, err := tx.Exec(t.Context(), "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off"); err != nil {
			t.Fatal(err)
		}
		rows, err := tx.Query(t.Context(), "EXPLAIN "+sql, epoch, "o-1", 20, "a")
		if err != nil {
			t.Fatal(err)
		}
		plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if text := strings.Join(plan, "\n"); err != nil || !strings.Contains(text, index) || strings.Contains(text, "Sort") || strings.Contains(text, "Filter") {
			t.Errorf("%v\n%s", err, text)
		}
	}
}
