package relay_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/producers/outbox"
	"converge/relay"
)

const (
	service     = "orders"
	table       = service + ".outbox"
	outboxTable = table
	// patience bounds every wait for something that should happen soon.
	patience = 2 * time.Minute
)

var slotSerial atomic.Int64

// uniqueSlot returns a slot name of the test's own: slot names belong to the whole server.
func uniqueSlot() string { return fmt.Sprintf("relay_%d_%d", os.Getpid(), slotSerial.Add(1)) }

// outboxDatabase returns a database with one service's outbox.
func outboxDatabase(t testing.TB) string {
	t.Helper()
	return pgtest.Database(t, "relay", func(ctx context.Context, url string) error {
		return database.Migrate(ctx, url, database.Module{Service: service,
			Sets: []database.Set{{Name: "outbox", FS: outbox.Migrations}}})
	})
}

func connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.RuntimeParams["search_path"] = service
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func execute(t testing.TB, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// ask returns a query's only value.
func ask[T any](t testing.TB, conn *pgx.Conn, sql string, args ...any) (value T) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&value); err != nil {
		t.Fatalf("%s: %v", sql, err)
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

// running is a relay in this process.
type running struct {
	*relay.Relay
	stop func() error // ends Run's context and returns what Run returned
	done chan struct{}
	err  error
}

// start runs a relay until the test ends.
func start(t testing.TB, cfg relay.Config) *running {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = logger(t)
	}
	subject, err := relay.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Relay: subject, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = subject.Run(ctx)
	}()
	r.stop = func() error {
		cancel()
		select {
		case <-r.done:
			return r.err
		case <-time.After(patience):
			return errors.New("Run does not return")
		}
	}
	t.Cleanup(func() {
		if err := r.stop(); err != nil && !t.Failed() {
			t.Logf("the relay ended with: %v", err)
		}
	})
	return r
}

// startReady runs a relay and waits until it streams.
func startReady(t testing.TB, cfg relay.Config) *running {
	t.Helper()
	r := start(t, cfg)
	eventually(t, "the relay streams", func() error {
		select {
		case <-r.done:
			t.Fatalf("the relay ended: %v", r.err)
		default:
		}
		return r.Ready()
	})
	return r
}

// logger writes to the test's log, and to nowhere once the test has ended.
func logger(t testing.TB) *slog.Logger {
	w := &testWriter{t: t}
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.t = nil
	})
	return slog.New(slog.NewTextHandler(w, nil))
}

type testWriter struct {
	mu sync.Mutex // guards t
	t  testing.TB
}

func (w *testWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t != nil {
		w.t.Logf("%s", bytes.TrimSpace(p))
	}
	return len(p), nil
}

// broker is an embedded Kafka whose network the test holds in its hand.
type broker struct {
	*kfake.Cluster
	gate *gate
}

func (b *broker) addrs() []string { return b.ListenAddrs() }

func startBroker(t testing.TB, opts ...kfake.Opt) *broker {
	t.Helper()
	g := newGate()
	opts = append([]kfake.Opt{kfake.NumBrokers(1), kfake.DefaultNumPartitions(3), kfake.ListenFn(g.listen)}, opts...)
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.open()
		cluster.Close()
	})
	return &broker{cluster, g}
}

// gate is a listener's network: open, paused (bytes wait) or shut (connections are dropped and refused).
type gate struct {
	mu    sync.Mutex // guards all below
	cond  *sync.Cond
	state gateState
	conns map[*gatedConn]struct{}
}

type gateState int

const (
	gateOpen gateState = iota
	gatePaused
	gateShut
)

func newGate() *gate {
	g := &gate{conns: make(map[*gatedConn]struct{})}
	g.cond = sync.NewCond(&g.mu)
	return g
}

func (g *gate) set(state gateState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.state = state
	if state == gateShut {
		for c := range g.conns {
			c.Conn.Close()
		}
	}
	g.cond.Broadcast()
}

func (g *gate) open() { g.set(gateOpen) }

// pause lets nothing more reach the broker; what was sent waits.
func (g *gate) pause() { g.set(gatePaused) }

// shut drops every connection together with what the broker has not read yet.
func (g *gate) shut() { g.set(gateShut) }

func (g *gate) listen(network, address string) (net.Listener, error) {
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	return &gatedListener{l, g}, nil
}

type gatedListener struct {
	net.Listener
	gate *gate
}

func (l *gatedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		l.gate.mu.Lock()
		if l.gate.state == gateShut {
			l.gate.mu.Unlock()
			conn.Close()
			continue
		}
		c := &gatedConn{conn, l.gate}
		l.gate.conns[c] = struct{}{}
		l.gate.mu.Unlock()
		return c, nil
	}
}

type gatedConn struct {
	net.Conn
	gate *gate
}

func (c *gatedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	for c.gate.state == gatePaused {
		c.gate.cond.Wait()
	}
	if c.gate.state == gateShut {
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *gatedConn) Close() error {
	c.gate.mu.Lock()
	delete(c.gate.conns, c)
	c.gate.mu.Unlock()
	return c.Conn.Close()
}

// topicReader consumes topics from their beginning.
type topicReader struct {
	client  *kgo.Client
	fetched []*kgo.Record
}

func (b *broker) reader(t testing.TB, topics ...string) *topicReader {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(b.addrs()...), kgo.ConsumeTopics(topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond),
		kgo.MetadataMinAge(50*time.Millisecond), kgo.MetadataMaxAge(250*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return &topicReader{client: client}
}

// next returns the next record.
func (r *topicReader) next(t testing.TB) *kgo.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for len(r.fetched) == 0 {
		if ctx.Err() != nil {
			t.Fatalf("no record came within %s", patience)
		}
		r.fetched = r.client.PollFetches(ctx).Records()
	}
	record := r.fetched[0]
	r.fetched = r.fetched[1:]
	return record
}

// value returns the next record's value.
func (r *topicReader) value(t testing.TB) string {
	t.Helper()
	return string(r.next(t).Value)
}

// config returns the configuration for a database and a broker; the slot is the test's own.
func config(url string, b *broker) relay.Config {
	return relay.Config{DatabaseURL: url, Brokers: b.addrs(), Slot: uniqueSlot(), Tables: []string{outboxTable},
		OnMissingSlot: relay.CreateMissingSlot}
}

// source is where rows come from, for tests that hold for all.
type source relay.Source

func (s source) config(url string, b *broker) relay.Config {
	cfg := config(url, b)
	cfg.Source = relay.Source(s)
	return cfg
}

// forEachSource runs a test of what all sources promise.
func forEachSource(t *testing.T, test func(t *testing.T, source source)) {
	t.Parallel()
	for _, s := range []source{source(relay.SourceWAL), source(relay.SourcePolling)} {
		t.Run(string(s), func(t *testing.T) {
			t.Parallel()
			test(t, s)
		})
	}
}

// doneWith is whether everything up to the end of the WAL needs no relay any more.
func doneWith(t testing.TB, conn *pgx.Conn, cfg relay.Config, end string) func() error {
	return func() error {
		switch {
		case cfg.Source != relay.SourcePolling && !ask[bool](t, conn, confirmedPastSQL, cfg.Slot, end):
			return errors.New("the slot is behind")
		case cfg.Source == relay.SourcePolling && ask[bool](t, conn, unmarkedSQL):
			return errors.New("there are rows that are not marked")
		}
		return nil
	}
}

const unmarkedSQL = "SELECT EXISTS (SELECT FROM outbox WHERE published_at IS NULL)"

// insertRow inserts one event of a key.
func insertRow(t testing.TB, conn *pgx.Conn, topic, key, payload string) {
	t.Helper()
	execute(t, conn, insertRowSQL, topic, key, []byte(payload))
}

const insertRowSQL = `
INSERT INTO outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload)
VALUES (gen_random_uuid(), $1, 'thing', $2, 1, 'Happened', 'application/json', $3)`
