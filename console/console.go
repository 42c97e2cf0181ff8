package console

import (
	"context"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"converge/schemas"
)

// Config says what a console looks at. The zero value looks at nothing and serves pages that say so.
type Config struct {
	// AllowRemote answers requests for any host name; without it only those for a loopback name or address are, so
	// that a page that rebinds its name to this machine sees nothing.
	AllowRemote bool
	// Brokers are Kafka's bootstrap addresses; none: Kafka is not looked at.
	Brokers []string
	// Client is added to the options of the Kafka client: TLS, SASL, a dialer.
	Client []kgo.Opt
	// DatabaseURL is PostgreSQL by a user that may read every service's schema and
	// pg_replication_slots; "": PostgreSQL is not looked at.
	DatabaseURL string
	// Services are the schemas that are counted in; nil: every service of the topology.
	Services []string
	// Rungs are the delays of the retry ladder, for the drawing; nil: 1 s, 10 s, 1 m, 10 m.
	Rungs []time.Duration
	// Registerer takes the lag metrics; nil: they are not exported.
	Registerer prometheus.Registerer
	// Gatherer is read for time to consistency and saga states, which only the processes that run the
	// services know; nil: they are unknown.
	Gatherer prometheus.Gatherer
	// Codec decodes values that are not JSON, for people to read; nil: they are shown as bytes.
	Codec *schemas.Codec
	// Logger; nil: slog.Default.
	Logger *slog.Logger
}

// sampleEvery is the time between looks.
const sampleEvery = time.Second

// Console measures and serves. Its methods are safe for concurrent use.
type Console struct {
	cfg       Config
	log       *slog.Logger
	pages     *template.Template
	pool      *pgxpool.Config // nil when PostgreSQL is not looked at
	history   *history
	hub       *hub
	fetch     atomic.Pointer[fetcher] // nil unless Run runs and Kafka is looked at
	startedAt time.Time

	mu       sync.Mutex
	kafka    measured[kafkaSample]
	database measured[databaseSample]
	kept     struct{ kafka, database time.Time } // samples that history has
}

// measured is a source's last good sample, and why the last attempt gave none.
type measured[S any] struct {
	sample *S
	err    error
}

// New makes a console. It connects to nothing: see [Console.Run]. It returns an error for settings that
// cannot be right, and for metrics that are registered already.
func New(cfg Config) (*Console, error) {
	if cfg.Services == nil {
		cfg.Services = servicesOf()
	}
	if cfg.Rungs == nil {
		cfg.Rungs = []time.Duration{time.Second, 10 * time.Second, time.Minute, 10 * time.Minute}
	}
	c := &Console{cfg: cfg, log: cfg.Logger, history: newHistory(), hub: newHub(), startedAt: time.Now()}
	if c.log == nil {
		c.log = slog.Default()
	}
	pages, err := parsePages()
	if err != nil {
		return nil, fmt.Errorf("reading the console's pages: %w", err)
	}
	c.pages = pages
	if len(cfg.Brokers) > 0 {
		if err := kgo.ValidateOpts(clientOptions(cfg.Brokers)...); err != nil {
			return nil, fmt.Errorf("reading the broker addresses: %w", err)
		}
	}
	if cfg.DatabaseURL != "" {
		if c.pool, err = readerConfig(cfg.DatabaseURL); err != nil {
			return nil, err
		}
	}
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(newMetrics(c)); err != nil {
			return nil, fmt.Errorf("registering the lag metrics: %w", err)
		}
	}
	c.hub.publish(c.compose(c.startedAt, nil))
	return c, nil
}

func servicesOf() []string {
	seen := map[string]bool{}
	var names []string
	for _, r := range schemas.Routes() {
		for _, name := range append([]string{r.Emitter}, r.Readers...) {
			if !seen[name] {
				seen[name] = true
				names = append(names, name)
			}
		}
	}
	return names
}

func clientOptions(brokers []string) []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(brokers...), kgo.ClientID("converge-console"), kgo.MaxVersions(clientVersions()),
		kgo.RetryTimeout(3 * time.Second), kgo.DialTimeout(2 * time.Second), kgo.MetadataMinAge(500 * time.Millisecond),
	}
}

// Run measures every second until ctx ends, then ends the streams of all pages and returns nil. A source
// that is away is shown as such and asked again: it is never an error of Run's. Call it once.
func (c *Console) Run(ctx context.Context) error {
	defer c.hub.close()
	g, ctx := errgroup.WithContext(ctx)
	if len(c.cfg.Brokers) > 0 {
		client, err := kgo.NewClient(append(clientOptions(c.cfg.Brokers), c.cfg.Client...)...)
		if err != nil {
			return fmt.Errorf("making the console's Kafka client: %w", err)
		}
		defer client.Close()
		source := newKafkaSource(client)
		c.fetch.Store(source.fetch)
		defer c.fetch.Store(nil)
		g.Go(func() error {
			watch(ctx, c, "Kafka", &c.kafka, source.sample)
			return nil
		})
	}
	if c.pool != nil {
		pool, err := pgxpool.NewWithConfig(ctx, c.pool)
		if err != nil {
			return fmt.Errorf("making the console's database pool: %w", err)
		}
		defer pool.Close()
		source := newDatabaseSource(pool, c.cfg.Services)
		g.Go(func() error {
			watch(ctx, c, "PostgreSQL", &c.database, source.sample)
			return nil
		})
	}
	g.Go(func() error {
		c.publish(ctx)
		return nil
	})
	return g.Wait()
}

// watch samples one source until ctx ends. A look that took long is followed by a longer rest, so that a
// source in trouble is not asked all the time; the rest is bounded, so that numbers do not grow stale by it.
func watch[S any](ctx context.Context, c *Console, name string, into *measured[S], sample func(context.Context, func() time.Time) (*S, error)) {
	away := false
	for rest := time.Duration(0); pause(ctx, rest); {
		began := time.Now()
		look, cancel := context.WithTimeout(ctx, 5*time.Second)
		s, err := sample(look, time.Now)
		cancel()
		if ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		into.err = err
		if err == nil {
			into.sample = s
		}
		c.mu.Unlock()
		if (err != nil) != away {
			away = err != nil
			c.logChange(name, err)
		}
		took := time.Since(began)
		rest = max(sampleEvery-took, min(3*took, 2*sampleEvery))
	}
}

// logChange speaks once when a source goes and once when it is back.
func (c *Console) logChange(source string, err error) {
	if err != nil {
		c.log.Warn("console cannot measure", "source", source, "error", err)
		return
	}
	c.log.Info("console measures again", "source", source)
}

// pause waits for d and reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}

// publish composes a snapshot every second and hands it to the pages.
func (c *Console) publish(ctx context.Context) {
	var metrics *metricsSource
	if c.cfg.Gatherer != nil {
		metrics = &metricsSource{gatherer: c.cfg.Gatherer}
	}
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	for {
		c.hub.publish(c.compose(time.Now(), metrics))
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// Ready returns nil when the console's last look at each configured source succeeded and is not old;
// otherwise an error that names what is away. It never blocks.
func (c *Console) Ready() error {
	s := c.Snapshot()
	var errs []error
	for name, source := range map[string]Source{"Kafka": s.Sources.Kafka, "PostgreSQL": s.Sources.Postgres} {
		if !source.Configured {
			continue
		}
		switch {
		case source.AgeSeconds == nil && source.Error == "":
			errs = append(errs, fmt.Errorf("%s is not measured yet", name))
		case source.Error != "":
			errs = append(errs, fmt.Errorf("%s cannot be measured: %s", name, source.Error))
		case !source.fresh():
			errs = append(errs, fmt.Errorf("%s was last measured %.0f s ago", name, *source.AgeSeconds))
		}
	}
	return errors.Join(errs...)
}

// Snapshot returns what the pages last saw; ages are as of its At. It is shared: do not change it.
func (c *Console) Snapshot() *Snapshot {
	f, _ := c.hub.latest()
	return f.snapshot
}
