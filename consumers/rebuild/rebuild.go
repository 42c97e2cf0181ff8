// Package rebuild builds a read model anew from its topics, beside the one that is served, and puts it in that
// one's place.
//
// The guarantee: the model in use goes on being read and written until one transaction replaces its tables, and
// what replaces them has taken in every event that the model in use has. Rows that only the model in use has,
// because their events are no longer in the topics, are carried over. A rebuild that ends early leaves the model
// in use as it was.
//
// How it fails: a model that relies on the inbox, rather than on versions, would take in twice what its shadow
// was ahead by; this is for models whose events may come again. A change of the handler that is not in every
// running process goes on writing as before.
package rebuild

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/event"
	"converge/consumers/group"
	"converge/internal/database"
)

// Config says what to rebuild. All but Kafka, DryRun, Progress and Logger must be given.
type Config struct {
	DatabaseURL string // its user may create schemas and roles
	Brokers     []string
	Kafka       []kgo.Opt

	Service string         // its schema, and its consumer group
	Sets    []database.Set // that make its schema
	Topics  []string
	Handler func(pool *pgxpool.Pool) event.Handler

	Table   string   // of the model
	Key     string   // its column that tells rows apart
	Version string   // its column that grows with each change of a row
	Others  []string // tables that go with it, and are not compared

	// DryRun builds and compares, and replaces nothing.
	DryRun bool
	// Progress is told how many of how many records are taken in, about twice a second.
	Progress func(done, total int64)
	Logger   *slog.Logger
}

// Report is what a rebuild found, in rows of the model.
type Report struct {
	Events    int64    `json:"events"`    // records taken in
	Rows      int64    `json:"rows"`      // of the new model
	Same      int64    `json:"same"`      // as in the model in use
	Newer     int64    `json:"newer"`     // the new one was ahead
	Different int64    `json:"different"` // other content of the same version, or an older version
	Added     int64    `json:"added"`     // only in the new one
	Kept      int64    `json:"kept"`      // only in the one in use: their events are no longer in the topics
	Examples  []string `json:"examples"`  // keys of some that are different
	Dead      int64    `json:"dead"`      // events that the handler refuses for good
	Replaced  bool     `json:"replaced"`
}

var (
	// ErrRunning means that another rebuild of the service is under way.
	ErrRunning = errors.New("another rebuild of this model is under way")
	// ErrWaiting means that the handler refuses an event for now, so that its key never comes to an end.
	ErrWaiting = errors.New("the handler refuses events that it should take in again later")
)

// rebuild is one under way.
type rebuild struct {
	Config
	shadow string // schema, and part of the role and the group
	admin  *pgx.Conn
	pool   *pgxpool.Pool // of the shadow
	client *kgo.Client
}

const (
	// lagTime is how often it looks how far the shadow is.
	lagTime = 500 * time.Millisecond
	// nearly is how many records the shadow may be behind when the consumer of the model in use is stopped for it.
	nearly = 500
)

// Run rebuilds the model. It blocks for as long as reading the topics takes, and cleans up behind itself; what a
// killed one left is removed by the next.
func Run(ctx context.Context, cfg Config) (report Report, err error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Progress == nil {
		cfg.Progress = func(_, _ int64) {}
	}
	r := &rebuild{Config: cfg, shadow: cfg.Service + "_shadow"}
	if r.admin, err = pgx.Connect(ctx, cfg.DatabaseURL); err != nil {
		return report, fmt.Errorf("connecting to rebuild: %w", err)
	}
	defer func() {
		// The server notices the end of a connection some time later, and the next rebuild may come sooner.
		_, _ = r.admin.Exec(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock_all()")
		_ = r.admin.Close(context.WithoutCancel(ctx))
	}()
	var alone bool
	if err := r.admin.QueryRow(ctx, "SELECT pg_try_advisory_lock(hashtext('converge rebuild'), hashtext($1))", cfg.Service).Scan(&alone); err != nil {
		return report, fmt.Errorf("looking for another rebuild: %w", err)
	}
	if !alone {
		return report, fmt.Errorf("%s: %w", cfg.Service, ErrRunning)
	}
	if err := r.clear(ctx); err != nil {
		return report, err
	}
	if err := database.Migrate(ctx, cfg.DatabaseURL, database.Module{Service: r.shadow, Sets: cfg.Sets}); err != nil {
		return report, err
	}
	defer func() {
		if left := r.clear(context.WithoutCancel(ctx)); err == nil {
			err = left
		}
	}()
	if r.pool, err = database.Open(ctx, cfg.DatabaseURL, r.shadow, 8); err != nil {
		return report, err
	}
	defer r.pool.Close()
	if r.client, err = kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(cfg.Brokers...)}, cfg.Kafka...)...); err != nil {
		return report, fmt.Errorf("configuring the Kafka client: %w", err)
	}
	defer r.client.Close()
	return r.run(ctx)
}

func (r *rebuild) run(ctx context.Context) (report Report, err error) {
	g, err := group.New(group.Config{Name: r.shadow, Brokers: r.Brokers, Topics: r.Topics, Pool: r.pool, Handler: r.Handler(r.pool),
		MaxEvents: 5000, MaxBytes: 16 << 20, Guard: group.Guard{Keys: -1}, Logger: r.Logger, Client: r.Kafka})
	if err != nil {
		return report, err
	}
	consuming, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- g.Run(consuming) }()
	ended := false
	end := func() error {
		stop()
		if ended {
			return nil
		}
		ended = true
		return <-done
	}
	defer func() {
		if stopped := end(); err == nil {
			err = stopped
		}
	}()
	tick := time.NewTicker(lagTime)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			ended = true
			if err == nil {
				err = ctx.Err()
			}
			return report, err
		case <-tick.C:
		}
		events, behind, err := r.progress(ctx)
		if err != nil {
			return report, err
		}
		if report.Events = events; behind <= nearly {
			break
		}
	}
	return report, r.replace(ctx, &report, end)
}

const waitingSQL = `
SELECT (SELECT count(*) FROM held_keys), coalesce((SELECT headers ->> 'error' FROM outbox WHERE topic LIKE '%.retry.%' ORDER BY seq DESC LIMIT 1), '')`

// progress returns how many records the shadow has passed, and how many it has not.
func (r *rebuild) progress(ctx context.Context) (passed, behind int64, err error) {
	positions, err := group.Positions(ctx, r.pool, r.client, r.shadow, r.Topics...)
	if err != nil {
		return 0, 0, err
	}
	for _, p := range positions {
		passed += max(p.Stored, p.Start) - p.Start
		behind += p.Lag
	}
	var waiting int
	var trouble string
	if err := r.pool.QueryRow(ctx, waitingSQL).Scan(&waiting, &trouble); err != nil {
		return 0, 0, fmt.Errorf("looking for events that wait: %w", err)
	}
	if waiting > 0 {
		return 0, 0, fmt.Errorf("%w: %d keys wait: %s", ErrWaiting, waiting, trouble)
	}
	r.Progress(passed, passed+behind)
	return passed, behind, nil
}

// clear removes the shadow, a killed one's too.
func (r *rebuild) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	schema, role := pgx.Identifier{r.shadow}.Sanitize(), pgx.Identifier{database.Role(r.shadow)}.Sanitize()
	if _, err := r.admin.Exec(ctx, "DROP SCHEMA IF EXISTS "+schema+" CASCADE"); err != nil {
		return fmt.Errorf("removing the shadow: %w", err)
	}
	if _, err := r.admin.Exec(ctx, "DROP ROLE IF EXISTS "+role); err != nil {
		return fmt.Errorf("removing the shadow's role: %w", err)
	}
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(r.Brokers...)}, r.Kafka...)...)
	if err != nil {
		return fmt.Errorf("configuring the Kafka client: %w", err)
	}
	defer client.Close()
	if _, err := kadm.NewClient(client).DeleteGroup(ctx, r.shadow); err != nil {
		r.Logger.Debug("removing the shadow's consumer group", "error", err) // there may be none; its offsets decide nothing
	}
	return nil
}

// qualified returns a table of a schema, quoted.
func qualified(schema, table string) string { return pgx.Identifier{schema, table}.Sanitize() }

// tables are all that are replaced.
func (r *rebuild) tables() []string { return append([]string{r.Table}, r.Others...) }

// replace compares the models and puts the new one in the place of the one in use, whose consumer stands still
// meanwhile: the transaction holds the rows that fence it.
func (r *rebuild) replace(ctx context.Context, report *Report, stopShadow func() error) error {
	return pgx.BeginFunc(ctx, r.admin, func(tx pgx.Tx) error {
		if err := r.catchUp(ctx, tx); err != nil {
			return err
		}
		if err := stopShadow(); err != nil {
			return err
		}
		var err error
		if report.Events, _, err = r.progress(ctx); err != nil {
			return err
		}
		if err := r.compare(ctx, tx, report); err != nil {
			return err
		}
		if r.DryRun {
			return nil
		}
		report.Replaced = true
		return r.swap(ctx, tx)
	})
}

const fencesSQL = `
SELECT topic || '/' || partition, next_offset
FROM %s
WHERE consumer = $1
ORDER BY topic, partition`

// catchUp stops the consumer of the model in use, and returns when the shadow is not behind it.
func (r *rebuild) catchUp(ctx context.Context, tx pgx.Tx) error {
	live, err := fences(ctx, tx, fmt.Sprintf(fencesSQL, qualified(r.Service, "consumer_offsets"))+"\nFOR UPDATE", r.Service)
	if err != nil {
		return err
	}
	tick := time.NewTicker(lagTime / 5)
	defer tick.Stop()
	for {
		own, err := fences(ctx, r.pool, fmt.Sprintf(fencesSQL, qualified(r.shadow, "consumer_offsets")), r.shadow)
		if err != nil {
			return err
		}
		behind := slices.ContainsFunc(slices.Collect(maps.Keys(live)), func(p string) bool { return own[p] < live[p] })
		if !behind {
			return nil
		}
		if _, _, err := r.progress(ctx); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func fences(ctx context.Context, db querier, sql, consumer string) (map[string]int64, error) {
	rows, err := db.Query(ctx, sql, consumer)
	if err != nil {
		return nil, fmt.Errorf("reading stored offsets: %w", err)
	}
	found := map[string]int64{}
	var at string
	var offset int64
	if _, err := pgx.ForEachRow(rows, []any{&at, &offset}, func() error { found[at] = offset; return nil }); err != nil {
		return nil, fmt.Errorf("reading stored offsets: %w", err)
	}
	return found, nil
}

const compareSQL = `
WITH pairs AS (
    SELECT coalesce(n.%[3]s, o.%[3]s)::text AS key, to_jsonb(n) AS new, to_jsonb(o) AS old
    FROM %[1]s n
    FULL JOIN %[2]s o ON n.%[3]s = o.%[3]s)
SELECT count(*) FILTER (WHERE new IS NOT NULL),
       count(*) FILTER (WHERE new = old),
       count(*) FILTER (WHERE (new ->> $1)::bigint > (old ->> $1)::bigint),
       count(*) FILTER (WHERE new <> old AND (new ->> $1)::bigint <= (old ->> $1)::bigint),
       count(*) FILTER (WHERE old IS NULL),
       count(*) FILTER (WHERE new IS NULL),
       coalesce((array_agg(key ORDER BY key) FILTER (WHERE new <> old AND (new ->> $1)::bigint <= (old ->> $1)::bigint))[1:5], '{}')
FROM pairs`

func (r *rebuild) compare(ctx context.Context, tx pgx.Tx, report *Report) error {
	sql := fmt.Sprintf(compareSQL, qualified(r.shadow, r.Table), qualified(r.Service, r.Table), pgx.Identifier{r.Key}.Sanitize())
	err := tx.QueryRow(ctx, sql, r.Version).Scan(&report.Rows, &report.Same, &report.Newer, &report.Different, &report.Added, &report.Kept, &report.Examples)
	if err == nil {
		err = tx.QueryRow(ctx, "SELECT count(*) FROM "+qualified(r.shadow, "dead_letters")).Scan(&report.Dead)
	}
	if err != nil {
		return fmt.Errorf("comparing the models: %w", err)
	}
	return nil
}

// swap replaces the tables. Who reads or writes the model waits for as long as that takes.
func (r *rebuild) swap(ctx context.Context, tx pgx.Tx) error {
	fresh, used, key := qualified(r.shadow, r.Table), qualified(r.Service, r.Table), pgx.Identifier{r.Key}.Sanitize()
	statements := []string{fmt.Sprintf("INSERT INTO %[1]s SELECT o.* FROM %[2]s o WHERE NOT EXISTS (SELECT FROM %[1]s n WHERE n.%[3]s = o.%[3]s)", fresh, used, key)}
	role := pgx.Identifier{database.Role(r.Service)}.Sanitize()
	for _, table := range r.tables() {
		statements = append(statements,
			"DROP TABLE "+qualified(r.Service, table),
			"ALTER TABLE "+qualified(r.shadow, table)+" SET SCHEMA "+pgx.Identifier{r.Service}.Sanitize(),
			"ALTER TABLE "+qualified(r.Service, table)+" OWNER TO "+role)
	}
	if _, err := tx.Exec(ctx, strings.Join(statements, ";\n")); err != nil {
		return fmt.Errorf("replacing the model: %w", err)
	}
	return nil
}
