package group_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/event"
	"converge/consumers/group"
	"converge/consumers/inbox"
	"converge/consumers/retry"
	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/producers/outbox"
)

const (
	service = "tally" // schema and consumer group
	topic   = "orders"
	// patience bounds every wait for something that should happen soon.
	patience = time.Minute
)

// TestMain lets more tests run side by side than there are processors: they wait more than they compute.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", strconv.Itoa(max(5, runtime.GOMAXPROCS(0)))); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// The service under test writes down what it applied, in the order in which it did. Nothing in the table
// forbids a double, a loss or a swap: they are to show.
var effectsTable = fstest.MapFS{"migrations/00001_effects.sql": {Data: []byte(`-- +goose Up
CREATE TABLE effects (n bigint GENERATED ALWAYS AS IDENTITY, event_id uuid, key text, seq int, applied_by text);
`)}}

// quick is a ladder that a test can climb.
var quick = retry.Policy{Rungs: []time.Duration{10 * time.Millisecond, 30 * time.Millisecond}, MaxAttempts: 4}

// world is a broker, a database, and the way from the outbox to the topics.
type world struct {
	t     testing.TB
	url   string
	pool  *pgxpool.Pool // the test's own
	root  *pgxpool.Pool // sees what other sessions do, and ends them
	kafka *kfake.Cluster
	send  *kgo.Client
	admin *kadm.Client
}

func newWorld(t testing.TB, partitions int32) *world {
	t.Helper()
	url := pgtest.Database(t, "group", func(ctx context.Context, url string) error {
		return database.Migrate(ctx, url, database.Module{Service: service, Sets: []database.Set{
			{Name: "outbox", FS: outbox.Migrations}, {Name: "inbox", FS: inbox.Migrations}, {Name: "retry", FS: retry.Migrations},
			{Name: "effects", FS: effectsTable}}})
	})
	kafka, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.GroupMinSessionTimeout(100*time.Millisecond),
		kfake.SeedTopics(partitions, topic), kfake.SeedTopics(1, retry.Topics(topic, service, quick)...))
	must(t, err)
	t.Cleanup(kafka.Close)
	w := &world{t: t, url: url, kafka: kafka}
	w.send = w.producer()
	w.admin = kadm.NewClient(w.send)
	w.pool = w.openPool(url)
	w.root, err = pgxpool.New(t.Context(), url)
	must(t, err)
	t.Cleanup(w.root.Close)
	return w
}

func (w *world) producer() *kgo.Client {
	w.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(w.kafka.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(0), kgo.ProducerBatchMaxBytes(2<<20))
	must(w.t, err)
	w.t.Cleanup(client.Close)
	return client
}

func (w *world) openPool(url string) *pgxpool.Pool {
	w.t.Helper()
	pool, err := database.Open(w.t.Context(), url, service, 8)
	must(w.t, err)
	w.t.Cleanup(pool.Close)
	return pool
}

// relay carries the outbox's rows to their topics until the test ends: the smallest thing that keeps the
// outbox's promise. Retry topics and dead letters lie on one partition each.
func (w *world) relay() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			if err := w.relayOnce(ctx); err != nil && ctx.Err() == nil {
				w.t.Errorf("carrying the outbox to Kafka: %v", err)
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	w.t.Cleanup(func() { cancel(); wait.Wait() })
}

const takeSQL = `
UPDATE outbox
SET published_at = now()
WHERE published_at IS NULL
RETURNING seq, event_id, topic, aggregate_id, payload, headers`

func (w *world) relayOnce(ctx context.Context) error {
	return pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		type row struct {
			Seq     int64
			ID      uuid.UUID
			Topic   string
			Key     string
			Payload []byte
			Headers map[string]string
		}
		rows, err := tx.Query(ctx, takeSQL)
		if err != nil {
			return err
		}
		taken, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
		if err != nil {
			return err
		}
		records := make([]*kgo.Record, len(taken))
		for i, r := range taken {
			records[i] = &kgo.Record{Topic: r.Topic, Key: []byte(r.Key), Value: r.Payload}
			for k, v := range r.Headers {
				records[i].Headers = append(records[i].Headers, kgo.RecordHeader{Key: k, Value: []byte(v)})
			}
		}
		return w.send.ProduceSync(ctx, records...).FirstErr()
	})
}

// fact is an event as the tests speak of it.
type fact struct {
	id        uuid.UUID
	key       string
	seq       int
	kind      string // event_type
	partition int32
}

const (
	eachKind  = "Counted"
	batchKind = "Summed"
)

func newFact(key string, seq int, kind string, partition int32) fact {
	return fact{uuid.Must(uuid.NewV7()), key, seq, kind, partition}
}

// facts returns n events, round robin over the keys and both kinds; a key stays on one partition.
func facts(n, keys int, partitions int32) []fact {
	list := make([]fact, n)
	for i := range list {
		k := i % keys
		kind := eachKind
		if i/keys%2 == 1 {
			kind = batchKind
		}
		list[i] = newFact(fmt.Sprintf("key-%d", k), i/keys, kind, int32(k)%partitions)
	}
	return list
}

func (f fact) record() *kgo.Record {
	return &kgo.Record{Topic: topic, Partition: f.partition, Key: []byte(f.key), Value: []byte(strconv.Itoa(f.seq)),
		Headers: []kgo.RecordHeader{{Key: "event_id", Value: []byte(f.id.String())}, {Key: "event_type", Value: []byte(f.kind)}}}
}

func (w *world) produce(list ...fact) {
	w.t.Helper()
	records := make([]*kgo.Record, len(list))
	for i, f := range list {
		records[i] = f.record()
	}
	w.produceRecords(records...)
}

func (w *world) produceRecords(records ...*kgo.Record) {
	w.t.Helper()
	must(w.t, w.send.ProduceSync(w.t.Context(), records...).FirstErr())
}

// effect is a row of the table.
type effect struct {
	ID        uuid.UUID
	Key       string
	Seq       int
	AppliedBy string
}

func (w *world) effects() []effect {
	w.t.Helper()
	rows, err := w.pool.Query(w.t.Context(), "SELECT event_id, key, seq, applied_by FROM effects ORDER BY n")
	must(w.t, err)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[effect])
	must(w.t, err)
	return list
}

// complaints is the checker: the facts must have one effect each, those that are dead none, and the
// effects of a key must come in its order.
func complaints(effects []effect, list []fact, dead map[uuid.UUID]bool) (found []string) {
	want := map[uuid.UUID]fact{}
	for _, f := range list {
		want[f.id] = f
	}
	seen, last := map[uuid.UUID]int{}, map[string]int{}
	for _, e := range effects {
		f, known := want[e.ID]
		if !known || f.key != e.Key || f.seq != e.Seq {
			found = append(found, fmt.Sprintf("forged: %+v", e))
		}
		if seen[e.ID]++; seen[e.ID] > 1 {
			found = append(found, fmt.Sprintf("applied %d times: %s/%d", seen[e.ID], e.Key, e.Seq))
		}
		if before, ok := last[e.Key]; ok && e.Seq <= before {
			found = append(found, fmt.Sprintf("out of order: %s/%d after %d", e.Key, e.Seq, before))
		}
		last[e.Key] = e.Seq
	}
	for _, f := range list {
		switch {
		case seen[f.id] == 0 && !dead[f.id]:
			found = append(found, fmt.Sprintf("lost: %s/%d", f.key, f.seq))
		case seen[f.id] > 0 && dead[f.id]:
			found = append(found, fmt.Sprintf("applied though dead: %s/%d", f.key, f.seq))
		}
	}
	return found
}

// check ends the test when the checker has complaints.
func (w *world) check(list []fact, dead map[uuid.UUID]bool) {
	w.t.Helper()
	if found := complaints(w.effects(), list, dead); len(found) > 0 {
		w.t.Fatalf("%d complaints:\n%s", len(found), strings.Join(found[:min(len(found), 10)], "\n"))
	}
}

// letters returns the dead by event, with the class of their error.
func (w *world) letters() map[uuid.UUID]string {
	w.t.Helper()
	all, err := retry.List(w.t.Context(), w.pool, retry.Filter{Consumer: service, Limit: 100000})
	must(w.t, err)
	found := map[uuid.UUID]string{}
	for _, l := range all {
		found[l.EventID] = l.ErrorClass
	}
	return found
}

// stored returns the partition's offset in the database; -1 when there is none.
func (w *world) stored(partition int32) int64 {
	w.t.Helper()
	return ask[int64](w, "SELECT coalesce((SELECT next_offset FROM consumer_offsets WHERE consumer = $1 AND topic = $2 AND partition = $3), -1)",
		service, topic, partition)
}

// settled waits until the group has taken on all that the topic holds and nothing waits for another try.
func (w *world) settled() {
	w.t.Helper()
	eventually(w.t, "all is taken on and nothing is held", func() error {
		ends, err := w.admin.ListEndOffsets(w.t.Context(), topic)
		if err != nil {
			return err
		}
		var behind error
		ends.Each(func(o kadm.ListedOffset) {
			if stored := w.stored(o.Partition); o.Offset > 0 && stored != o.Offset {
				behind = fmt.Errorf("partition %d: stored %d of %d", o.Partition, stored, o.Offset)
			}
		})
		// What waits has a held key, by its foreign key.
		if behind == nil && ask[bool](w, "SELECT EXISTS (SELECT FROM held_keys)") {
			behind = errors.New("a key is held")
		}
		return behind
	})
}

// tally is the service: it writes the effect first and then asks verdict, so that whatever is refused has
// an effect to undo.
type tally struct {
	name string
	// verdict says what becomes of an event; nil: all are applied. It may be called by several goroutines.
	verdict func(ctx context.Context, e *event.Event) error
}

const (
	effectSQL  = "INSERT INTO effects (event_id, key, seq, applied_by) VALUES ($1, $2, $3, $4)"
	effectsSQL = `
INSERT INTO effects (event_id, key, seq, applied_by)
SELECT id, key, seq, $4
FROM unnest($1::uuid[], $2::text[], $3::int[]) WITH ORDINALITY AS u (id, key, seq, ordinal)
ORDER BY ordinal`
)

func (s tally) each(ctx context.Context, tx pgx.Tx, e *event.Event) error {
	seq, err := strconv.Atoi(string(e.Value))
	if err != nil {
		return event.Permanent(err)
	}
	if _, err := tx.Exec(ctx, effectSQL, e.ID, string(e.Key), seq, s.name); err != nil {
		return err
	}
	if s.verdict == nil {
		return nil
	}
	return s.verdict(ctx, e)
}

func (s tally) batch(ctx context.Context, tx pgx.Tx, events []*event.Event) error {
	ids, keys, seqs := make([]uuid.UUID, len(events)), make([]string, len(events)), make([]int, len(events))
	for i, e := range events {
		seq, err := strconv.Atoi(string(e.Value))
		if err != nil {
			return event.Permanent(err)
		}
		ids[i], keys[i], seqs[i] = e.ID, string(e.Key), seq
	}
	if _, err := tx.Exec(ctx, effectsSQL, ids, keys, seqs, s.name); err != nil {
		return err
	}
	if s.verdict == nil {
		return nil
	}
	for _, e := range events {
		if err := s.verdict(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

func (s tally) handler() event.Handler {
	return event.Handler{Each: map[string]event.Each{eachKind: s.each}, Batch: map[string]event.Batch{batchKind: s.batch}}
}

// member is a running group.
type member struct {
	*group.Group
	registry *prometheus.Registry
	cancel   context.CancelFunc
	done     chan struct{}
	err      error
}

func (w *world) config(s tally) group.Config {
	return group.Config{Name: service, Brokers: w.kafka.ListenAddrs(), Topics: []string{topic}, Pool: w.pool,
		Handler: s.handler(), Retry: quick, Logger: logger(w.t), Client: []kgo.Opt{kgo.FetchMaxWait(20 * time.Millisecond)}}
}

// start runs a member until the test ends.
func (w *world) start(cfg group.Config) *member {
	w.t.Helper()
	m := &member{registry: prometheus.NewRegistry(), done: make(chan struct{})}
	cfg.Registerer = m.registry
	var err error
	m.Group, err = group.New(cfg)
	must(w.t, err)
	var ctx context.Context
	ctx, m.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(m.done)
		m.err = m.Run(ctx)
	}()
	w.t.Cleanup(func() {
		if err := m.stop(); err != nil && !w.t.Failed() {
			w.t.Logf("the member ended with: %v", err)
		}
	})
	return m
}

// stop drains the member and returns what Run returned.
func (m *member) stop() error {
	m.cancel()
	return m.wait()
}

func (m *member) wait() error {
	select {
	case <-m.done:
		return m.err
	case <-time.After(patience):
		return errors.New("Run does not return")
	}
}

// counted returns the sum of a metric's series that have the label values given as pairs.
func (m *member) counted(t testing.TB, name string, pairs ...string) (sum float64) {
	t.Helper()
	families, err := m.registry.Gather()
	must(t, err)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, series := range f.GetMetric() {
			has := map[string]string{}
			for _, l := range series.GetLabel() {
				has[l.GetName()] = l.GetValue()
			}
			fits := true
			for i := 0; i < len(pairs); i += 2 {
				fits = fits && has[pairs[i]] == pairs[i+1]
			}
			if fits {
				sum += series.GetCounter().GetValue() + series.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// counts waits until the metric has the value: it is counted behind the commit.
func (m *member) counts(t testing.TB, want float64, name string, pairs ...string) {
	t.Helper()
	eventually(t, "the count is right", func() error {
		if got := m.counted(t, name, pairs...); got != want {
			return fmt.Errorf("%s%v is %v, want %v", name, pairs, got, want)
		}
		return nil
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ask returns a query's only value.
func ask[T any](w *world, sql string, args ...any) (value T) {
	w.t.Helper()
	if err := w.pool.QueryRow(w.t.Context(), sql, args...).Scan(&value); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return value
}

// eventually polls until check returns nil.
func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within %s: %v", what, patience, err)
		}
	}
}

// closed waits for a channel of the test's to be closed.
func closed(t testing.TB, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatalf("%s: not within %s", what, patience)
	}
}

// logger writes to the test's log, and to nowhere once the test has ended.
func logger(t testing.TB) *slog.Logger {
	l := &testLog{t: t}
	t.Cleanup(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.t = nil
	})
	return slog.New(slog.NewTextHandler(l, nil))
}

type testLog struct {
	mu sync.Mutex // guards t
	t  testing.TB
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.t != nil {
		l.t.Logf("%s", bytes.TrimSpace(p))
	}
	return len(p), nil
}
