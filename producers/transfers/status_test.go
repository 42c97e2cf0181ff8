package transfers

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"converge/consumers/event"
	"converge/producers/httpapi"
)

// streamed returns the data of the events of a transfer that is over.
func (w *world) streamed(id string) (data []string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), "GET", w.base+"/transfers/"+id+"/events", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		if one, ok := strings.CutPrefix(line, "data: "); ok {
			data = append(data, one)
		}
	}
	return data
}

// A transfer that was stuck before anybody knew a reason, and one that had it before: each version is told as it
// was shown.
func TestEveryVersionOfATransferIsStreamed(t *testing.T) {
	w := newWorld(t, time.Hour, time.Nanosecond)
	w.opens("a", "100")
	id := w.asks("a", "nobody", "30")
	status := func() string { return w.do("GET", "/transfers/"+id+"/status", "").raw }
	shown := []string{status()}
	look := func() {
		if now := status(); now != shown[len(shown)-1] {
			shown = append(shown, now)
		}
	}
	hear := func(reader string, events []*event.Event) {
		for _, e := range events {
			if err := w.hear(t.Context(), reader, e); err != nil {
				t.Fatal(err)
			}
			look()
		}
	}
	hear("ledger", w.said("transfers"))
	hear("transfers", w.said("ledger"))
	if _, err := w.transfers.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	look()
	hear("ledger", w.said("transfers"))
	hear("transfers", w.said("ledger"))
	if diff := cmp.Diff(shown, w.streamed(id)); diff != "" || !strings.Contains(shown[len(shown)-1], `"state":"FAILED"`) {
		t.Errorf("-shown +streamed:\n%s", diff)
	}
}

func TestTransfersAndAccountsAreTheirTenantsAlone(t *testing.T) {
	tokens, err := httpapi.ReadTokens(strings.NewReader("token-a acme\ntoken-b bolt\n"))
	if err != nil {
		t.Fatal(err)
	}
	a := newWorldOf(t, httpapi.Config{Tokens: tokens}, time.Hour, time.Hour)
	a.token = "token-a"
	b := *a
	b.token = "token-b"
	a.opens("x", "100")
	a.opens("y", "0")
	if got := b.do("GET", "/accounts/x", ""); got.code != 404 {
		t.Errorf("another tenant's account: %d %s", got.code, got.raw)
	}
	// Keys of idempotency are their own: b's account of the same name is another.
	if got := b.do("POST", "/accounts", `{"id":"x","opening_balance":7}`, "Idempotency-Key", "b's own"); got.code != 201 || got.raw != `{"id":"x","currency":"USD","balance":7,"version":1}` ||
		got.header.Get("Location") != "/accounts/x" || got.header.Get("Consistency-Token") == "" {
		t.Errorf("%d %v %s", got.code, got.header, got.raw)
	}
	id, closed := a.asks("x", "y", "30"), a.asks("x", "closed", "5")
	a.settle(nil)
	for _, request := range []string{"GET /transfers/" + id, "GET /transfers/" + id + "/status", "HEAD /transfers/" + id + "/events"} {
		method, path, _ := strings.Cut(request, " ")
		if got := b.do(method, path, "", "Prefer", "wait=5"); got.code != 404 {
			t.Errorf("another tenant's %s: %d %s", request, got.code, got.raw)
		}
	}
	if got := a.do("GET", "/transfers/"+id, ""); got.body["state"] != "COMPLETED" || got.body["from_account"] != "x" || got.body["to_account"] != "y" {
		t.Errorf("%d %s", got.code, got.raw)
	}
	if got := a.do("GET", "/transfers/"+closed, ""); got.body["reason"] != "account_closed" || got.body["to_account"] != "closed" {
		t.Errorf("%d %s", got.code, got.raw)
	}
	for id, balance := range map[string]float64{"x": 70, "y": 30, "closed": 0} {
		if got := a.do("GET", "/accounts/"+id, ""); got.body["balance"] != balance || got.body["id"] != id {
			t.Errorf("%d %s", got.code, got.raw)
		}
	}
	if got := b.do("GET", "/accounts/x", ""); got.body["balance"] != 7.0 {
		t.Errorf("%d %s", got.code, got.raw)
	}
	if got := a.post("/accounts", `{"id":"closed","opening_balance":7}`); got.code != 409 {
		t.Errorf("%d %s", got.code, got.raw)
	}
}
