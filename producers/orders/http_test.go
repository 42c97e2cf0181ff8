package orders

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"converge/producers/httpapi"
	"converge/schemas"
)

// client talks to Orders over real HTTP.
type client struct {
	t     *testing.T
	w     *world
	base  string
	token string // of whom it speaks for; "" sends none
}

func newClient(t *testing.T) *client {
	t.Helper()
	return newClientOf(t, httpapi.Config{})
}

func newClientOf(t *testing.T, cfg httpapi.Config) *client {
	t.Helper()
	w := newWorld(t, 1, time.Hour, time.Hour)
	api, err := httpapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.orders.Routes(api)
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	return &client{t, w, server.URL, ""}
}

type reply struct {
	code   int
	header http.Header
	body   map[string]any
	raw    string
}

func (c *client) do(method, path, body string, headers ...string) reply {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.base+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	got := reply{code: res.StatusCode, header: res.Header, raw: string(raw)}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &got.body); err != nil {
			c.t.Fatalf("%s %s: %v in %s", method, path, err, raw)
		}
	}
	return got
}

func (c *client) place(key string) (id string, got reply) {
	c.t.Helper()
	got = c.do("POST", "/orders", `{"customer_id":"c-1","items":[{"sku":"BOOK-1","quantity":2},{"sku":"MUG-1","quantity":1}]}`, "Idempotency-Key", key)
	if got.code != http.StatusAccepted {
		c.t.Fatalf("%d %s", got.code, got.raw)
	}
	return got.body["id"].(string), got
}

func (c *client) hears(events ...any) {
	c.t.Helper()
	for _, data := range events {
		name := strings.TrimPrefix(fmt.Sprintf("%T", data), "schemas.")
		if err := c.w.apply(c.t.Context(), newEvent(c.t, name, data)); err != nil {
			c.t.Fatal(err)
		}
	}
}

// keys returns the members of an object, for comparing with the contract's.
func keys(t *testing.T, object map[string]any, want ...string) {
	t.Helper()
	got, wanted := map[string]bool{}, map[string]bool{}
	for k := range object {
		got[k] = true
	}
	for _, k := range want {
		wanted[k] = true
	}
	if diff := cmp.Diff(wanted, got); diff != "" {
		t.Errorf("members (-contract +answer):\n%s", diff)
	}
}

func TestAnOrderIsAcceptedAndFollowed(t *testing.T) {
	c := newClient(t)
	id, got := c.place("k-1")
	keys(t, got.body, "id", "state", "version", "status_url", "created_at")
	if got.header.Get("Location") != "/orders/"+id || got.body["status_url"] != "/orders/"+id+"/status" || got.body["state"] != "PENDING" {
		t.Errorf("%v %s", got.header, got.raw)
	}

	st := c.do("GET", "/orders/"+id+"/status", "")
	keys(t, st.body, "id", "state", "detail_state", "version", "updated_at")
	if st.code != 200 || st.header.Get("ETag") != `"1"` || st.header.Get("Retry-After") != "1" || st.header.Get("Cache-Control") != "no-cache" {
		t.Errorf("%d %v", st.code, st.header)
	}
	if again := c.do("GET", "/orders/"+id+"/status", "", "If-None-Match", `"1"`); again.code != 304 || again.raw != "" {
		t.Errorf("unchanged: %d %s", again.code, again.raw)
	}

	c.hears(schemas.StockReserved{OrderID: id}, schemas.PaymentAuthorized{OrderID: id})
	if st := c.do("GET", "/orders/"+id+"/status", "", "If-None-Match", `"1"`); st.body["state"] != "IN_PROGRESS" || st.body["detail_state"] != "PAID" {
		t.Errorf("%s", st.raw)
	}
	c.hears(schemas.ShipmentArranged{OrderID: id})
	whole := c.do("GET", "/orders/"+id, "")
	keys(t, whole.body, "id", "state", "detail_state", "version", "updated_at", "customer_id", "items", "total", "history")
	if whole.body["state"] != "COMPLETED" || whole.header.Get("Retry-After") != "" || whole.header.Get("ETag") != `"5"` {
		t.Errorf("%v %s", whole.header, whole.raw)
	}
	if diff := cmp.Diff(map[string]any{"amount": float64(2*1499 + 850), "currency": "USD"}, whole.body["total"]); diff != "" {
		t.Error(diff)
	}
	var walked []string
	for _, entry := range whole.body["history"].([]any) {
		keys(t, entry.(map[string]any), "state", "at", "event_id")
		walked = append(walked, entry.(map[string]any)["state"].(string))
	}
	if diff := cmp.Diff([]string{"PENDING", "RESERVED", "PAID", "SHIPPED", "COMPLETED"}, walked); diff != "" {
		t.Error(diff)
	}
	if head := c.do("HEAD", "/orders/"+id, ""); head.code != 200 || head.header.Get("ETag") != `"5"` {
		t.Errorf("HEAD: %d %v", head.code, head.header)
	}
	if late := c.do("DELETE", "/orders/"+id, ""); late.code != 409 || late.body["type"] != "/problems/too-late-to-cancel" {
		t.Errorf("%d %s", late.code, late.raw)
	}
}

func TestAnOrderIsPlacedOncePerKey(t *testing.T) {
	c := newClient(t)
	id, first := c.place("k-1")
	again, second := c.place(`"k-1"`)
	if again != id || second.raw != first.raw || second.header.Get("Idempotency-Replayed") != "true" || second.header.Get("Location") != first.header.Get("Location") {
		t.Errorf("%s, then %s %v", first.raw, second.raw, second.header)
	}
	if other := c.do("POST", "/orders", `{"customer_id":"c-1","items":[{"sku":"BOOK-1","quantity":3}]}`, "Idempotency-Key", "k-1"); other.code != 422 {
		t.Errorf("another body under the key: %d", other.code)
	}
	if none := c.do("POST", "/orders", `{"customer_id":"c-1","items":[{"sku":"BOOK-1","quantity":3}]}`); none.code != 400 {
		t.Errorf("no key: %d", none.code)
	}
	types, _ := c.w.said(t, uuid.MustParse(id))
	var all int
	if err := c.w.pools["orders"].QueryRow(t.Context(), "SELECT count(*) FROM orders").Scan(&all); err != nil || all != 1 {
		t.Errorf("%d orders, %v", all, err)
	}
	if diff := cmp.Diff([]string{"OrderPlaced"}, types); diff != "" {
		t.Error(diff)
	}
}

func TestACancelledOrderFailsWithItsReason(t *testing.T) {
	c := newClient(t)
	id, _ := c.place("k-1")
	c.hears(schemas.StockReserved{OrderID: id})
	for range 2 { // repeats are accepted again, and change nothing
		got := c.do("DELETE", "/orders/"+id, "")
		keys(t, got.body, "id", "state", "reason", "detail_state", "version", "updated_at")
		if got.code != 202 || got.body["detail_state"] != "COMPENSATING" || got.body["reason"] != "cancelled" || got.body["version"] != 3.0 {
			t.Errorf("%d %s", got.code, got.raw)
		}
	}
	c.hears(schemas.PaymentVoided{OrderID: id}, schemas.ShipmentCancelled{OrderID: id}, schemas.StockReleased{OrderID: id})
	st := c.do("GET", "/orders/"+id+"/status", "")
	keys(t, st.body, "id", "state", "reason", "detail_state", "version", "updated_at", "problem")
	problem := st.body["problem"].(map[string]any)
	if st.code != 200 || st.body["state"] != "FAILED" || problem["type"] != "/problems/cancelled" || problem["status"] != nil {
		t.Errorf("%d %s", st.code, st.raw)
	}
	if again := c.do("DELETE", "/orders/"+id, ""); again.code != 202 {
		t.Errorf("cancelled already: %d %s", again.code, again.raw)
	}
}

func TestAnOrderThatFailsOtherwiseIsTooLateToCancel(t *testing.T) {
	c := newClient(t)
	for reason, event := range map[string]func(id string) any{
		"insufficient_inventory": func(id string) any { return schemas.StockRejected{OrderID: id} },
		"payment_declined":       func(id string) any { return schemas.PaymentDeclined{OrderID: id} },
		"shipment_refused":       func(id string) any { return schemas.ShipmentFailed{OrderID: id} },
	} {
		id, _ := c.place(reason)
		c.hears(event(id))
		if got := c.do("DELETE", "/orders/"+id, ""); got.code != 409 {
			t.Errorf("%s: %d %s", reason, got.code, got.raw)
		}
		c.hears(schemas.PaymentVoided{OrderID: id}, schemas.StockReleased{OrderID: id})
		st := c.do("GET", "/orders/"+id+"/status", "")
		if st.body["state"] != "FAILED" || st.body["reason"] != reason ||
			st.body["problem"].(map[string]any)["type"] != "/problems/"+strings.ReplaceAll(reason, "_", "-") {
			t.Errorf("%s: %s", reason, st.raw)
		}
	}
}

func TestUnknownOrdersAreNotFound(t *testing.T) {
	c := newClient(t)
	for _, id := range []string{uuid.NewString(), "42", "%00", "%ff", strings.Repeat("x", 300), strings.ToUpper(uuid.NewString())} {
		for _, request := range []string{"GET /orders/" + id, "GET /orders/" + id + "/status", "DELETE /orders/" + id} {
			method, path, _ := strings.Cut(request, " ")
			if got := c.do(method, path, ""); got.code != 404 || got.body["type"] != "/problems/not-found" {
				t.Errorf("%s: %d %s", request, got.code, got.raw)
			}
		}
	}
}

func TestABadOrderIsRefusedWithAllThatIsWrong(t *testing.T) {
	c := newClient(t)
	for body, want := range map[string][]string{
		`{}`:                               {"/customer_id", "/items"},
		`[]`:                               {""}, // what is no object lacks nothing
		`{"customer_id":"c 1","items":[]}`: {"/customer_id", "/items"},
		`{"customer_id":"c-1","items":[{"sku":"NOPE","quantity":1}]}`:                         {"/items/0/sku"},
		`{"customer_id":"c-1","items":[{"sku":"BOOK-1","quantity":0},{"sku":"BOOK-1"}]}`:      {"/items/0/quantity", "/items/1/quantity", "/items/1/sku"},
		`{"customer_id":"c-1","items":[{"sku":"BOOK-1","quantity":1001}],"payment_method":1}`: {"/items/0/quantity", "/payment_method"},
		`{"customer_id":"c-1","items":[{"sku":"BOOK-1","quantity":1.0}],"payment_method":"cash","ship_to":{"country":"de"},"total":1}`: {
			"/items/0/quantity", "/payment_method", "/ship_to/country", "/total"},
		`{"customer_id":"c-1","items":[{"sku":"BOOK-1","quantity":1,"price":0}],"ship_to":{}}`: {"/ship_to/country", "/items/0/price"},
	} {
		got := c.do("POST", "/orders", body, "Idempotency-Key", "bad")
		pointers := map[string]bool{}
		if list, ok := got.body["errors"].([]any); ok {
			for _, e := range list {
				pointers[e.(map[string]any)["pointer"].(string)] = true
			}
		}
		wanted := map[string]bool{}
		for _, pointer := range want {
			wanted[pointer] = true
		}
		if diff := cmp.Diff(wanted, pointers); got.code != 422 || diff != "" {
			t.Errorf("%s: %d %s\n%s", body, got.code, got.raw, diff)
		}
	}
	var all int
	if err := c.w.pools["orders"].QueryRow(t.Context(), "SELECT count(*) FROM orders").Scan(&all); err != nil || all != 0 {
		t.Errorf("%d orders, %v", all, err)
	}
	c.place("bad") // what was refused left its key free
}
