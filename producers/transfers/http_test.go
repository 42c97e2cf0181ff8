package transfers

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
)

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

func TestATransferIsAcceptedAndFollowedToItsEnd(t *testing.T) {
	w := newWorld(t, time.Hour, time.Hour)
	w.opens("a", "100")
	w.opens("b", "0")
	got := w.do("POST", "/transfers", `{"from_account":"a","to_account":"b","amount":30}`, "Idempotency-Key", "k-1")
	keys(t, got.body, "id", "state", "version", "status_url", "created_at")
	id := got.body["id"].(string)
	if got.code != http.StatusAccepted || got.header.Get("Location") != "/transfers/"+id || got.body["status_url"] != "/transfers/"+id+"/status" || got.body["state"] != "PENDING" {
		t.Errorf("%d %v %s", got.code, got.header, got.raw)
	}
	st := w.do("GET", "/transfers/"+id+"/status", "")
	keys(t, st.body, "id", "state", "detail_state", "version", "updated_at")
	if st.code != 200 || st.header.Get("ETag") != `"1"` || st.header.Get("Retry-After") != "1" || st.header.Get("Cache-Control") != "no-cache" {
		t.Errorf("%d %v", st.code, st.header)
	}
	if again := w.do("GET", "/transfers/"+id+"/status", "", "If-None-Match", `"1"`); again.code != 304 || again.raw != "" {
		t.Errorf("unchanged: %d %s", again.code, again.raw)
	}

	if err := w.hear(t.Context(), "ledger", w.said("transfers")...); err != nil {
		t.Fatal(err)
	}
	if err := w.hear(t.Context(), "transfers", w.said("ledger")...); err != nil {
		t.Fatal(err)
	}
	if st := w.do("GET", "/transfers/"+id+"/status", "", "If-None-Match", `"1"`); st.body["state"] != "IN_PROGRESS" || st.body["detail_state"] != "DEBITED" {
		t.Errorf("%s", st.raw)
	}
	w.settle(nil)
	whole := w.do("GET", "/transfers/"+id, "")
	keys(t, whole.body, "id", "state", "detail_state", "version", "updated_at", "from_account", "to_account", "amount", "currency", "history")
	if whole.body["state"] != "COMPLETED" || whole.header.Get("Retry-After") != "" || whole.header.Get("ETag") != `"3"` {
		t.Errorf("%v %s", whole.header, whole.raw)
	}
	var walked []string
	for _, entry := range whole.body["history"].([]any) {
		keys(t, entry.(map[string]any), "state", "at", "event_id")
		walked = append(walked, entry.(map[string]any)["state"].(string))
	}
	if diff := cmp.Diff([]string{"PENDING", "DEBITED", "COMPLETED"}, walked); diff != "" {
		t.Error(diff)
	}
	if head := w.do("HEAD", "/transfers/"+id, ""); head.code != 200 || head.header.Get("ETag") != `"3"` {
		t.Errorf("HEAD: %d %v", head.code, head.header)
	}
	for path, want := range map[string]string{
		"/accounts/a": `{"id":"a","currency":"USD","balance":70,"version":2}`,
		"/accounts/b": `{"id":"b","currency":"USD","balance":30,"version":2}`,
	} {
		if got := w.do("GET", path, ""); got.raw != want || got.header.Get("ETag") != `"2"` {
			t.Errorf("%s: %s %v", path, got.raw, got.header)
		}
	}
}

func TestATransferIsRequestedOncePerKey(t *testing.T) {
	w := newWorld(t, time.Hour, time.Hour)
	w.opens("a", "100")
	ask := func(key, amount string) reply {
		return w.do("POST", "/transfers", `{"from_account":"a","to_account":"b","amount":`+amount+`}`, "Idempotency-Key", key)
	}
	first := ask("k-1", "10")
	second := ask(`"k-1"`, "10")
	if second.code != 202 || second.raw != first.raw || second.header.Get("Idempotency-Replayed") != "true" || second.header.Get("Location") != first.header.Get("Location") {
		t.Errorf("%s, then %d %s %v", first.raw, second.code, second.raw, second.header)
	}
	if other := ask("k-1", "11"); other.code != 422 || other.body["type"] != "/problems/idempotency-key-reused" {
		t.Errorf("another body under the key: %d %s", other.code, other.raw)
	}
	if none := w.do("POST", "/transfers", `{"from_account":"a","to_account":"b","amount":1}`); none.code != 400 {
		t.Errorf("no key: %d", none.code)
	}
	if diff := cmp.Diff([]string{"TransferRequested"}, w.types("transfers", first.body["id"].(string))); diff != "" {
		t.Error(diff)
	}
	var all int
	if err := w.pools["transfers"].QueryRow(t.Context(), "SELECT count(*) FROM transfers").Scan(&all); err != nil || all != 1 {
		t.Errorf("%d transfers, %v", all, err)
	}
}

func TestATransferFailsWithItsReasonAndMovesNothing(t *testing.T) {
	w := newWorld(t, time.Hour, time.Hour)
	w.opens("a", "100")
	w.opens("b", "5")
	for _, c := range []struct{ from, to, amount, reason, walked string }{
		{"b", "a", "6", "insufficient_funds", "PENDING FAILED"},
		{"nobody", "a", "1", "account_not_found", "PENDING FAILED"},
		{"a", "nobody", "1", "account_not_found", "PENDING DEBITED COMPENSATING FAILED"},
		{"closed", "a", "1", "account_closed", "PENDING FAILED"},
		{"a", "closed", "100", "account_closed", "PENDING DEBITED COMPENSATING FAILED"},
	} {
		id := w.asks(c.from, c.to, c.amount)
		w.settle(nil)
		whole := w.do("GET", "/transfers/"+id, "")
		var walked []string
		for _, entry := range whole.body["history"].([]any) {
			walked = append(walked, entry.(map[string]any)["state"].(string))
		}
		if got := strings.Join(walked, " "); got != c.walked {
			t.Errorf("%+v walked %s", c, got)
		}
		st := w.do("GET", "/transfers/"+id+"/status", "")
		keys(t, st.body, "id", "state", "reason", "detail_state", "version", "updated_at", "problem")
		problem := st.body["problem"].(map[string]any)
		keys(t, problem, "type", "title")
		if st.code != 200 || st.body["state"] != "FAILED" || st.body["reason"] != c.reason ||
			problem["type"] != "/problems/"+strings.ReplaceAll(c.reason, "_", "-") || problem["title"] == "" {
			t.Errorf("%+v: %d %s", c, st.code, st.raw)
		}
	}
	for id, want := range map[string]float64{"a": 100, "b": 5, "closed": 0} {
		if got := w.do("GET", "/accounts/"+id, ""); got.body["balance"] != want {
			t.Errorf("%s: %s", id, got.raw)
		}
	}
}

func TestABadTransferIsRefusedWithAllThatIsWrong(t *testing.T) {
	w := newWorld(t, time.Hour, time.Hour)
	w.opens("a", "100")
	w.post("/accounts", `{"id":"e","currency":"EUR","opening_balance":1}`)
	for request, want := range map[string][]string{
		`/transfers {}`: {"/from_account", "/to_account", "/amount"},
		`/transfers []`: {""},
		`/transfers {"from_account":"a","to_account":"a","amount":1}`:                             {"/to_account"},
		`/transfers {"from_account":"a","to_account":"a","amount":0,"currency":"EUR"}`:            {"/to_account", "/amount", "/currency"},
		`/transfers {"from_account":"a","to_account":"e","amount":1}`:                             {"/currency"},
		`/transfers {"from_account":"nobody","to_account":"e","amount":1}`:                        {"/currency"},
		`/transfers {"from_account":"a","to_account":"b","amount":1,"currency":"EUR"}`:            {"/currency"},
		`/transfers {"from_account":"a","to_account":"b","amount":1,"currency":"usd","note":"x"}`: {"/currency", "/note"},
		`/transfers {"from_account":"a b","to_account":7,"amount":1.0}`:                           {"/from_account", "/to_account", "/amount"},
		`/transfers {"from_account":"(equity) USD","to_account":"a","amount":9007199254740992}`:   {"/from_account", "/amount"},
		`/accounts {}`: {"/id", "/opening_balance"},
		`/accounts {"id":"(clearing) USD","opening_balance":-1,"currency":"EURO","balance":3}`: {"/id", "/opening_balance", "/currency", "/balance"},
	} {
		path, body, _ := strings.Cut(request, " ")
		got := w.do("POST", path, body, "Idempotency-Key", "bad")
		pointers, wanted := map[string]bool{}, map[string]bool{}
		if list, ok := got.body["errors"].([]any); ok {
			for _, e := range list {
				pointers[e.(map[string]any)["pointer"].(string)] = true
			}
		}
		for _, pointer := range want {
			wanted[pointer] = true
		}
		if diff := cmp.Diff(wanted, pointers); got.code != 422 || diff != "" {
			t.Errorf("%s: %d %s\n%s", request, got.code, got.raw, diff)
		}
	}
	if got := w.do("POST", "/transfers", `{"from_account":"a","to_account":"b","amount":1}`, "Idempotency-Key", "bad"); got.code != 202 {
		t.Errorf("what was refused left its key taken: %d %s", got.code, got.raw)
	}
}

func TestAnAccountIsOpenedOnce(t *testing.T) {
	w := newWorld(t, time.Hour, time.Hour)
	open := func(key, balance string) reply {
		return w.do("POST", "/accounts", `{"id":"a","opening_balance":`+balance+`}`, "Idempotency-Key", key)
	}
	first := open("k-1", "100")
	if first.code != 201 || first.raw != `{"id":"a","currency":"USD","balance":100,"version":1}` ||
		first.header.Get("Location") != "/accounts/a" || first.header.Get("ETag") != `"1"` {
		t.Errorf("%d %s %v", first.code, first.raw, first.header)
	}
	if again := open("k-1", "100"); again.code != 200 || again.raw != first.raw || again.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("%d %s", again.code, again.raw)
	}
	for range 2 { // the refusal is stored, and replayed
		if taken := open("k-2", "7"); taken.code != 409 || taken.body["type"] != "/problems/conflict" {
			t.Errorf("%d %s", taken.code, taken.raw)
		}
	}
	if closed := w.post("/accounts", `{"id":"closed","opening_balance":7}`); closed.code != 409 {
		t.Errorf("%d %s", closed.code, closed.raw)
	}
	if diff := cmp.Diff([]string{"AccountOpened"}, w.types("transfers", "a")); diff != "" {
		t.Error(diff)
	}
	w.settle(nil)
	if got := w.do("GET", "/accounts/a", "", "If-None-Match", `"1"`); got.code != 304 {
		t.Errorf("%d %s", got.code, got.raw)
	}
}

// Sixteen clients, each with a key of its own, want one id; the index decides.
func TestOneOfManyOpensAnAccount(t *testing.T) {
	w := newWorld(t, time.Hour, time.Hour)
	codes := make([]int, 16)
	var g errgroup.Group
	for i := range codes {
		g.Go(func() error {
			body := fmt.Sprintf(`{"id":"a","opening_balance":%d}`, i)
			req, err := http.NewRequestWithContext(t.Context(), "POST", w.base+"/accounts", strings.NewReader(body))
			if err != nil {
				return err
			}
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("Idempotency-Key", fmt.Sprint(i))
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				return err
			}
			codes[i] = res.StatusCode
			return res.Body.Close()
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(codes)
	if codes[0] != http.StatusCreated || codes[1] != http.StatusConflict || codes[15] != http.StatusConflict {
		t.Errorf("%v", codes)
	}
	if diff := cmp.Diff([]string{"AccountOpened"}, w.types("transfers", "a")); diff != "" {
		t.Error(diff)
	}
}

func TestUnknownTransfersAndAccountsAreNotFound(t *testing.T) {
	w := newWorld(t, time.Hour, time.Hour)
	for _, id := range []string{uuid.NewString(), "42", "%00", "%ff", strings.Repeat("x", 300), strings.ToUpper(uuid.NewString()), "%28equity%29%20USD"} {
		for _, path := range []string{"/transfers/%s", "/transfers/%s/status", "/accounts/%s"} {
			if got := w.do("GET", fmt.Sprintf(path, id), ""); got.code != 404 || got.body["type"] != "/problems/not-found" {
				t.Errorf(path+": %d %s", id, got.code, got.raw)
			}
		}
	}
}
