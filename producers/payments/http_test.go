package payments

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"converge/consumers/event"
	"converge/producers/catalog"
	"converge/producers/httpapi"
	"converge/schemas"
)

func serve(t *testing.T, s *Service) func(method, path, body string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	return serveAs(t, s, httpapi.Config{})
}

func serveAs(t *testing.T, s *Service, cfg httpapi.Config) func(method, path, body string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	api, err := httpapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.Routes(api)
	return func(method, path, body string, headers ...string) *httptest.ResponseRecorder {
		req := httptest.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
		req.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		w := httptest.NewRecorder()
		api.ServeHTTP(w, req)
		return w
	}
}

// The lesson's worked example 3: sixteen clients at once, one key, one charge.
func TestARetriedPaymentIsOneCharge(t *testing.T) {
	s, _ := open(t, time.Hour)
	do := serve(t, s)
	answers := make([]*httptest.ResponseRecorder, 16)
	var g errgroup.Group
	for i := range answers {
		g.Go(func() error {
			answers[i] = do("POST", "/payments", `{"order_id": 42, "amount": 100}`, "Idempotency-Key", "abc-123")
			return nil
		})
	}
	_ = g.Wait()
	fresh := 0
	for _, a := range answers {
		switch a.Code {
		case 201:
			fresh++
		case 200:
		default:
			t.Errorf("%d %s", a.Code, a.Body)
		}
		if a.Body.String() != answers[0].Body.String() || a.Header().Get("Location") == "" {
			t.Errorf("%s and %s", a.Body, answers[0].Body)
		}
	}
	if fresh != 1 {
		t.Errorf("%d answers are 201", fresh)
	}
	list := do("GET", "/payments?order_id=42", "")
	var listed struct {
		Items []body `json:"items"`
	}
	if err := json.Unmarshal(list.Body.Bytes(), &listed); err != nil || len(listed.Items) != 1 {
		t.Fatalf("%v %s", err, list.Body)
	}
	p := listed.Items[0]
	if p.OrderID != "42" || p.Amount != 100 || p.Currency != "USD" || p.State != Authorized || p.ReceiptID == "" {
		t.Errorf("%+v", p)
	}
	one := do("GET", "/payments/"+p.ID.String(), "")
	if diff := cmp.Diff(answers[0].Body.String(), one.Body.String()); diff != "" || one.Header().Get("ETag") != `"1"` {
		t.Errorf("%s\n%s", one.Header(), diff)
	}
	if again := do("GET", "/payments/"+p.ID.String(), "", "If-None-Match", `"1"`); again.Code != 304 {
		t.Errorf("unchanged: %d", again.Code)
	}
	if other := do("POST", "/payments", `{"order_id": 42, "amount": 101}`, "Idempotency-Key", "abc-123"); other.Code != 422 {
		t.Errorf("another amount under the key: %d", other.Code)
	}
}

func TestADeclinedPaymentIsRefusedTheSameWayAgain(t *testing.T) {
	s, _ := open(t, time.Hour)
	do := serve(t, s)
	var first string
	for i := range 2 {
		a := do("POST", "/payments", `{"order_id":"o-1","amount":5,"payment_method":"card-declined"}`, "Idempotency-Key", "d")
		if i == 0 {
			first = a.Body.String()
		}
		if a.Code != 409 || a.Body.String() != first || !strings.Contains(first, "/problems/payment-declined") || (a.Header().Get("Idempotency-Replayed") == "true") != (i == 1) {
			t.Errorf("%d %v %s", a.Code, a.Header(), a.Body)
		}
	}
	if list := do("GET", "/payments?order_id=o-1", ""); list.Body.String() != `{"items":[]}` {
		t.Errorf("%s", list.Body)
	}
}

func TestBadPaymentsAndUnknownOnes(t *testing.T) {
	s, pool := open(t, time.Hour)
	do := serve(t, s)
	for i, body := range []string{`{}`, `{"order_id":-1,"amount":5}`, `{"order_id":1.5,"amount":5}`, `{"order_id":true,"amount":5}`, `{"order_id":1,"amount":0}`,
		`{"order_id":1,"amount":1e2}`, `{"order_id":1,"amount":5,"currency":"usd"}`, `{"order_id":1,"amount":5,"payment_method":"cash"}`, `{"order_id":1,"amount":5,"id":1}`} {
		if a := do("POST", "/payments", body, "Idempotency-Key", fmt.Sprint(i)); a.Code != 422 {
			t.Errorf("%s: %d %s", body, a.Code, a.Body)
		}
	}
	if err := apply(t.Context(), s, pool, cancelled(t, "o-1")); err != nil {
		t.Fatal(err)
	}
	var tombstone string
	if err := pool.QueryRow(t.Context(), "SELECT id::text FROM payments").Scan(&tombstone); err != nil {
		t.Fatal(err)
	}
	for path, code := range map[string]int{
		"/payments/" + tombstone: 404, "/payments/42": 404, "/payments/%00": 404, "/payments/" + strings.ToUpper(tombstone): 404,
		"/payments": 422, "/payments?order_id=": 422, "/payments?order_id=a&order_id=b": 422, "/payments?order_id=%00": 422, "/payments?order_id=o-1": 200,
	} {
		if a := do("GET", path, ""); a.Code != code {
			t.Errorf("%s: %d %s", path, a.Code, a.Body)
		}
	}
	if list := do("GET", "/payments?order_id=o-1", ""); list.Body.String() != `{"items":[]}` {
		t.Errorf("a tombstone is listed: %s", list.Body)
	}
}

func TestAPaymentOfASagaIsListedWithItsState(t *testing.T) {
	s, pool := open(t, time.Hour)
	do := serve(t, s)
	if err := apply(t.Context(), s, pool, reserved(t, "o-1", catalog.CardOK)); err != nil {
		t.Fatal(err)
	}
	if list := do("GET", "/payments?order_id=o-1", ""); !strings.Contains(list.Body.String(), `"amount":700,"currency":"USD","state":"AUTHORIZED"`) {
		t.Errorf("%s", list.Body)
	}
	if err := apply(t.Context(), s, pool, cancelled(t, "o-1")); err != nil {
		t.Fatal(err)
	}
	if list := do("GET", "/payments?order_id=o-1", ""); !strings.Contains(list.Body.String(), `"state":"VOIDED"`) {
		t.Errorf("%s", list.Body)
	}
}

// Each version has its entry, with what brought it about.
func TestAPaymentKeepsItsHistory(t *testing.T) {
	s, pool := open(t, time.Nanosecond)
	do := serve(t, s)
	slow, declined := reserved(t, "slow", catalog.CardSlow), reserved(t, "declined", catalog.CardDeclined)
	voided := cancelled(t, "slow")
	step := func(events ...*event.Event) {
		t.Helper()
		if err := apply(t.Context(), s, pool, events...); err != nil {
			t.Fatal(err)
		}
	}
	step(slow, declined)
	if n, err := s.sweep(t.Context()); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	step(voided, slow, cancelled(t, "slow")) // what comes again changes nothing
	if a := do("POST", "/payments", `{"order_id":"posted","amount":5}`, "Idempotency-Key", "k"); a.Code != 201 {
		t.Fatalf("%d %s", a.Code, a.Body)
	}
	type entry struct {
		State   State
		EventID *uuid.UUID
	}
	for order, want := range map[string][]entry{
		"slow":     {{Waiting, &slow.ID}, {Authorized, nil}, {Voided, &voided.ID}},
		"declined": {{Declined, &declined.ID}},
		"posted":   {{Authorized, nil}},
	} {
		var list struct{ Items []body }
		if err := json.Unmarshal(do("GET", "/payments?order_id="+order, "").Body.Bytes(), &list); err != nil || len(list.Items) != 1 {
			t.Fatalf("%s: %v %v", order, err, list)
		}
		p := list.Items[0]
		var got []entry
		for i, c := range p.History {
			got = append(got, entry{c.State, c.EventID})
			if i > 0 && c.At.Before(p.History[i-1].At) || c.At.IsZero() {
				t.Errorf("%s: %v", order, p.History)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" || p.State != want[len(want)-1].State {
			t.Errorf("%s is %s:\n%s", order, p.State, diff)
		}
		if one := do("GET", "/payments/"+p.ID.String(), ""); one.Header().Get("ETag") != httpapi.ETag(int64(len(want))) {
			t.Errorf("%s: %v", order, one.Header())
		}
	}
}

// Whose a payment of a saga is, the order's customer tells.
func TestAPaymentIsItsTenantsAlone(t *testing.T) {
	tokens, err := httpapi.ReadTokens(strings.NewReader("token-a acme\ntoken-b bolt\n"))
	if err != nil {
		t.Fatal(err)
	}
	s, pool := open(t, time.Hour)
	do := serveAs(t, s, httpapi.Config{Tokens: tokens})
	e := newEvent(t, "StockReserved", schemas.StockReserved{OrderID: "o-1", CustomerID: "acme/c-1", TotalAmount: 700, Currency: "USD", PaymentMethod: catalog.CardSlow, ShipCountry: "DE"})
	if err := apply(t.Context(), s, pool, e); err != nil {
		t.Fatal(err)
	}
	posted := do("POST", "/payments", `{"order_id":"o-1","amount":5}`, "Idempotency-Key", "k", "Authorization", "Bearer token-a")
	if posted.Code != 201 || !strings.Contains(posted.Body.String(), `"order_id":"o-1"`) || posted.Header().Get("Consistency-Token") == "" {
		t.Errorf("%d %v %s", posted.Code, posted.Header(), posted.Body)
	}
	// What happens later to a payment leaves it its tenant's.
	if err := apply(t.Context(), s, pool, cancelled(t, "o-1")); err != nil {
		t.Fatal(err)
	}
	var list struct {
		Items []body `json:"items"`
	}
	if err := json.Unmarshal(do("GET", "/payments?order_id=o-1", "", "Authorization", "Bearer token-a").Body.Bytes(), &list); err != nil || len(list.Items) != 2 {
		t.Fatalf("%v %+v", err, list)
	}
	if other := do("GET", "/payments?order_id=o-1", "", "Authorization", "Bearer token-b"); other.Body.String() != `{"items":[]}` {
		t.Errorf("another tenant's payments: %s", other.Body)
	}
	for _, p := range list.Items {
		for token, code := range map[string]int{"token-a": 200, "token-b": 404} {
			for _, method := range []string{"GET", "HEAD"} {
				if got := do(method, "/payments/"+p.ID.String(), "", "Authorization", "Bearer "+token, "Prefer", "wait=5"); got.Code != code {
					t.Errorf("%s's %s of %s: %d %s", token, method, p.State, got.Code, got.Body)
				}
			}
		}
	}
}

func TestWhoWaitsForAPaymentLearnsOfIt(t *testing.T) {
	s, pool := open(t, time.Hour)
	do := serve(t, s)
	if err := apply(t.Context(), s, pool, reserved(t, "o-1", catalog.CardOK)); err != nil {
		t.Fatal(err)
	}
	var id string
	if err := pool.QueryRow(t.Context(), "SELECT id::text FROM payments").Scan(&id); err != nil {
		t.Fatal(err)
	}
	answer := make(chan *httptest.ResponseRecorder)
	go func() { answer <- do("GET", "/payments/"+id, "", "Prefer", "wait=30", "If-None-Match", `"1"`) }()
	if err := apply(t.Context(), s, pool, cancelled(t, "o-1")); err != nil {
		t.Fatal(err)
	}
	got := <-answer
	if got.Code != 200 || !strings.Contains(got.Body.String(), `"VOIDED"`) || got.Header().Get("Preference-Applied") != "wait=30" || got.Header().Get("ETag") != `"2"` {
		t.Errorf("%d %v %s", got.Code, got.Header(), got.Body)
	}
}
