package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/console"
	"converge/consumers/group"
	"converge/internal/database"
	"converge/internal/kafkaauth"
	"converge/internal/opshttp"
	"converge/internal/process"
	"converge/producers/httpapi"
	"converge/producers/openapi"
	"converge/producers/outbox"
	"converge/relay"
	"converge/schemas"
	"converge/schemas/registry"
)

// connection says where the distributed engines are.
type connection struct {
	Database string   `env:"CONVERGE_DATABASE,DATABASE_URL" placeholder:"URL" help:"PostgreSQL, as postgres://user:password@host:port/database."`
	Brokers  []string `placeholder:"HOST:PORT" help:"Kafka bootstrap addresses, separated by commas."`
	kafkaauth.Flags
}

func (c connection) check() error {
	if c.Database == "" {
		return usageError{errors.New("no database: give --database URL or set CONVERGE_DATABASE")}
	}
	if len(c.Brokers) == 0 {
		return usageError{errors.New("no Kafka: give --brokers HOST:PORT or set CONVERGE_BROKERS")}
	}
	_, err := c.kafkaOptions()
	return err
}

// kafkaOptions returns what every client of this Kafka is made with, beside the brokers.
func (c connection) kafkaOptions() ([]kgo.Opt, error) {
	options, err := c.Options()
	if err != nil {
		return nil, usageError{err}
	}
	return options, nil
}

// client returns a Kafka client with nothing special to it.
func (c connection) client() (*kgo.Client, error) {
	options, err := c.kafkaOptions()
	if err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(append(options, kgo.SeedBrokers(c.Brokers...))...)
	if err != nil {
		return nil, usageError{fmt.Errorf("reading the broker addresses: %w", err)}
	}
	return client, nil
}

// encoding says how services write events.
type encoding struct {
	Registry string `placeholder:"URL" help:"Schema registry with the Confluent API; needed for Avro."`
	Format   string `enum:"avro,json" default:"avro" help:"Write events as ${enum}; both are read."`
}

func (e encoding) check() error {
	if e.Registry == "" && e.Format == string(schemas.Avro) {
		return usageError{errors.New("no schema registry: give --registry URL, or --format json to do without one")}
	}
	return nil
}

// listener says where a process answers HTTP.
type listener struct {
	HTTP        string `name:"http" default:"127.0.0.1:8080" placeholder:"HOST:PORT" help:"Address for the API, /healthz, /readyz and /metrics."`
	AllowRemote bool   `help:"Listen and answer beyond loopback, where nobody is asked who they are: put authentication in front."`
	guarded     bool   // who has no token is told nothing but /healthz, /readyz and /metrics
}

// check refuses an address that others can reach, unless that was asked for.
func (l listener) check() error {
	host, _, err := net.SplitHostPort(l.HTTP)
	if err != nil {
		return usageError{fmt.Errorf("--http %s is not HOST:PORT: %w", l.HTTP, err)}
	}
	ip := net.ParseIP(host)
	if l.AllowRemote || l.guarded || host == "localhost" || (ip != nil && ip.IsLoopback()) {
		return nil
	}
	return usageError{fmt.Errorf("--http %s can be reached from other machines and nothing asks who they are: listen on 127.0.0.1, have serve ask for --api-tokens, or say --allow-remote", l.HTTP)}
}

// reading says how read models behave.
type reading struct {
	ViewWait   time.Duration `default:"2s" placeholder:"DURATION" help:"A view read waits so long for what its Consistency-Token names, unless it prefers another time."`
	HideWrites time.Duration `default:"0s" placeholder:"DURATION" help:"Read models show each change no sooner than so long after its commit: to see whether clients bear stale views. 0s hides nothing."`
}

func (r reading) check() error {
	if r.ViewWait <= 0 || r.ViewWait > longestViewWait {
		return usageError{fmt.Errorf("--view-wait %s is not between 1ms and %s; a reader that does not want to wait says Prefer: wait=0", r.ViewWait, longestViewWait)}
	}
	if r.HideWrites < 0 {
		return usageError{fmt.Errorf("--hide-writes %s is negative", r.HideWrites)}
	}
	return nil
}

// longestViewWait is what a reader may prefer, too.
const longestViewWait = 30 * time.Second

// node is what every long-running process has: metrics, health, one HTTP listener, and its parts in the
// order in which they start; they stop in the reverse order.
type node struct {
	log     *slog.Logger
	metrics *prometheus.Registry
	checks  *opshttp.Checks
	group   process.Group
	mux     *http.ServeMux
}

func newNode(log *slog.Logger) *node {
	n := &node{log: log, metrics: prometheus.NewRegistry(), checks: &opshttp.Checks{}, mux: http.NewServeMux(),
		group: process.Group{Drain: drainTime}}
	n.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	ops := httpapi.Routed(opshttp.Handler(n.metrics, n.checks))
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		n.mux.Handle(path, ops)
	}
	return n
}

// handler answers what has no route in problem documents, also in a process that has no API.
func (n *node) handler() http.Handler { return httpapi.Routed(n.mux) }

// drainTime bounds how long a process may take to stop cleanly.
const drainTime = 20 * time.Second

// run serves and runs the parts until ctx ends or one of them fails.
func (n *node) run(ctx context.Context, l listener) error {
	if err := l.check(); err != nil {
		return err
	}
	socket, err := opshttp.Listen(l.HTTP, "--http")
	if err != nil {
		return err
	}
	n.group.Add("http", func(ctx context.Context) error { return opshttp.Serve(ctx, socket, n.handler(), drainTime/2) })
	if err := n.group.Run(ctx); err != nil {
		if errors.Is(err, process.ErrDrain) {
			return undrained{err}
		}
		return err
	}
	return nil
}

type undrained struct{ error }

func (u undrained) Unwrap() error { return u.error }
func (undrained) ExitCode() int   { return process.ExitUndrain }

// addRelay adds a relay.
func (n *node) addRelay(cfg relay.Config) (*relay.Relay, error) {
	cfg.Logger, cfg.Registerer = n.log, n.metrics
	r, err := relay.New(cfg)
	if err != nil {
		return nil, usageError{err}
	}
	n.checks.Add("relay", func(context.Context) error { return r.Ready() })
	n.group.Add("relay", r.Run)
	return r, nil
}

// addConsole adds the console at the paths that are its own. gatherer knows what only the processes that
// run the services know; nil when this is not one of them.
func (n *node) addConsole(at connection, schemaRegistry string, allowRemote bool, gatherer prometheus.Gatherer) error {
	options, err := at.kafkaOptions()
	if err != nil {
		return err
	}
	cfg := console.Config{AllowRemote: allowRemote, Brokers: at.Brokers, Client: options, DatabaseURL: at.Database, Registerer: n.metrics, Gatherer: gatherer, Logger: n.log}
	if schemaRegistry != "" {
		client, err := registry.New(schemaRegistry, n.log)
		if err != nil {
			return usageError{err}
		}
		cfg.Codec = schemas.NewCodec(schemas.Avro, schemas.IDs{Schema: client.Schema})
	}
	c, err := console.New(cfg)
	if err != nil {
		return usageError{err}
	}
	n.checks.Add("console", func(context.Context) error { return c.Ready() })
	n.group.Add("console", c.Run)
	handler := c.Handler()
	for _, path := range []string{"/{$}", "/lag", "/console/"} {
		n.mux.Handle(path, handler)
	}
	return nil
}

// serviceConfig is what a process needs to run services.
type serviceConfig struct {
	connection
	encoding
	retention
	slot          string         // the relay's; "" is its default
	api           httpapi.Config // but for Logger and Registerer, which are the node's
	orderDeadline time.Duration
	reading
	maxConns int32
	// after returns nil once the services may begin; nil: at once.
	after func() error
}

// addServices adds the chosen services. Their API answers 503 until Kafka, the registry and the database
// have been reached; they wait for these as long as it takes.
func (n *node) addServices(chosen []service, cfg serviceConfig) {
	begin := &starting{}
	begin.say("starting")
	n.checks.Add("services", begin.check)
	n.mux.Handle("/", begin)
	n.group.Add("services", func(ctx context.Context) error { return n.runServices(ctx, chosen, cfg, begin) })
}

// starting answers for the API until it is there.
type starting struct {
	reason atomic.Pointer[string]
	api    atomic.Pointer[httpapi.API]
}

func (s *starting) say(reason string) { s.reason.Store(&reason) }

func (s *starting) check(context.Context) error {
	if reason := s.reason.Load(); reason != nil {
		return errors.New(*reason)
	}
	return nil
}

func (s *starting) install(api *httpapi.API) {
	s.api.Store(api)
	s.reason.Store(nil)
}

func (s *starting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if api := s.api.Load(); api != nil {
		api.ServeHTTP(w, r)
		return
	}
	httpapi.Unavailable(w, r)
}

// runServices waits for what the services need, and runs them.
func (n *node) runServices(ctx context.Context, chosen []service, cfg serviceConfig, begin *starting) error {
	codec, err := n.awaitDependencies(ctx, chosen, cfg, begin)
	if err != nil || codec == nil {
		return err
	}
	if there, err := n.await(ctx, "the database", begin, func(ctx context.Context) (err error) {
		cfg.api.TokenKey, err = readTokenKey(ctx, cfg.Database, chosen[0].name)
		return err
	}); err != nil || !there {
		return err
	}
	cfg.api.Logger, cfg.api.Registerer = n.log, n.metrics
	api, err := httpapi.New(cfg.api)
	if err != nil {
		return err
	}
	openapi.Routes(api)
	inner := process.Group{Drain: drainTime}
	for _, s := range chosen {
		pool, err := database.Open(ctx, cfg.Database, s.name, cfg.maxConns)
		if err != nil {
			return err
		}
		defer pool.Close()
		n.checks.Add(s.name+" database", func(ctx context.Context) error { return pool.Ping(ctx) })
		p := s.open(deps{pool: pool, outbox: outbox.New(codec), codec: codec, log: n.log.With("service", s.name),
			registerer: n.metrics, orderDeadline: cfg.orderDeadline, viewWait: cfg.ViewWait})
		if p.routes != nil {
			p.routes(api)
		}
		if err := n.addConsumer(&inner, s, p, pool, cfg); err != nil {
			return err
		}
		if p.run != nil {
			inner.Add(s.name+" sweeper", p.run)
		}
		days := outbox.Days{Pool: pool, Retention: cfg.OutboxRetention, Slot: cfg.slot, Logger: n.log.With("service", s.name)}
		if err := days.Make(ctx, time.Now()); err != nil { // before the first row; Run tries again
			n.log.Info("the outbox begins without partitions of its own days", "service", s.name, "error", err)
		}
		inner.Add(s.name+" outbox days", days.Run)
		if s.keeps(apiSet) {
			keys := httpapi.Keys{Pool: pool, Retention: cfg.api.KeyRetention, Logger: n.log.With("service", s.name)}
			inner.Add(s.name+" idempotency keys", keys.Run)
		}
	}
	begin.install(api)
	return inner.Run(ctx)
}

func (n *node) addConsumer(inner *process.Group, s service, p parts, pool *pgxpool.Pool, cfg serviceConfig) error {
	topics, _ := schemas.ReadBy(s.name)
	if len(topics) == 0 {
		return nil
	}
	options, err := cfg.kafkaOptions()
	if err != nil {
		return err
	}
	model := schemas.ReadModels()[s.name]
	var delay time.Duration
	if model != "" {
		delay = cfg.HideWrites
	}
	g, err := group.New(group.Config{Name: s.name, Brokers: cfg.Brokers, Client: options, Topics: topics, Pool: pool, Handler: p.handler,
		InboxRetention: cfg.InboxRetention, ReadModel: model, Delay: delay, Logger: n.log, Registerer: n.metrics})
	if err != nil {
		return err
	}
	n.checks.Add(s.name+" consumer", func(context.Context) error { return g.Ready() })
	inner.Add(s.name+" consumer", g.Run)
	return nil
}

// awaitDependencies returns the codec once the registry, Kafka and the migrated database were there, and
// nil when ctx ends first. What it waits for stands in /readyz, and in the log when it changes.
func (n *node) awaitDependencies(ctx context.Context, chosen []service, cfg serviceConfig, begin *starting) (*schemas.Codec, error) {
	var names []string
	for _, s := range chosen {
		names = append(names, s.name)
	}
	var keep map[string]time.Duration
	steps := []struct {
		what string
		try  func(context.Context) error
	}{
		{"the database", func(ctx context.Context) error { return migrated(ctx, cfg.Database, names) }},
		{"Kafka", func(ctx context.Context) error { return createTopics(ctx, cfg.connection, topicsOf(names)) }},
		{"the topics' settings", func(ctx context.Context) (err error) {
			keep, err = topicRetentions(ctx, cfg.connection, readBy(names))
			return err
		}},
		{"the relay", func(context.Context) error {
			if cfg.after == nil {
				return nil
			}
			return cfg.after()
		}},
	}
	for _, step := range steps {
		if there, err := n.await(ctx, step.what, begin, step.try); err != nil || !there {
			return nil, err
		}
	}
	if err := cfg.retention.checkTopics(keep); err != nil {
		return nil, err
	}
	if cfg.Registry == "" {
		return schemas.NewCodec(schemas.Format(cfg.Format), schemas.IDs{}), nil
	}
	begin.say("waits for the schema registry")
	client, err := registry.New(cfg.Registry, n.log)
	if err != nil {
		return nil, usageError{err}
	}
	ids, err := client.Register(ctx)
	if ctx.Err() != nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("registering the schemas: %w", err)
	}
	return schemas.NewCodec(schemas.Format(cfg.Format), ids), nil
}

// await tries until it works and returns true, or ctx ends and it returns false. It returns an error when Kafka
// answers and will not have us, which waiting does not mend.
func (n *node) await(ctx context.Context, what string, begin *starting, try func(context.Context) error) (bool, error) {
	last := ""
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		trying, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := try(trying)
		cancel()
		if err == nil {
			return true, nil
		}
		if kafkaauth.Fix(err) != "" {
			return false, kafkaauth.WithFix(err)
		}
		begin.say("waits for " + what + ": " + err.Error())
		if err.Error() != last && ctx.Err() == nil {
			last = err.Error()
			n.log.Info("waiting", "for", what, "error", err)
		}
		select {
		case <-ctx.Done():
			return false, nil
		case <-tick.C:
		}
	}
}

// readTokenKey returns the key of consistency tokens, as any service may read it.
func readTokenKey(ctx context.Context, databaseURL, service string) ([]byte, error) {
	pool, err := database.Open(ctx, databaseURL, service, 1)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	return database.TokenKey(ctx, pool)
}

// migrateAll brings all that lies in the database up to date.
func migrateAll(ctx context.Context, databaseURL string) error {
	if err := database.Migrate(ctx, databaseURL, modules(services())...); err != nil {
		return err
	}
	return database.MigrateSecrets(ctx, databaseURL, serviceNames()...)
}

// errNotMigrated means that a service's schema is not there or not complete.
var errNotMigrated = errors.New("not migrated: run converge migrate --database URL")

// stateNoRole is invalid_parameter_value: what a pool says at its start when the service's role is not there.
const stateNoRole = "22023"

// migrated returns nil when every service's tables are there.
func migrated(ctx context.Context, databaseURL string, names []string) error {
	for _, name := range names {
		pool, err := database.Open(ctx, databaseURL, name, 1)
		if err != nil {
			return err
		}
		var there bool
		err = pool.QueryRow(ctx, "SELECT to_regclass($1) IS NOT NULL AND to_regclass($2) IS NOT NULL",
			name+".outbox", name+".schema_version_"+name).Scan(&there)
		pool.Close()
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == stateNoRole {
			return fmt.Errorf("schema %s is %w", name, errNotMigrated)
		}
		if err != nil {
			return fmt.Errorf("schema %s: %w", name, err)
		}
		if !there {
			return fmt.Errorf("schema %s is %w", name, errNotMigrated)
		}
	}
	return nil
}

// outboxTables returns the outbox of every service.
func outboxTables() []string {
	var tables []string
	for _, name := range serviceNames() {
		tables = append(tables, name+".outbox")
	}
	return tables
}

// base returns the URL of an address, for people to click.
func base(address string) string {
	return "http://" + strings.Replace(address, "0.0.0.0", "127.0.0.1", 1)
}
