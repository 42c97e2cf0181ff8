// Package opshttp answers the questions that operators and orchestrators put to every process: is it
// alive, is it ready and if not why, and what do its metrics say.
//
// The guarantee: /readyz is 200 only when every check passed just now. It fails to hold between a fault
// and the next question: readiness is asked for, not pushed.
package opshttp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// checkTime bounds one check, so that a database that hangs is a reason and not a hung answer.
const checkTime = 2 * time.Second

// Checks is what must hold for a process to be ready. The zero Checks is empty: ready. It is safe for
// concurrent use.
type Checks struct {
	mu     sync.Mutex
	checks []named
}

type named struct {
	name  string
	check func(context.Context) error
}

// Add adds a check; check returns why the part is not ready, nil when it is. It is called concurrently with
// itself and others, and must return when its context ends, which is after 2 s at most.
func (c *Checks) Add(name string, check func(context.Context) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.checks = append(c.checks, named{name, check})
}

// Reason is one check that does not pass.
type Reason struct {
	Check  string `json:"check"`
	Reason string `json:"reason"`
}

// Failing runs every check at the same time and returns those that do not pass, in the order in which
// they were added.
func (c *Checks) Failing(ctx context.Context) []Reason {
	c.mu.Lock()
	checks := slices.Clone(c.checks)
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	errs := make([]error, len(checks))
	var wait sync.WaitGroup
	for i, n := range checks {
		wait.Go(func() { errs[i] = n.check(ctx) })
	}
	wait.Wait()
	var failing []Reason
	for i, err := range errs {
		if err != nil {
			failing = append(failing, Reason{checks[i].name, err.Error()})
		}
	}
	return failing
}

// Handler routes /healthz, /readyz and /metrics.
func Handler(metrics *prometheus.Registry, checks *Checks) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]string{"status": "alive"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if failing := checks.Failing(r.Context()); len(failing) > 0 {
			answer(w, http.StatusServiceUnavailable, map[string]any{"status": "not ready", "reasons": failing})
			return
		}
		answer(w, http.StatusOK, map[string]string{"status": "ready"})
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{Registry: metrics}))
	return mux
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client left: nobody to tell
}

// Listen opens addr. A port that is taken is an error that says so and names flag, the flag that moves it.
func Listen(addr, flag string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s is taken: stop what listens there or choose another address with %s", addr, flag)
	}
	if err != nil {
		return nil, fmt.Errorf("listening on %s (%s): %w", addr, flag, err)
	}
	return l, nil
}

// Serve answers on l until ctx ends; then it takes no more connections, lets requests finish for up to
// drain, and returns. Requests that wait for a long time learn of the end by [Draining].
// Those that are not done by then are cut off, which is no error.
func Serve(ctx context.Context, l net.Listener, handler http.Handler, drain time.Duration) error {
	draining, drained := context.WithCancel(context.WithoutCancel(ctx))
	defer drained()
	server := &http.Server{
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
	}
	server.RegisterOnShutdown(drained)
	server.Handler = withDrain(handler, draining)
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serving HTTP: %w", err)
	case <-ctx.Done():
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	err := server.Shutdown(stopping)
	<-failed
	if errors.Is(err, context.DeadlineExceeded) {
		return server.Close() // whoever is left is cut off
	}
	return err
}

type drainKey struct{}

func withDrain(next http.Handler, draining context.Context) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), drainKey{}, draining)))
	})
}

// Draining returns a channel that is closed when the server of the request's context begins to drain; it
// is for streams, which would otherwise hold the drain up. It is nil outside Serve.
func Draining(ctx context.Context) <-chan struct{} {
	if draining, ok := ctx.Value(drainKey{}).(context.Context); ok {
		return draining.Done()
	}
	return nil
}
