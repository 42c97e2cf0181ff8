package bench

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/inbox"
	"converge/consumers/retry"
	"converge/internal/database"
	"converge/internal/kafkatest"
	"converge/internal/process"
	"converge/internal/sandbox"
	"converge/internal/usage"
	"converge/producers/outbox"
	"converge/relay"
)

var (
	events  = flag.Int("bench.events", 2000, "events of each throughput pass; a naive loop takes a twentieth")
	rounds  = flag.Int("bench.rounds", 1, "how often each has its turn")
	seconds = flag.Int("bench.seconds", 1, "how long events come at a steady rate")
	rate    = flag.Int("bench.rate", 2000, "events a second at the steady rate")
	out     = flag.String("bench.json", "", "also write the results to this file")
)

const (
	partitions = 4
	source     = "source" // the service whose outbox the steady events come from
	// patience bounds every wait for progress.
	patience = 5 * time.Minute
)

var tables = fstest.MapFS{"migrations/00001_effects.sql": {Data: []byte(`-- +goose Up
CREATE TABLE effects (event_id uuid NOT NULL, key text NOT NULL, value bytea);
`)}}

// pass is one turn of a consumer.
type pass struct {
	Name  string  `json:"name"`
	Rate  float64 `json:"events_per_second,omitempty"`
	CPU   float64 `json:"cpu_seconds"`
	Count int     `json:"events"`
	Peak  int64   `json:"peak_rss_bytes"`
	P50   float64 `json:"p50_ms,omitempty"`
	P99   float64 `json:"p99_ms,omitempty"`
	// Of PostgreSQL, and of a Kafka that is a process of its own, from the consumer's start to its end.
	Machine usage.Reading `json:"machine"`
}

// bench is the engines that all share.
type bench struct {
	t       *testing.T
	server  *sandbox.Postgres
	root    *pgx.Conn
	brokers []string
	kafka   string // which it is
	meter   *usage.Meter
	parties map[string]func() (float64, error)
	admin   *kadm.Client
	passes  []pass
	groups  int
}

// One run, side by side. Without flags it is small, and shows only that each way of working works.
func TestBenchConsumers(t *testing.T) {
	b := start(t)
	b.fill(eachType)
	b.fill(batchType)
	for range *rounds {
		b.naive(naive)
		b.naive(naiveWide)
		b.throughput(each, eachType)
		b.throughput(unheld, batchType)
		again := b.throughput(sets, batchType)
		b.duplicates(again)
	}
	for range *rounds {
		b.steady(sets, batchType)
	}
	t.Logf("\n%s", b.table())
	if *out != "" {
		text, err := json.MarshalIndent(b.passes, "", "  ")
		must(t, err)
		must(t, os.WriteFile(*out, text, 0o644))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func start(t *testing.T) *bench {
	t.Helper()
	var b *bench
	b = &bench{t: t, kafka: "embedded (kfake)", parties: map[string]func() (float64, error){
		"bench":      usage.Self, // with the embedded Kafka in it
		"postgresql": func() (float64, error) { return usage.Family(b.server.PID()) },
	}}
	var err error
	b.server, err = sandbox.StartPostgres(t.Context(), sandbox.PostgresConfig{Dir: t.TempDir(), Settings: map[string]string{
		"track_commit_timestamp": "on", "max_wal_size": "4GB"}})
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := b.server.Stop(ctx); err != nil {
			t.Errorf("stopping PostgreSQL: %v", err)
		}
	})
	sets := []database.Set{{Name: "outbox", FS: outbox.Migrations}}
	must(t, database.Migrate(t.Context(), b.server.URL(), database.Module{Service: source, Sets: sets}))
	must(t, database.Migrate(t.Context(), b.server.URL(), database.Module{Service: service, Sets: append(sets,
		database.Set{Name: "inbox", FS: inbox.Migrations}, database.Set{Name: "retry", FS: retry.Migrations}, database.Set{Name: "effects", FS: tables})}))
	b.root, err = pgx.Connect(t.Context(), b.server.URL())
	must(t, err)
	t.Cleanup(func() { b.root.Close(context.Background()) })
	if kafkatest.Real() {
		broker := kafkatest.Start(t)
		b.brokers, b.kafka = strings.Split(broker.Brokers(), ","), "Apache Kafka"
		if broker.Own() {
			b.parties["kafka"] = func() (float64, error) { return usage.CPU(broker.PID()) }
		}
	} else {
		embedded, err := sandbox.StartKafka(sandbox.KafkaConfig{Dir: t.TempDir(), Addr: "127.0.0.1:0"})
		must(t, err)
		t.Cleanup(embedded.Close)
		b.brokers = embedded.Brokers()
	}
	client := b.client()
	b.admin = kadm.NewClient(client)
	return b
}

func (b *bench) client(opts ...kgo.Opt) *kgo.Client {
	b.t.Helper()
	client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(b.brokers...))...)
	must(b.t, err)
	b.t.Cleanup(client.Close)
	return client
}

func (b *bench) createTopics(names ...string) {
	b.t.Helper()
	responses, err := b.admin.CreateTopics(b.t.Context(), partitions, 1, nil, names...)
	must(b.t, err)
	must(b.t, responses.Error())
}

// fill makes a topic with events of one type.
func (b *bench) fill(kind string) {
	b.t.Helper()
	b.createTopics(kind)
	client := b.client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MaxBufferedRecords(20000))
	var first error
	var once sync.Once
	for i := range *events {
		k := i % 1000
		client.Produce(b.t.Context(), &kgo.Record{Topic: kind, Partition: int32(k % partitions), Key: []byte("key-" + strconv.Itoa(k)), Value: payload(i),
			Headers: []kgo.RecordHeader{{Key: "event_id", Value: []byte(uuid.Must(uuid.NewV7()).String())}, {Key: "event_type", Value: []byte(kind)}}},
			func(_ *kgo.Record, err error) {
				if err != nil {
					once.Do(func() { first = err })
				}
			})
	}
	must(b.t, client.Flush(b.t.Context()))
	must(b.t, first)
}

func payload(n int) []byte {
	return fmt.Appendf(nil, `{"order_id":"%08d","customer_id":"c-%d","amount":%d,"currency":"USD","note":%q}`, n, n%1000, n, strings.Repeat("x", 120))
}

// clear empties what a pass filled, so that each finds the same.
func (b *bench) clear() {
	b.t.Helper()
	for _, sql := range []string{"TRUNCATE tally.effects, tally.inbox, tally.outbox, source.outbox", "CHECKPOINT"} {
		if _, err := b.root.Exec(b.t.Context(), sql); err != nil {
			b.t.Fatalf("%s: %v", sql, err)
		}
	}
}

// running is a consumer's process.
type running struct {
	t       *testing.T
	command *exec.Cmd
	done    <-chan struct{}
	log     bytes.Buffer
	said    bytes.Buffer
}

func (b *bench) run(o order) *running {
	b.t.Helper()
	o.DatabaseURL, o.Brokers = b.server.URL(), b.brokers
	text, err := json.Marshal(o)
	must(b.t, err)
	b.meter = usage.Start(b.parties)
	r := &running{t: b.t, command: exec.Command(os.Args[0])}
	r.command.Env = append(os.Environ(), consumerVariable+"="+string(text))
	r.command.Stdout, r.command.Stderr = &r.said, &r.log
	r.done, err = process.StartChild(r.command)
	must(b.t, err)
	b.t.Cleanup(func() { _ = r.command.Process.Kill(); <-r.done })
	return r
}

// stop asks the process to end and adds up what it took.
func (r *running) stop(p *pass) {
	r.t.Helper()
	_ = r.command.Process.Signal(syscall.SIGTERM) // a naive loop has ended by itself
	r.wait(p)
}

func (r *running) wait(p *pass) {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(patience):
		r.t.Fatalf("%s does not end", p.Name)
	}
	if !r.command.ProcessState.Success() {
		r.t.Fatalf("%s: %s\n%s", p.Name, r.command.ProcessState, r.log.String())
	}
	p.CPU = (r.command.ProcessState.UserTime() + r.command.ProcessState.SystemTime()).Seconds()
	p.Peak = peak(r.command.ProcessState.SysUsage().(*syscall.Rusage))
}

func (b *bench) newGroup(topic string) string {
	b.t.Helper()
	b.groups++
	name := fmt.Sprintf("group-%d", b.groups)
	b.createTopics(retry.Topics(topic, name, retry.Policy{})...)
	return name
}

func (b *bench) done(p pass) {
	p.Machine = b.meter.Read()
	p.Machine.Other = max(0, p.Machine.Other-100*p.CPU/p.Machine.Total) // the consumer has ended
	b.passes = append(b.passes, p)
	b.t.Logf("%s: %.0f events/s, p50 %.1f ms, p99 %.1f ms, %.2f CPU s for %d events, %d MB; %+v", p.Name, p.Rate, p.P50, p.P99, p.CPU, p.Count, p.Peak>>20, p.Machine)
}

// naive lets a loop take a part of the topic.
func (b *bench) naive(m mode) {
	b.t.Helper()
	b.clear()
	p := pass{Name: string(m), Count: max(200, *events/20)}
	r := b.run(order{Mode: m, Group: b.newGroup(eachType), Topic: eachType, Events: p.Count})
	r.wait(&p)
	must(b.t, json.Unmarshal(r.said.Bytes(), &p.Rate))
	b.done(p)
}

// throughput lets a group take the whole topic, and returns its name.
func (b *bench) throughput(m mode, topic string) string {
	b.t.Helper()
	b.clear()
	name := b.newGroup(topic)
	b.measure(string(m), order{Mode: m, Group: name, Topic: topic})
	var effects int
	must(b.t, b.root.QueryRow(b.t.Context(), "SELECT count(*) FROM tally.effects").Scan(&effects))
	if effects != *events {
		b.t.Fatalf("%s: %d effects of %d events", m, effects, *events)
	}
	return name
}

// duplicates lets the group take the topic once more.
func (b *bench) duplicates(name string) {
	b.t.Helper()
	_, err := b.root.Exec(b.t.Context(), "UPDATE tally.consumer_offsets SET next_offset = 0 WHERE consumer = $1", name)
	must(b.t, err)
	b.measure("duplicates only", order{Mode: sets, Group: name, Topic: batchType})
}

const takenSQL = "SELECT coalesce(sum(next_offset), 0)::bigint FROM tally.consumer_offsets WHERE consumer = $1"

// measure counts from the first commit that it sees to the last.
func (b *bench) measure(what string, o order) {
	b.t.Helper()
	p := pass{Name: what, Count: *events}
	r := b.run(o)
	var first int64
	var began time.Time
	b.until(what, r, func() (bool, error) {
		var at int64
		if err := b.root.QueryRow(b.t.Context(), takenSQL, o.Group).Scan(&at); err != nil {
			return false, err
		}
		if began.IsZero() && at > 0 {
			first, began = at, time.Now()
		}
		if at < int64(*events) {
			return false, nil
		}
		p.Rate = float64(at-first) / time.Since(began).Seconds()
		return true, nil
	})
	r.stop(&p)
	b.done(p)
}

func (b *bench) until(what string, r *running, check func() (bool, error)) {
	b.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for {
		ok, err := check()
		must(b.t, err)
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-r.done:
			b.t.Fatalf("%s ended: %s\n%s", what, r.command.ProcessState, r.log.String())
		case <-deadline:
			b.t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

const (
	placeSQL = `
INSERT INTO source.outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload, headers)
VALUES ($1, $2, 'order', $3, 1, $4, 'application/json', $5, '{}')`
	// The clock is the server's own, at both commits.
	latencySQL = `
SELECT extract(epoch FROM pg_xact_commit_timestamp(e.xmin) - pg_xact_commit_timestamp(o.xmin))::float8 * 1000
FROM source.outbox o
JOIN tally.effects e USING (event_id)
WHERE o.seq > (SELECT min(seq) + $1 FROM source.outbox)`
)

// steady takes the time from the commit of an event in an outbox, through the relay and Kafka, to the commit of its
// effect.
func (b *bench) steady(m mode, kind string) {
	b.t.Helper()
	b.clear()
	p := pass{Name: fmt.Sprintf("%d events/s, %s, commit to effect", *rate, m), Count: *rate * *seconds}
	topic := fmt.Sprintf("steady-%d", b.groups)
	b.createTopics(topic)
	defer b.relay(topic)()
	r := b.run(order{Mode: m, Group: b.newGroup(topic), Topic: topic})
	b.place(topic, kind, 200) // so that everything has begun
	effects := func(n int) func() (bool, error) {
		return func() (bool, error) {
			var got int
			err := b.root.QueryRow(b.t.Context(), "SELECT count(*) FROM tally.effects").Scan(&got)
			return got >= n, err
		}
	}
	b.until(p.Name, r, effects(200))
	b.place(topic, kind, p.Count)
	b.until(p.Name, r, effects(200+p.Count))
	rows, err := b.root.Query(b.t.Context(), latencySQL, 200+p.Count/5)
	must(b.t, err)
	times, err := pgx.CollectRows(rows, pgx.RowTo[float64])
	must(b.t, err)
	slices.Sort(times)
	p.P50, p.P99 = times[len(times)/2], times[len(times)*99/100]
	r.stop(&p)
	b.done(p)
}

// relay runs the product's relay and returns what ends it.
func (b *bench) relay(slot string) (stop func()) {
	b.t.Helper()
	slot = strings.ReplaceAll(slot, "-", "_")
	r, err := relay.New(relay.Config{DatabaseURL: b.server.URL(), Brokers: b.brokers, Tables: []string{source + ".outbox"}, Slot: slot, Publication: slot,
		OnMissingSlot: relay.CreateMissingSlot})
	must(b.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	var failed error
	wait.Go(func() { failed = r.Run(ctx) })
	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for r.Ready() != nil {
		select {
		case <-tick.C:
		case <-deadline:
			b.t.Fatal("the relay is not ready")
		}
	}
	return func() {
		cancel()
		wait.Wait()
		_, err := b.root.Exec(context.Background(), "SELECT pg_drop_replication_slot($1)", slot)
		must(b.t, errors.Join(failed, err))
	}
}

const writers = 4

// place commits events one by one, at the steady rate.
func (b *bench) place(topic, kind string, n int) {
	b.t.Helper()
	var wait sync.WaitGroup
	errs := make([]error, writers)
	for w := range writers {
		wait.Go(func() { errs[w] = b.placeSome(topic, kind, w, n/writers) })
	}
	wait.Wait()
	must(b.t, errors.Join(errs...))
}

func (b *bench) placeSome(topic, kind string, writer, n int) error {
	ctx := b.t.Context()
	conn, err := pgx.Connect(ctx, b.server.URL())
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	gap := time.Second * writers / time.Duration(*rate)
	timer := time.NewTimer(0)
	defer timer.Stop()
	began := time.Now()
	for i := range n {
		timer.Reset(time.Until(began.Add(time.Duration(i) * gap)))
		<-timer.C
		k := i*writers + writer
		if _, err := conn.Exec(ctx, placeSQL, uuid.Must(uuid.NewV7()), topic, "key-"+strconv.Itoa(k%1000), kind, payload(k)); err != nil {
			return err
		}
	}
	return nil
}

// table shows the medians.
func (b *bench) table() string {
	of := map[string][]pass{}
	var names []string
	for _, p := range b.passes {
		if of[p.Name] == nil {
			names = append(names, p.Name)
		}
		of[p.Name] = append(of[p.Name], p)
	}
	median := func(name string, value func(pass) float64) float64 {
		var all []float64
		for _, p := range of[name] {
			all = append(all, value(p))
		}
		slices.SortFunc(all, cmp.Compare[float64])
		return all[len(all)/2]
	}
	speed := func(p pass) float64 { return p.Rate }
	var text strings.Builder
	fmt.Fprintf(&text, "%s, PostgreSQL %d, %d events, %d rounds, medians\n", b.kafka, b.server.Version, *events, *rounds)
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tevents/s\t× naive\tCPU s per million: consumer\tPostgreSQL\tKafka\tothers %\tpeak MB\tp50 ms\tp99 ms\t")
	base := median(string(naive), speed)
	for _, name := range names {
		s, ratio, p50, p99 := "", "", "", ""
		if v := median(name, speed); v > 0 {
			s, ratio = fmt.Sprintf("%.0f", v), fmt.Sprintf("%.1f", v/base)
		} else {
			p50 = fmt.Sprintf("%.1f", median(name, func(p pass) float64 { return p.P50 }))
			p99 = fmt.Sprintf("%.1f", median(name, func(p pass) float64 { return p.P99 }))
		}
		per := func(seconds func(pass) float64) float64 {
			return median(name, func(p pass) float64 { return seconds(p) / float64(p.Count) * 1e6 })
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%.1f\t%.1f\t%.1f\t%.0f\t%.0f\t%s\t%s\t\n", name, s, ratio, per(func(p pass) float64 { return p.CPU }),
			per(func(p pass) float64 { return p.Machine.Seconds["postgresql"] }), per(func(p pass) float64 { return p.Machine.Seconds["kafka"] }),
			median(name, func(p pass) float64 { return p.Machine.Stolen + p.Machine.Other }),
			median(name, func(p pass) float64 { return float64(p.Peak) })/(1<<20), p50, p99)
	}
	_ = w.Flush() // to memory
	return text.String()
}
