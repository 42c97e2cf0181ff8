package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"time"

	"converge/internal/database"
	"converge/internal/kafkaauth"
	"converge/internal/sandbox"
	"converge/lab/load"
	"converge/producers/httpapi"
	"converge/relay"
)

type upCmd struct {
	Dir      string   `default:".converge" help:"Where PostgreSQL, Kafka and the registry keep their data; a second up resumes there."`
	HTTP     string   `name:"http" default:"127.0.0.1:8080" placeholder:"HOST:PORT" help:"Console, API, /healthz, /readyz and /metrics."`
	Kafka    string   `default:"127.0.0.1:9092" placeholder:"HOST:PORT" help:"Where the embedded Kafka listens."`
	Registry string   `default:"127.0.0.1:8081" placeholder:"HOST:PORT" help:"Where the embedded schema registry listens."`
	Database string   `env:"CONVERGE_DATABASE,DATABASE_URL" placeholder:"URL" help:"Use this PostgreSQL (wal_level=logical) instead of an own one."`
	Brokers  []string `placeholder:"HOST:PORT" help:"Use this Kafka instead of the embedded one."`
	kafkaauth.Flags
	OrderDeadline time.Duration `default:"30s" help:"An order that has not passed its pivot by then is undone."`
	Format        string        `enum:"avro,json" default:"avro" help:"Write events as ${enum}; both are read."`
	AllowRemote   bool          `help:"Listen and answer beyond loopback, where the console, and without --api-tokens the API, ask nobody who they are: put authentication in front."`
	Demo          bool          `help:"Send a gentle load for as long as it runs."`
	apiFlags
	retention
	reading
}

// Connections of one service: few when one process holds ten services, more when each has its own.
const (
	connsTogether = 6
	connsApart    = 12
)

// startTime bounds the wait for a database that was given; an own one says itself when it fails.
const startTime = 20 * time.Second

// How long an own server that ended, and does not start, is left alone.
const (
	restartRest        = time.Second
	longestRestartRest = 30 * time.Second
)

func (c *upCmd) Run(ctx context.Context, log *slog.Logger, stdout io.Writer) error {
	at := listener{HTTP: c.HTTP, AllowRemote: c.AllowRemote}
	err := at.check()
	if err != nil && c.APITokens != "" {
		err = usageError{fmt.Errorf("%w (--api-tokens guards the API, and not the console beside it)", err)}
	}
	if err != nil {
		return err
	}
	if c.Demo && c.APITokens != "" {
		return usageError{errors.New("the load of --demo brings no token: leave out --demo or --api-tokens")}
	}
	api, err := c.apiFlags.config(log, c.AllowRemote)
	if err != nil {
		return err
	}
	if len(c.Brokers) == 0 && c.Flags != (kafkaauth.Flags{}) {
		return usageError{errors.New("the embedded Kafka has neither TLS nor passwords: leave out the --kafka- flags, or name another Kafka with --brokers")}
	}
	if err := c.retention.check(); err != nil {
		return err
	}
	if err := c.reading.check(); err != nil {
		return err
	}
	began := time.Now()
	say := func(text string) { fmt.Fprintf(stdout, "%5.1fs  %s\n", time.Since(began).Seconds(), text) }
	release, err := sandbox.Lock(c.Dir)
	if err != nil {
		return err
	}
	defer release()
	e := &engines{connection: connection{Database: c.Database, Brokers: c.Brokers, Flags: c.Flags}}
	err = e.start(ctx, c, say)
	if err == nil {
		n := newNode(log)
		if err = c.assemble(ctx, n, e, api, say); err == nil {
			n.group.Add("welcome", func(ctx context.Context) error { return c.welcome(ctx, n, e, stdout, began) })
			err = n.run(ctx, at)
		}
	}
	if e.own() {
		say("stopping PostgreSQL and Kafka")
	}
	err = errors.Join(err, e.stop(context.WithoutCancel(ctx)))
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil // interrupted while it started
	}
	if err == nil {
		say("stopped; the next up goes on from here")
	}
	return err
}

// engines are the distributed engines: own ones, or those that were given.
type engines struct {
	connection
	registry *sandbox.Registry
	postgres *sandbox.Postgres // nil: given
	kafka    *sandbox.Kafka    // nil: given
}

func (e *engines) own() bool { return e.postgres != nil || e.kafka != nil }

func (e *engines) start(ctx context.Context, c *upCmd, say func(string)) (err error) {
	if len(e.Brokers) == 0 {
		if e.kafka, err = sandbox.StartKafka(sandbox.KafkaConfig{Dir: filepath.Join(c.Dir, "kafka"), Addr: c.Kafka}); err != nil {
			return err
		}
		e.Brokers = e.kafka.Brokers()
	}
	if e.registry, err = sandbox.OpenRegistry(sandbox.RegistryConfig{Dir: filepath.Join(c.Dir, "registry"), Addr: c.Registry}); err != nil {
		return err
	}
	if e.Database == "" {
		say("starting PostgreSQL")
		e.postgres, err = sandbox.StartPostgres(ctx, sandbox.PostgresConfig{Dir: filepath.Join(c.Dir, "postgres"), Progress: say})
		if err != nil {
			return err
		}
		say(fmt.Sprintf("PostgreSQL %d of %s answers", e.postgres.Version, e.postgres.Bin))
		e.Database = e.postgres.URL()
	}
	return nil
}

func (e *engines) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	if e.kafka != nil {
		e.kafka.Close()
	}
	if e.postgres != nil {
		return e.postgres.Stop(ctx)
	}
	return nil
}

// assemble migrates, and adds every part of the pipeline to the node.
func (c *upCmd) assemble(ctx context.Context, n *node, e *engines, api httpapi.Config, say func(string)) error {
	say("bringing the database up to date")
	migrating, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if err := migrateAll(migrating, e.Database); err != nil {
		return fmt.Errorf("%w (database %s)", err, database.Redact(e.Database))
	}
	if err := widenPublication(migrating, e.Database); err != nil {
		return err
	}
	if e.postgres != nil {
		n.group.Add("postgres", func(ctx context.Context) error { return e.keepPostgres(ctx, n.log) })
	}
	n.group.Add("registry", e.registry.Serve)
	options, err := e.kafkaOptions()
	if err != nil {
		return err
	}
	r, err := n.addRelay(relay.Config{DatabaseURL: e.Database, Brokers: e.Brokers, KafkaOptions: options, Tables: outboxTables(), OnMissingSlot: relay.CreateMissingSlot})
	if err != nil {
		return err
	}
	if err := n.addConsole(e.connection, e.registry.URL(), c.AllowRemote, n.metrics); err != nil {
		return err
	}
	n.addServices(services(), serviceConfig{connection: e.connection, encoding: encoding{Registry: e.registry.URL(), Format: c.Format}, retention: c.retention, reading: c.reading,
		api: api, orderDeadline: c.OrderDeadline, maxConns: connsTogether,
		after: r.Ready}) // the slot must be there before the first row
	if c.Demo {
		n.group.Add("demo", func(ctx context.Context) error { return c.demo(ctx, n) })
	}
	return nil
}

// keepPostgres starts the own server again whenever it ends, at the same address, until ctx ends. What
// leans on it is not ready meanwhile, and resumes by itself.
func (e *engines) keepPostgres(ctx context.Context, log *slog.Logger) error {
	rest := restartRest
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.postgres.Done():
		}
		log.Warn("PostgreSQL ended; starting it again", "directory", e.postgres.Dir)
		again, err := sandbox.StartPostgres(ctx, sandbox.PostgresConfig{Dir: e.postgres.Dir, Port: e.postgres.Port()})
		if err == nil {
			log.Info("PostgreSQL answers again")
			e.postgres, rest = again, restartRest
			continue
		}
		log.Error("PostgreSQL does not start", "error", err, "again_in", rest)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(rest):
		}
		rest = min(2*rest, longestRestartRest)
	}
}

// ready waits until every check of the node passes, and returns false when ctx ends first.
func ready(ctx context.Context, n *node) bool {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for len(n.checks.Failing(ctx)) > 0 {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// demo sends a gentle load until ctx ends.
func (c *upCmd) demo(ctx context.Context, n *node) error {
	if !ready(ctx, n) {
		return nil
	}
	_, err := load.Run(ctx, load.Config{Target: base(c.HTTP), Kind: "mixed", Rate: 8, Customers: 50, Skew: "zipf",
		Duplicates: 0.05, Declined: 0.1, InFlight: 64, Settle: time.Second})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// welcome prints where everything is, once it is ready.
func (c *upCmd) welcome(ctx context.Context, n *node, e *engines, out io.Writer, began time.Time) error {
	if !ready(ctx, n) {
		return nil
	}
	kafka, token := e.Brokers[0], ""
	if c.APITokens != "" {
		token = " -H 'Authorization: Bearer TOKEN'"
	}
	fmt.Fprintf(out, `%5.1fs  ready

  Console     %[2]s/
  API         %[2]s/docs
  Kafka       %[3]s
  Registry    %[4]s
  PostgreSQL  %[5]s
  Data        %[6]s

Try, in another shell:

  curl -i %[2]s/orders -H 'Idempotency-Key: %[7]s' -H 'Content-Type: application/json'%[8]s \
       -d '{"customer_id":"c-1","items":[{"sku":"BOOK-1","quantity":2}]}'
  kcat -b %[3]s -t orders -C -e -f '%%o %%k %%h\n'
  bin/converge event tail --brokers %[3]s --registry %[4]s

Ctrl-C drains and stops everything; the next up goes on from here.
`, time.Since(began).Seconds(), base(c.HTTP), kafka, e.registry.URL(), database.Redact(e.Database), c.Dir, began.Format("20060102-150405"), token)
	<-ctx.Done()
	return nil
}
