package relay_test

import (
	"context"
	"errors"
	"log"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"converge/relay"
)

// A relay inside a program of one's own, with its metrics and its readiness.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := carry(ctx, os.Getenv("DATABASE_URL"), "127.0.0.1:9092", "127.0.0.1:9100"); err != nil {
		log.Fatal(err)
	}
}

// carry relays the rows of public.outbox until ctx ends, and says at /readyz why it does not.
func carry(ctx context.Context, databaseURL, broker, address string) error {
	metrics := prometheus.NewRegistry()
	outbox, err := relay.New(relay.Config{
		DatabaseURL:   databaseURL,
		Brokers:       []string{broker},
		Slot:          "shop",
		Publication:   "shop",
		Tables:        []string{"public.outbox"},
		OnMissingSlot: relay.CreateMissingSlot,
		Registerer:    metrics,
	})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := outbox.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	server := &http.Server{Addr: address, Handler: mux, ReadHeaderTimeout: time.Second}
	serving := make(chan error, 1)
	go func() { serving <- server.ListenAndServe() }()

	err = outbox.Run(ctx) // until ctx ends; then it drains. An outage does not end it.
	closing := server.Close()
	if served := <-serving; !errors.Is(served, http.ErrServerClosed) {
		return errors.Join(err, served)
	}
	return errors.Join(err, closing)
}
