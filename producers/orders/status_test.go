package orders

import (
	"bufio"
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"converge/producers/httpapi"
	"converge/schemas"
)

// stream opens an order's events; next returns the data of the next one, "" at the end.
func (c *client) stream(id string, headers ...string) (next func() string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second) // an event that does not come
	c.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", c.base+"/orders/"+id+"/events", nil)
	if err != nil {
		c.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { res.Body.Close() })
	if res.StatusCode != 200 || res.Header.Get("Content-Type") != "text/event-stream" {
		c.t.Fatalf("%d %v", res.StatusCode, res.Header)
	}
	lines := bufio.NewScanner(res.Body)
	return func() string {
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				return data
			}
		}
		if err := lines.Err(); err != nil {
			c.t.Error(err)
		}
		return ""
	}
}

// What an order passes in one transaction is streamed state by state, to those that watched and to those that
// come when it is over, and each event is what the status was.
func TestEveryVersionOfAnOrderIsStreamed(t *testing.T) {
	c := newClient(t)
	id, _ := c.place("k-1")
	var shown []string
	look := func() { shown = append(shown, c.do("GET", "/orders/"+id+"/status", "").raw) }
	look()
	next := c.stream(id)
	got := []string{next()}
	c.hears(schemas.StockReserved{OrderID: id})
	look()
	got = append(got, next())
	c.hears(schemas.ShipmentFailed{OrderID: id}) // of which follows that it was PAID
	look()
	got = append(got, next(), next())
	c.hears(schemas.PaymentVoided{OrderID: id}, schemas.StockReleased{OrderID: id})
	look()
	got = append(got, next(), next())
	if got[5] != "" {
		t.Errorf("after the end: %s", got[5])
	}
	if diff := cmp.Diff(shown, []string{got[0], got[1], got[3], got[4]}); diff != "" {
		t.Errorf("-shown +streamed:\n%s", diff)
	}
	if !strings.Contains(got[2], `"state":"IN_PROGRESS","detail_state":"PAID","version":3,`) || strings.Contains(got[2], "reason") {
		t.Errorf("passed on the way: %s", got[2])
	}
	again := c.stream(id, "Last-Event-ID", "2")
	if diff := cmp.Diff(got[2:], []string{again(), again(), again(), again()}); diff != "" {
		t.Errorf("-live +resumed:\n%s", diff)
	}
	if over := c.do("GET", "/orders/"+id+"/events", "", "Last-Event-ID", "5"); over.code != 204 {
		t.Errorf("%d", over.code)
	}
	if head := c.do("HEAD", "/orders/"+id+"/events", ""); head.code != 200 || head.header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("%d %v", head.code, head.header)
	}
}

func TestWhoWaitsForAnOrderLearnsWhatAnotherProcessDid(t *testing.T) {
	c := newClient(t)
	id, _ := c.place("k-1")
	answer := make(chan reply)
	began := time.Now()
	go func() {
		answer <- c.do("GET", "/orders/"+id, "", "Prefer", "wait=30", "If-None-Match", `"1"`)
	}()
	c.hears(schemas.StockReserved{OrderID: id}) // written beside the API, as by another process
	if got := <-answer; got.code != 200 || got.header.Get("ETag") != `"2"` || got.header.Get("Preference-Applied") != "wait=30" || time.Since(began) > 10*time.Second {
		t.Errorf("%d %v after %v", got.code, got.header, time.Since(began))
	}
}

func TestAnOrderIsItsTenantsAlone(t *testing.T) {
	tokens, err := httpapi.ReadTokens(strings.NewReader("token-a acme\ntoken-b bolt\n"))
	if err != nil {
		t.Fatal(err)
	}
	a := newClientOf(t, httpapi.Config{Tokens: tokens})
	a.token = "token-a"
	b := *a
	b.token = "token-b"
	id, placed := a.place("k-1")
	if placed.header.Get("Consistency-Token") == "" {
		t.Errorf("%v", placed.header)
	}
	for _, request := range []string{"GET /orders/" + id, "GET /orders/" + id + "/status", "HEAD /orders/" + id + "/events", "HEAD /orders/" + id,
		"DELETE /orders/" + id} {
		method, path, _ := strings.Cut(request, " ")
		if got := b.do(method, path, "", "Prefer", "wait=5"); got.code != 404 {
			t.Errorf("another tenant's %s: %d %s", request, got.code, got.raw)
		}
	}
	whole := a.do("GET", "/orders/"+id, "")
	if whole.code != 200 || whole.body["customer_id"] != "c-1" || whole.body["version"] != 1.0 {
		t.Errorf("its own: %d %s", whole.code, whole.raw)
	}
	var told string
	if err := a.w.pools["orders"].QueryRow(t.Context(), "SELECT convert_from(payload, 'UTF8')::jsonb ->> 'customer_id' FROM outbox").Scan(&told); err != nil || told != "acme/c-1" {
		t.Errorf("told of customer %q, %v", told, err)
	}
	if got := a.do("DELETE", "/orders/"+id, ""); got.code != 202 || got.header.Get("Consistency-Token") == "" {
		t.Errorf("%d %v %s", got.code, got.header, got.raw)
	}
}
