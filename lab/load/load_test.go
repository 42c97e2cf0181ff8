package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// shop is a server that keeps the API's promises, but for the one that a test breaks.
type shop struct {
	mu       sync.Mutex
	orders   map[string]string // id: payment method
	keys     map[string]string // idempotency key: id
	profiles map[string]int64
	bodies   []string
	looks    map[string]int // at the status, by order

	forgetsKeys, loses, completesDeclined, neverEnds, versionsTwice bool

	token  string      // is asked for, unless ""
	before func(n int) // runs before the n-th POST is served
}

func newShop() *shop {
	return &shop{orders: map[string]string{}, keys: map[string]string{}, profiles: map[string]int64{}, looks: map[string]int{}}
}

func (s *shop) serve(t *testing.T) string {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /orders", s.place)
	mux.HandleFunc("GET /orders/{id}/status", s.status)
	mux.HandleFunc("PUT /profiles/{id}", s.put)
	mux.HandleFunc("GET /profiles/{id}", s.get)
	mux.HandleFunc("GET /billing/accounts/{id}", s.view)
	mux.HandleFunc("GET /analytics/profiles/{id}", s.view)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.token != "" && r.Header.Get("Authorization") != "Bearer "+s.token {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func (s *shop) place(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	var order orderRequest
	if err := json.Unmarshal(body, &order); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	n := len(s.bodies)
	s.bodies = append(s.bodies, string(body))
	before := s.before
	s.mu.Unlock()
	if before != nil {
		before(n)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := r.Header.Get("Idempotency-Key")
	id, known := s.keys[key]
	if !known || s.forgetsKeys {
		id = fmt.Sprintf("o-%d", len(s.orders))
		s.keys[key], s.orders[id] = id, order.PaymentMethod
	}
	w.WriteHeader(http.StatusAccepted)
	fmt.Fprintf(w, `{"id":%q,"status_url":"/orders/%s/status"}`, id, id)
}

func (s *shop) status(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := r.PathValue("id")
	method, known := s.orders[id]
	s.looks[id]++
	switch {
	case !known || s.loses:
		w.WriteHeader(http.StatusNotFound)
	case s.neverEnds || s.looks[id] < 2:
		fmt.Fprint(w, `{"state":"IN_PROGRESS"}`)
	case method == "card-declined" && !s.completesDeclined:
		fmt.Fprint(w, `{"state":"FAILED","reason":"payment_declined"}`)
	default:
		fmt.Fprint(w, `{"state":"COMPLETED"}`)
	}
}

func (s *shop) put(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := r.PathValue("id")
	current := fmt.Sprintf(`"%d"`, s.profiles[id])
	fits := r.Header.Get("If-Match") == current || s.profiles[id] == 0 && r.Header.Get("If-None-Match") == "*"
	if !fits && !s.versionsTwice {
		w.WriteHeader(http.StatusPreconditionFailed)
		return
	}
	s.profiles[id]++
	w.Header().Set("ETag", fmt.Sprintf(`"%d"`, s.profiles[id]))
	fmt.Fprintf(w, `{"user_id":%q,"version":%d}`, id, s.profiles[id])
}

func (s *shop) get(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("ETag", fmt.Sprintf(`"%d"`, s.profiles[r.PathValue("id")]))
}

func (s *shop) view(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.neverEnds {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	fmt.Fprintf(w, `{"version":%d}`, s.profiles[r.PathValue("id")])
}

func run(t *testing.T, cfg Config) Summary {
	t.Helper()
	if cfg.Settle == 0 {
		cfg.Settle = 20 * time.Second
	}
	summary, err := Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return summary
}

func TestEveryArrivalIsFollowedToItsEnd(t *testing.T) {
	s := newShop()
	got := run(t, Config{Target: s.serve(t), Kind: Mixed, Rate: 500, Duration: 200 * time.Millisecond, Customers: 5, Duplicates: 0.5, Declined: 0.5, Seed: 7})
	if got.Sent != 100 || got.Accepted+got.Errors["412"] != 100 || got.End.Count != got.Accepted || got.Unfinished != 0 || got.BrokenCount != 0 {
		t.Errorf("got %+v", got)
	}
	if got.Final["COMPLETED"] == 0 || got.Final["FAILED payment_declined"] == 0 || got.Final["in every view"] == 0 || got.Duplicates == 0 {
		t.Errorf("ends are %v, duplicates %d", got.Final, got.Duplicates)
	}
	if got.End.P50 < got.Reply.P50 {
		t.Errorf("the end (%v) came before the reply (%v)", got.End.P50, got.Reply.P50)
	}
}

// Each promise that a server breaks must be reported; TestEveryArrivalIsFollowedToItsEnd shows that a
// good server is not.
func TestBrokenPromisesAreReported(t *testing.T) {
	tests := []struct {
		name, kind, wanted string
		spoil              func(*shop)
	}{
		{"one key makes two orders", Orders, "one idempotency key made two orders", func(s *shop) { s.forgetsKeys = true }},
		{"an accepted order is lost", Orders, "was accepted, and its status is 404", func(s *shop) { s.loses = true }},
		{"a declined payment completes", Orders, "completed though its payment is declined", func(s *shop) { s.completesDeclined = true }},
		{"an order never ends", Orders, "not at an end", func(s *shop) { s.neverEnds = true }},
		{"a view never has the change", Profiles, "not yet in /billing/accounts/", func(s *shop) { s.neverEnds = true }},
		{"a change sent twice makes two versions", Profiles, "made versions", func(s *shop) { s.versionsTwice = true }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := newShop()
			test.spoil(s)
			got := run(t, Config{Target: s.serve(t), Kind: test.kind, Rate: 200, Duration: 100 * time.Millisecond,
				Duplicates: 0.5, Declined: 0.5, Seed: 1, Settle: 300 * time.Millisecond})
			if got.BrokenCount == 0 || !strings.Contains(strings.Join(got.Broken, "\n"), test.wanted) {
				t.Errorf("broken %d: %q", got.BrokenCount, got.Broken)
			}
		})
	}
}

// The server answers nobody before the twentieth request is there: a generator that waits for replies
// never sends it.
func TestArrivalsNeverWaitForReplies(t *testing.T) {
	s := newShop()
	all := make(chan struct{})
	s.before = func(n int) {
		if n == 19 {
			close(all)
		}
		select {
		case <-all:
		case <-time.After(5 * time.Second):
			t.Error("the twentieth request did not come: the generator waits for replies")
		}
	}
	got := run(t, Config{Target: s.serve(t), Kind: Orders, Rate: 400, Duration: 50 * time.Millisecond, Seed: 1})
	if got.Sent != 20 || got.Accepted != 20 {
		t.Errorf("sent %d, accepted %d, want 20", got.Sent, got.Accepted)
	}
}

// One request at a time, and the first takes 100 ms: those that were due meanwhile were held up by the
// server, and their latencies must say so. Counted from the sending, eleven of twelve would look quick.
func TestLatencyCountsFromTheTimeAnArrivalWasDue(t *testing.T) {
	s := newShop()
	s.before = func(n int) {
		if n == 0 {
			<-time.After(100 * time.Millisecond)
		}
	}
	got := run(t, Config{Target: s.serve(t), Kind: Orders, Rate: 100, Duration: 120 * time.Millisecond, InFlight: 1, Seed: 1})
	if got.Sent != 12 || got.Reply.P50 < 40*time.Millisecond || got.Behind < 80*time.Millisecond {
		t.Errorf("sent %d, p50 %v, behind %v", got.Sent, got.Reply.P50, got.Behind)
	}
}

func TestASeedReplaysTheDraws(t *testing.T) {
	sent := func(seed uint64) []string {
		s := newShop()
		run(t, Config{Target: s.serve(t), Kind: Orders, Rate: 500, Duration: 100 * time.Millisecond, Duplicates: 0.3, Declined: 0.3, Seed: seed})
		slices.Sort(s.bodies)
		return s.bodies
	}
	first, again, other := sent(5), sent(5), sent(6)
	if !slices.Equal(first, again) {
		t.Error("one seed sent two different loads")
	}
	if slices.Equal(first, other) {
		t.Error("two seeds sent one load")
	}
}

func TestStoppingALoadIsNoFailure(t *testing.T) {
	s := newShop()
	s.neverEnds = true
	ctx, stop := context.WithCancel(t.Context())
	s.before = func(n int) {
		if n == 5 {
			stop()
		}
	}
	got, err := Run(ctx, Config{Target: s.serve(t), Kind: Orders, Rate: 500, Seed: 1})
	if err != nil || got.BrokenCount != 0 {
		t.Errorf("error %v, broken %q", err, got.Broken)
	}
}

func TestACommandEndsInAnErrorWhenNothingWasAccepted(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	var out bytes.Buffer
	c := Cmd{Target: server.URL, Kind: Orders, Rate: 100, Duration: 50 * time.Millisecond, Customers: 1, Skew: Zipf, InFlight: 8, Settle: time.Second}
	if err := c.Run(t.Context(), &out); !errors.Is(err, ErrNothingAccepted) {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(out.String(), "errors 404 5") {
		t.Errorf("printed:\n%s", out.String())
	}
}

// An API that asks for a token gets it with every request, and its ends are seen.
func TestTheTokenIsSent(t *testing.T) {
	s := newShop()
	s.token = "t-1"
	target := s.serve(t)
	for token, accepted := range map[string]bool{"t-1": true, "t-2": false, "": false} {
		var out bytes.Buffer
		c := Cmd{Target: target, Token: token, Kind: Mixed, Rate: 500, Duration: 100 * time.Millisecond, Customers: 5, Skew: Zipf, InFlight: 8, Settle: 20 * time.Second, Seed: 7}
		err := c.Run(t.Context(), &out)
		if accepted != (err == nil) || !accepted && !errors.Is(err, ErrNothingAccepted) || accepted == strings.Contains(out.String(), "401") {
			t.Errorf("token %q: %v\n%s", token, err, &out)
		}
	}
}

func TestImpossibleLoadsAreRefused(t *testing.T) {
	for _, cfg := range []Config{
		{Target: "localhost:8080"}, {Rate: -1}, {Kind: "everything"}, {Skew: "steep"}, {Duplicates: 2}, {Declined: -0.1}, {Customers: -1}, {Duration: -1},
	} {
		if _, err := Run(t.Context(), cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}
