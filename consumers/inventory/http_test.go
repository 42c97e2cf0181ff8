package inventory

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"converge/producers/httpapi"
	"converge/schemas"
)

func serve(t *testing.T, s *Service) func(method, path, body string, headers ...string) (code int, etag, answer string) {
	t.Helper()
	api, err := httpapi.New(httpapi.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s.Routes(api)
	return func(method, path, body string, headers ...string) (int, string, string) {
		t.Helper()
		req := httptest.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
		req.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		w := httptest.NewRecorder()
		api.ServeHTTP(w, req)
		return w.Code, w.Header().Get("ETag"), w.Body.String()
	}
}

func TestProductsAreListedWithPrices(t *testing.T) {
	code, _, answer := serve(t, New(Config{}))("GET", "/products", "")
	want := `{"sku":"BOOK-1","name":"Paperback","price":{"amount":1499,"currency":"USD"}}`
	if code != http.StatusOK || !strings.Contains(answer, want) {
		t.Errorf("%d %s", code, answer)
	}
}

func TestStockIsSetOnlyFromTheVersionThatWasRead(t *testing.T) {
	s, pool := open(t)
	do := serve(t, s)
	for i, step := range []struct {
		method, path, body string
		headers            []string
		code               int
		etag, answer       string
	}{
		{"GET", "/stock/RARE-1", "", nil, 200, `"1"`, `{"sku":"RARE-1","available":1,"reserved":0,"version":1}`},
		{"GET", "/stock/RARE-1", "", []string{"If-None-Match", `"1"`}, 304, `"1"`, ""},
		{"PUT", "/stock/RARE-1", `{"available":5}`, nil, 428, "", "precondition-required"},
		{"PUT", "/stock/RARE-1", `{"available":5}`, []string{"If-Match", `"7"`}, 412, "", "precondition-failed"},
		{"PUT", "/stock/RARE-1", `{"available":5}`, []string{"If-Match", `W/"1"`}, 412, "", "precondition-failed"},
		{"PUT", "/stock/RARE-1", `{"available":5}`, []string{"If-Match", `"1"`, "If-None-Match", `W/"1"`}, 412, "", "precondition-failed"},
		{"PUT", "/stock/RARE-1", `{"available":5}`, []string{"If-None-Match", `"7"`}, 428, "", "precondition-required"},
		{"PUT", "/stock/RARE-1", `{"available":5}`, []string{"If-None-Match", "*"}, 412, "", "precondition-failed"},
		{"PUT", "/stock/RARE-1", `{"sku":"RARE-1","available":5,"reserved":9,"version":1}`, []string{"If-Match", `"1"`}, 200, `"2"`, `{"sku":"RARE-1","available":5,"reserved":0,"version":2}`},
		{"PUT", "/stock/RARE-1", `{"available":5}`, []string{"If-Match", `"1"`}, 200, `"2"`, `"version":2`}, // its answer was lost
		{"PUT", "/stock/RARE-1", `{"available":6}`, []string{"If-Match", `"1"`}, 412, "", "precondition-failed"},
		{"PUT", "/stock/RARE-1", `{"available":3}`, []string{"If-Match", "*"}, 200, `"3"`, `"available":3`},
		{"PUT", "/stock/RARE-1", `{"available":-1}`, []string{"If-Match", "*"}, 422, "", "/available"},
		{"PUT", "/stock/RARE-1", `{}`, []string{"If-Match", "*"}, 422, "", "/available"},
		{"PUT", "/stock/RARE-1", `{"available":1,"colour":2}`, []string{"If-Match", "*"}, 422, "", "/colour"},
		{"PUT", "/stock/NOPE", `{"available":1}`, []string{"If-Match", "*"}, 404, "", "not-found"},
		{"PUT", "/stock/%00", `{"available":1}`, []string{"If-Match", "*"}, 404, "", "not-found"},
		{"GET", "/stock/%00", "", nil, 404, "", "not-found"},
		{"GET", "/stock/NOPE", "", nil, 404, "", "not-found"},
	} {
		code, etag, answer := do(step.method, step.path, step.body, step.headers...)
		if code != step.code || etag != step.etag || !strings.Contains(answer, step.answer) {
			t.Errorf("step %d, %s %s %s: %d %s %s", i, step.method, step.body, step.headers, code, etag, answer)
		}
	}
	// A reservation is a change too: the retry of a PUT from before it must not undo what it did not see.
	if err := apply(t.Context(), s, pool, placed(t, "o-1", schemas.Line{SKU: "RARE-1", Quantity: 1})); err != nil {
		t.Fatal(err)
	}
	if code, _, _ := do("PUT", "/stock/RARE-1", `{"available":2}`, "If-Match", `"3"`); code != 412 {
		t.Errorf("stale after a reservation: %d", code)
	}
	if code, _, answer := do("PUT", "/stock/RARE-1", `{"available":0}`, "If-Match", `"4"`); code != 200 || !strings.Contains(answer, `"available":0,"reserved":1`) {
		t.Errorf("%d %s", code, answer)
	}
}
