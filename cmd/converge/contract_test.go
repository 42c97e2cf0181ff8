package main

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"converge/producers/openapi"
)

// The contract tests hold a running pipeline to the document with schemathesis, which CONVERGE_TEST_CONTRACT
// names; make test-contract installs it. SEED repeats a run, MAX_EXAMPLES is how many requests it makes up for
// each operation.

func fuzzer(t *testing.T) string {
	t.Helper()
	path := os.Getenv("CONVERGE_TEST_CONTRACT")
	if path == "" {
		t.Skip("make test-contract runs it")
	}
	return path
}

func envOr(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

// fuzz runs schemathesis on the API at the URL, as producers/openapi/contract says, and returns what it found.
func fuzz(t *testing.T, base string, args ...string) (report string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), fuzzer(t), append([]string{"run", base + "/openapi.json", "--output-truncate", "false"}, args...)...)
	cmd.Dir = filepath.Join("..", "..", "producers", "openapi", "contract")
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "SCHEMATHESIS_REPORT_DIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// pipelineToFuzz runs the whole pipeline, with a deadline that lets orders end while they are asked for.
func pipelineToFuzz(t *testing.T) *running {
	t.Helper()
	return start(t, freeAddr(t), append(upArgs(t, filepath.Join(t.TempDir(), "state")), "--order-deadline", "3s")...).ready()
}

func TestContractTheRunningPipelineAnswersAsDescribed(t *testing.T) {
	fuzzer(t)
	up := pipelineToFuzz(t)
	seed := envOr("SEED", strconv.Itoa(rand.IntN(1<<31)))
	t.Logf("SEED=%s repeats this run", seed)
	report, err := fuzz(t, up.base, "--seed", seed, "--max-examples", envOr("MAX_EXAMPLES", "200"))
	if err != nil {
		t.Errorf("%v; SEED=%s repeats it:\n%s", err, seed, report)
	} else {
		t.Log(tail(report, 30))
	}
	if err := wants(http.StatusOK, up.get("/readyz")); err != nil {
		t.Errorf("after all that: %v", err)
	}
	if log := up.output.String(); strings.Contains(log, "request panicked") {
		t.Error("a request panicked")
	}
}

// The contract test is worth what it catches: the real pipeline with a fault in its answers, or in the document,
// must be refused for its reason.
func TestContractFaultsThatArePlantedAreFound(t *testing.T) {
	fuzzer(t)
	up := pipelineToFuzz(t)
	target, err := url.Parse(up.base)
	if err != nil {
		t.Fatal(err)
	}
	for name, fault := range map[string]struct {
		operation string
		finding   string // as schemathesis numbers it
		method    string
		status    int // whose answers have the fault
		plant     func(*http.Response) error
	}{
		"a status that is not described": {"placeOrder", "ST103", "POST", 202, func(r *http.Response) error {
			r.StatusCode = 206
			return nil
		}},
		"a member that is not described": {"listProducts", "ST108", "GET", 200, inBody(func(m map[string]any) { m["total"] = 4 })},
		"a member that is not there":     {"placeOrder", "ST108", "POST", 202, inBody(func(m map[string]any) { delete(m, "status_url") })},
		"a problem of another type":      {"pay", "ST108", "POST", 422, inBody(func(m map[string]any) { m["type"] = "/problems/conflict" })},
		"a problem that is plain JSON": {"pay", "ST105", "POST", 400, func(r *http.Response) error {
			r.Header.Set("Content-Type", "application/json")
			return nil
		}},
		"no Location": {"placeOrder", "ST107", "POST", 202, func(r *http.Response) error {
			r.Header.Del("Location")
			return nil
		}},
		"no ETag": {"getStock", "ST107", "GET", 200, func(r *http.Response) error {
			r.Header.Del("ETag")
			return nil
		}},
		"no Consistency-Token": {"putStock", "ST107", "PUT", 200, func(r *http.Response) error {
			r.Header.Del("Consistency-Token")
			return nil
		}},
		"a lag that is no number": {"listOrderViews", "ST108", "GET", 200, func(r *http.Response) error {
			r.Header.Set("Read-Model-Lag", "long")
			return nil
		}},
		"bodies that break rules are accepted": {"putStock", "ST201", "PUT", 422, accepted(200, `{"sku":"BOOK-1","available":1,"reserved":0,"version":1}`)},
		"no Idempotency-Key is asked for":      {"pay", "ST203", "POST", 400, accepted(200, "{}")},
		"good bodies are refused":              {"placeOrder", "ST202", "POST", 202, problem(422, "validation-failed")},
		"an error of the server":               {"placeOrder", "ST101", "POST", 202, problem(500, "internal")},
		"a method that is not described":       {"getOrderView", "ST204", "PATCH", 405, accepted(200, "{}")},
	} {
		t.Run(name, func(t *testing.T) {
			proxy := httputil.NewSingleHostReverseProxy(target)
			planted := false
			proxy.ModifyResponse = func(r *http.Response) error {
				if r.Request.Method != fault.method || r.StatusCode != fault.status || r.Request.URL.Path == "/openapi.json" {
					return nil
				}
				planted = true
				return fault.plant(r)
			}
			faulty := httptest.NewServer(proxy)
			defer faulty.Close()
			report, err := fuzz(t, faulty.URL, "--seed", "1", "--max-examples", "10", "--include-operation-id", fault.operation, "--phases", "examples,coverage")
			if !planted {
				t.Fatalf("no answer had the fault:\n%s", report)
			}
			if err == nil || !strings.Contains(report, fault.finding) {
				t.Errorf("%v, want %q:\n%s", err, fault.finding, report)
			}
		})
	}

	// And the document: without each of these statuses it does not describe the pipeline any more.
	for operation, status := range map[string]string{"pay": "422", "placeOrder": "202", "putStock": "428", "getOrder": "404"} {
		t.Run("the document lacks "+status+" of "+operation, func(t *testing.T) {
			proxy := httputil.NewSingleHostReverseProxy(target)
			mux := http.NewServeMux()
			mux.Handle("/", proxy)
			mux.HandleFunc("/openapi.json", func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				_, _ = w.Write(without(t, operation, status))
			})
			faulty := httptest.NewServer(mux)
			defer faulty.Close()
			report, err := fuzz(t, faulty.URL, "--seed", "1", "--max-examples", "10", "--include-operation-id", operation, "--phases", "examples,coverage")
			if err == nil || !strings.Contains(report, "ST103") {
				t.Errorf("%v:\n%s", err, report)
			}
		})
	}
}

// inBody returns a fault in the members of a JSON answer.
func inBody(change func(map[string]any)) func(*http.Response) error {
	return func(r *http.Response) error {
		var members map[string]any
		if err := json.NewDecoder(r.Body).Decode(&members); err != nil {
			return err
		}
		change(members)
		body, err := json.Marshal(members)
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		r.Header.Del("Content-Length")
		return err
	}
}

// accepted returns a fault: what was refused is done.
func accepted(status int, body string) func(*http.Response) error {
	return func(r *http.Response) error {
		r.StatusCode, r.Body, r.ContentLength = status, io.NopCloser(strings.NewReader(body)), int64(len(body))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Del("Content-Length")
		return nil
	}
}

// problem returns a fault: the answer is a problem instead.
func problem(status int, name string) func(*http.Response) error {
	return func(r *http.Response) error {
		r.StatusCode = status
		r.Header.Set("Content-Type", "application/problem+json")
		return inBody(func(m map[string]any) {
			clear(m)
			m["type"], m["title"], m["status"] = "/problems/"+name, "A fault", status
		})(r)
	}
}

// without returns the document in which an operation lacks a status.
func without(t *testing.T, operation, status string) []byte {
	t.Helper()
	var document map[string]any
	if err := json.Unmarshal(openapi.Document, &document); err != nil {
		t.Fatal(err)
	}
	for _, item := range document["paths"].(map[string]any) {
		for _, o := range item.(map[string]any) {
			if o := o.(map[string]any); o["operationId"] == operation {
				delete(o["responses"].(map[string]any), status)
			}
		}
	}
	body, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	return body
}
