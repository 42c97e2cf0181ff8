package challenge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"converge/internal/sandbox"
)

// engines is where Kafka, the registry and PostgreSQL are, and how to stop what the challenge started.
type engines struct {
	brokers  []string
	registry string // "": events are JSON
	database string
	dir      string // "" when nothing was started

	kafka    *sandbox.Kafka
	postgres *sandbox.Postgres
	serving  sync.WaitGroup
	stopReg  context.CancelFunc
	regErr   error
}

// startEngines starts what the configuration doesn't name, in a private directory. Nothing stays behind
// when it returns an error.
func startEngines(ctx context.Context, cfg Config, say func(string)) (*engines, error) {
	if cfg.Database != "" {
		return &engines{brokers: cfg.Brokers, registry: cfg.Registry, database: cfg.Database}, nil
	}
	dir, err := os.MkdirTemp("", "converge-challenge-")
	if err != nil {
		return nil, fmt.Errorf("making a private directory: %w", err)
	}
	e := &engines{dir: dir}
	if err := e.start(ctx, say); err != nil {
		return nil, errors.Join(err, e.stop(context.WithoutCancel(ctx), false))
	}
	return e, nil
}

const anyPort = "127.0.0.1:0"

func (e *engines) start(ctx context.Context, say func(string)) (err error) {
	if e.kafka, err = sandbox.StartKafka(sandbox.KafkaConfig{Dir: filepath.Join(e.dir, "kafka"), Addr: anyPort}); err != nil {
		return fmt.Errorf("starting the embedded Kafka: %w", err)
	}
	e.brokers = e.kafka.Brokers()
	registry, err := sandbox.OpenRegistry(sandbox.RegistryConfig{Dir: filepath.Join(e.dir, "registry"), Addr: anyPort})
	if err != nil {
		return fmt.Errorf("starting the embedded schema registry: %w", err)
	}
	e.registry = registry.URL()
	serve, stop := context.WithCancel(context.WithoutCancel(ctx)) // until stop, also when ctx has ended
	e.stopReg = stop
	e.serving.Go(func() { e.regErr = registry.Serve(serve) })
	if e.postgres, err = sandbox.StartPostgres(ctx, sandbox.PostgresConfig{Dir: filepath.Join(e.dir, "postgres"), Progress: say}); err != nil {
		return fmt.Errorf("starting PostgreSQL: %w", err)
	}
	e.database = e.postgres.URL()
	return nil
}

// stop stops what was started and removes the private directory, unless it is to be kept.
func (e *engines) stop(ctx context.Context, keep bool) error {
	var errs []error
	if e.postgres != nil {
		errs = append(errs, e.postgres.Stop(ctx))
	}
	if e.stopReg != nil {
		e.stopReg()
		e.serving.Wait()
		errs = append(errs, e.regErr)
	}
	if e.kafka != nil {
		e.kafka.Close()
	}
	if e.dir != "" && !keep {
		errs = append(errs, os.RemoveAll(e.dir))
	}
	return errors.Join(errs...)
}
