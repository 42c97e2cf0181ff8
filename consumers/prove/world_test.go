package prove

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/inbox"
	"converge/consumers/retry"
	"converge/internal/database"
	"converge/internal/mutants"
	"converge/internal/process"
	"converge/internal/proof"
	"converge/producers/outbox"
	"converge/relay"
)

// The tables of the members' handler. Nothing in them forbids a double, a loss or a swap: they are to show.
var tables = fstest.MapFS{"migrations/00001_tally.sql": {Data: []byte(`-- +goose Up
CREATE TABLE effects (n bigint GENERATED ALWAYS AS IDENTITY, event_id uuid, key text, seq int, attempt int, member text);
CREATE TABLE folds (key text PRIMARY KEY, digest bigint NOT NULL, count int NOT NULL);
CREATE TABLE switches (mended boolean NOT NULL, away boolean NOT NULL);
INSERT INTO switches VALUES (false, false);
CREATE TABLE never (id uuid PRIMARY KEY);
CREATE TABLE late (id uuid REFERENCES never DEFERRABLE INITIALLY DEFERRED);
`)}}

// world is the engines, the relay, and what looks at them.
type world struct {
	t       testing.TB
	server  *proof.Server
	cluster *proof.Cluster
	pool    *pgxpool.Pool // around the leg, as the service
	kafka   *kgo.Client   // around the leg
	admin   *kadm.Client
	binary  string
	plant   string
	logs    string
	quick   bool // members apply all that comes, in few round trips
	born    int  // members so far
}

func newWorld(t testing.TB, binary, plant string) *world {
	t.Helper()
	module := database.Module{Service: Service, Sets: []database.Set{{Name: "outbox", FS: outbox.Migrations}, {Name: "inbox", FS: inbox.Migrations},
		{Name: "retry", FS: retry.Migrations}, {Name: "tally", FS: tables}}}
	w := &world{t: t, binary: binary, plant: plant, logs: t.TempDir(), server: proof.StartServer(t, nil, module),
		cluster: proof.StartCluster(t, proof.ClusterConfig{MinSession: 100 * time.Millisecond})}
	w.cluster.CreateTopics(partitions, append(retry.Topics(Topic, Service, Policy()), Topic, EchoTopic)...)
	w.kafka = w.cluster.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
	w.admin = kadm.NewClient(w.kafka)
	var err error
	if w.pool, err = database.Open(t.Context(), w.server.URL(), Service, 4); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.pool.Close)
	w.relay()
	return w
}

// relay runs the product's relay around the legs until the test ends: its own proof is another one.
func (w *world) relay() {
	w.t.Helper()
	file, err := os.Create(filepath.Join(w.logs, "relay.log"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { file.Close() })
	r, err := relay.New(relay.Config{DatabaseURL: w.server.URL(), Brokers: w.cluster.Addrs(), Tables: []string{Service + ".outbox"},
		Slot: Service, OnMissingSlot: relay.CreateMissingSlot, KafkaOptions: []kgo.Opt{w.cluster.Dialer()},
		Logger: slog.New(slog.NewTextHandler(file, nil))})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() {
		if err := r.Run(ctx); err != nil && ctx.Err() == nil {
			w.t.Errorf("the relay ended: %v", err)
		}
	})
	w.t.Cleanup(func() { cancel(); wait.Wait() })
	if err := await("the relay is ready", r.Ready); err != nil {
		w.t.Fatal(err)
	}
}

// await polls until check returns nil.
func await(what string, check func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(proof.Patience)
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("%s: not within %s: %w", what, proof.Patience, err)
		}
	}
}

// buildMember builds the consumer, with faults if any are given.
func buildMember(t *testing.T, faults ...mutants.Fault) string {
	t.Helper()
	return mutants.Build(t, faults, "build", "converge/consumers/prove/member")
}

// member is a consumer that runs as a process.
type member struct {
	command *exec.Cmd
	log     string
	done    <-chan struct{}
}

// start runs one more.
func (w *world) start() *member {
	w.t.Helper()
	w.born++
	name := fmt.Sprintf("member-%d", w.born)
	cfg, err := json.Marshal(MemberConfig{Name: name, DatabaseURL: w.server.SubjectURL(), Brokers: w.cluster.Addrs(), Quick: w.quick})
	if err != nil {
		w.t.Fatal(err)
	}
	m := &member{log: filepath.Join(w.logs, name+".log"), command: exec.Command(w.binary)}
	file, err := os.Create(m.log)
	if err != nil {
		w.t.Fatal(err)
	}
	defer file.Close() // the member has its own
	m.command.Env = append(os.Environ(), MemberVariable+"="+string(cfg), "PLANTED="+w.plant)
	m.command.Stdout, m.command.Stderr = file, file
	if m.done, err = process.StartChild(m.command); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(m.kill)
	if err := await("a member begins", func() error {
		if text, err := os.ReadFile(m.log); err != nil || bytes.Contains(text, []byte(Begun)) {
			return err
		}
		return errors.New("it says nothing")
	}); err != nil {
		w.t.Fatal(err)
	}
	return m
}

// kill ends the process the way a power cut does, and waits until it is gone.
func (m *member) kill() {
	_ = m.command.Process.Kill() // it may have ended already
	<-m.done
}

// ended reports whether the process is gone.
func (m *member) ended() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

// drain asks the member to end, and waits until it has.
func (m *member) drain() error {
	if err := m.command.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-m.done:
	case <-time.After(proof.Patience):
		return fmt.Errorf("a member does not drain:\n%s", m.tail())
	}
	if !m.command.ProcessState.Success() {
		return fmt.Errorf("draining: %s\n%s", m.command.ProcessState, m.tail())
	}
	return nil
}

// tail returns the end of its log.
func (m *member) tail() string {
	text, err := os.ReadFile(m.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4000):])
}

// sample looks at the offsets of every partition.
func (w *world) sample(ctx context.Context) ([]Sample, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	committed, err := w.admin.FetchOffsets(ctx, Service)
	if err != nil {
		return nil, err
	}
	rows, err := w.pool.Query(ctx, "SELECT partition, next_offset FROM consumer_offsets WHERE consumer = $1 AND topic = $2", Service, Topic)
	if err != nil {
		return nil, err
	}
	var samples []Sample
	var s Sample
	_, err = pgx.ForEachRow(rows, []any{&s.Partition, &s.Database}, func() error {
		s.Kafka = -1
		if o, ok := committed.Lookup(Topic, s.Partition); ok {
			s.Kafka = o.At
		}
		samples = append(samples, s)
		return nil
	})
	return samples, err
}

const heldSQL = "SELECT (SELECT count(*) FROM held_keys) + (SELECT count(*) FROM held_events)"

// settled waits until the group has taken on all that the topic holds and nothing waits for another try. It is
// patient for as long as things move.
func (w *world) settled(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	last, since := "", time.Now()
	for {
		left, err := w.unsettled(ctx)
		if err != nil {
			left = err.Error()
		}
		switch {
		case left == "":
			return nil
		case left != last:
			last, since = left, time.Now()
		case time.Since(since) > proof.Patience:
			return fmt.Errorf("the members do not catch up: nothing has moved for %v: %s", proof.Patience, left)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// unsettled says what is left to do; "" is nothing.
func (w *world) unsettled(ctx context.Context) (string, error) {
	ends, err := w.admin.ListEndOffsets(ctx, Topic)
	if err != nil {
		return "", err
	}
	samples, err := w.sample(ctx)
	if err != nil {
		return "", err
	}
	stored := map[int32]int64{}
	for _, s := range samples {
		stored[s.Partition] = s.Database
	}
	var behind int64
	ends.Each(func(o kadm.ListedOffset) { behind += o.Offset - stored[o.Partition] })
	var held int
	if err := w.pool.QueryRow(ctx, heldSQL).Scan(&held); err != nil || behind == 0 && held == 0 {
		return "", err
	}
	return fmt.Sprintf("%d records are not taken on, %d keys and events are held", behind, held), nil
}

// collect reads what the run left behind.
func (w *world) collect(ctx context.Context, h *History) error {
	if err := w.tables(ctx, h); err != nil {
		return err
	}
	h.DeadRecords = map[uuid.UUID]int{}
	dead := retry.Topics(Topic, Service, Policy())
	return w.topics(ctx, []string{EchoTopic, dead[len(dead)-1]}, func(r *kgo.Record) error {
		header := func(key string) (uuid.UUID, error) {
			i := slices.IndexFunc(r.Headers, func(h kgo.RecordHeader) bool { return h.Key == key })
			if i < 0 {
				return uuid.UUID{}, fmt.Errorf("a record of %s has no header %s", r.Topic, key)
			}
			return uuid.ParseBytes(r.Headers[i].Value)
		}
		id, err := header("event_id")
		if err != nil {
			return err
		}
		if r.Topic != EchoTopic {
			h.DeadRecords[id]++
			return nil
		}
		cause, err := header("causation_id")
		h.Echoes = append(h.Echoes, Echo{id, cause})
		return err
	})
}

func (w *world) tables(ctx context.Context, h *History) error {
	rows, err := w.pool.Query(ctx, "SELECT event_id, key, seq, attempt, member FROM effects ORDER BY n")
	if err != nil {
		return err
	}
	if h.Effects, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Effect]); err != nil {
		return err
	}
	if rows, err = w.pool.Query(ctx, "SELECT event_id, state, attempts, deaths FROM dead_letters"); err != nil {
		return err
	}
	if h.Letters, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Letter]); err != nil {
		return err
	}
	if rows, err = w.pool.Query(ctx, "SELECT key, digest, count FROM folds"); err != nil {
		return err
	}
	h.Folds = map[string]Fold{}
	var key string
	var f Fold
	if _, err := pgx.ForEachRow(rows, []any{&key, &f.Digest, &f.Count}, func() error { h.Folds[key] = f; return nil }); err != nil {
		return err
	}
	return w.pool.QueryRow(ctx, heldSQL).Scan(&h.Held)
}

// topics reads topics from their starts to where they end now. The relay has sent all: its outbox was read up to a
// row of the run's own.
func (w *world) topics(ctx context.Context, names []string, take func(*kgo.Record) error) error {
	if err := w.flushed(ctx); err != nil {
		return err
	}
	ends, err := w.admin.ListEndOffsets(ctx, names...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return err
	}
	type place struct {
		topic     string
		partition int32
	}
	left := map[place]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[place{o.Topic, o.Partition}] = o.Offset
		}
	})
	ctx, cancel := context.WithTimeout(ctx, proof.Patience)
	defer cancel()
	reader := w.cluster.Client(kgo.ConsumeTopics(names...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(50*time.Millisecond))
	for len(left) > 0 {
		fetches := reader.PollFetches(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("reading %v: %w", names, ctx.Err())
		}
		var failed error
		fetches.EachRecord(func(r *kgo.Record) {
			if failed == nil && r.Topic != "" {
				failed = take(r)
			}
			p := place{r.Topic, r.Partition}
			if end, ok := left[p]; ok && r.Offset+1 >= end {
				delete(left, p)
			}
		})
		if failed != nil {
			return failed
		}
	}
	return nil
}

// flushed returns when the relay has confirmed all of the outbox.
func (w *world) flushed(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, w.server.URL())
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	var end string
	if err := conn.QueryRow(ctx, "SELECT pg_current_wal_lsn()::text").Scan(&end); err != nil {
		return err
	}
	return await("the relay has sent all", func() error {
		var done bool
		err := conn.QueryRow(ctx, "SELECT confirmed_flush_lsn >= $2::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $1", Service, end).Scan(&done)
		if err == nil && !done {
			err = errors.New("it has not")
		}
		return err
	})
}
