package main

import (
	"context"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"converge/internal/kafkaauth"
)

type serveCmd struct {
	Names []string `arg:"" name:"name" help:"Services to run, or all: orders, inventory, payments, shipping, transfers, ledger, identity, billing, analytics, orderviews."`
	connection
	encoding
	listener
	apiFlags
	retention
	reading
	Slot          string        `default:"converge" help:"The relay's replication slot: old outbox rows go only when it has confirmed them."`
	OrderDeadline time.Duration `default:"30s" help:"An order that has not passed its pivot by then is undone."`
}

func (c *serveCmd) Run(ctx context.Context, log *slog.Logger) error {
	chosen, err := choose(c.Names)
	if err != nil {
		return err
	}
	for _, check := range []func() error{c.connection.check, c.encoding.check, c.retention.check, c.reading.check} {
		if err := check(); err != nil {
			return err
		}
	}
	api, err := c.apiFlags.config(log, c.AllowRemote)
	if err != nil {
		return err
	}
	c.listener.guarded = api.Tokens.Required()
	collectLess()
	n := newNode(log)
	n.addServices(chosen, serviceConfig{connection: c.connection, encoding: c.encoding, retention: c.retention, reading: c.reading, slot: c.Slot,
		api: api, orderDeadline: c.OrderDeadline, maxConns: connsApart})
	return n.run(ctx, c.listener)
}

// collectLess lets garbage grow to four times what is kept before it is collected, unless GOGC says otherwise; Go's
// default is once. A service keeps few megabytes and makes many, and the collector takes its time from the requests.
func collectLess() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
}

type consoleCmd struct {
	connection
	listener
	Registry string `placeholder:"URL" help:"Schema registry, to show Avro values in clear."`
}

func (c *consoleCmd) Run(ctx context.Context, log *slog.Logger) error {
	if err := c.connection.check(); err != nil {
		return err
	}
	n := newNode(log)
	if err := n.addConsole(c.connection, c.Registry, c.AllowRemote, nil); err != nil {
		return err
	}
	return n.run(ctx, c.listener)
}

type migrateCmd struct {
	Database string   `env:"CONVERGE_DATABASE,DATABASE_URL" required:"" placeholder:"URL" help:"PostgreSQL; the user may create schemas and roles."`
	Brokers  []string `placeholder:"HOST:PORT" help:"Kafka, to create the topics too."`
	kafkaauth.Flags
}

func (c *migrateCmd) Run(ctx context.Context, log *slog.Logger) error {
	at := connection{Database: c.Database, Brokers: c.Brokers, Flags: c.Flags}
	if _, err := at.kafkaOptions(); err != nil {
		return err
	}
	if err := migrateAll(ctx, c.Database); err != nil {
		return err
	}
	log.Info("database is up to date", "schemas", len(services()))
	if len(c.Brokers) == 0 {
		return nil
	}
	topics := topicsOf(serviceNames())
	if err := createTopics(ctx, at, topics); err != nil {
		return kafkaauth.WithFix(err)
	}
	log.Info("topics are there", "topics", len(topics))
	return nil
}
