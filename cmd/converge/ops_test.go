package main

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"converge/producers/httpapi"
)

// What is asked of /healthz, /readyz and /metrics wrongly is told in a problem document, in a process with services
// and in one without; HEAD is GET without the body.
func TestHealthAndMetricsHaveTheMannersOfTheAPI(t *testing.T) {
	for name, services := range map[string]bool{"a relay": false, "a service": true} {
		n := newNode(slog.New(slog.DiscardHandler))
		if services {
			begin := &starting{}
			n.mux.Handle("/", begin)
			api, err := httpapi.New(httpapi.Config{})
			if err != nil {
				t.Fatal(err)
			}
			begin.install(api)
		}
		server := httptest.NewServer(n.handler())
		defer server.Close()
		for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
			for _, method := range []string{"GET", "HEAD"} {
				if r, _ := asked(t, method, server.URL+path); r.StatusCode != 200 {
					t.Errorf("%s: %s %s: %d", name, method, path, r.StatusCode)
				}
			}
			for _, method := range []string{"POST", "PUT", "DELETE"} {
				r, problem := asked(t, method, server.URL+path)
				if r.StatusCode != 405 || problem.Type != "/problems/method-not-allowed" || r.Header.Get("Allow") != "GET, HEAD" {
					t.Errorf("%s: %s %s: %d %v %+v", name, method, path, r.StatusCode, r.Header, problem)
				}
			}
			for _, path := range []string{path + "/", path + "/x"} {
				if r, problem := asked(t, "GET", server.URL+path); r.StatusCode != 404 || problem.Type != "/problems/not-found" {
					t.Errorf("%s: %s: %d %v %+v", name, path, r.StatusCode, r.Header, problem)
				}
			}
		}
	}
}

// asked returns an answer, and the problem that it is, if it is one.
func asked(t *testing.T, method, url string) (*http.Response, httpapi.Problem) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var problem httpapi.Problem
	if slices.Equal(answer.Header["Content-Type"], []string{"application/problem+json"}) {
		if err := json.NewDecoder(answer.Body).Decode(&problem); err != nil {
			t.Error(err)
		}
	}
	return answer, problem
}
