package prove

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/internal/database"
	"converge/internal/proof"
	"converge/producers/outbox"
)

// plan is what a run is to do.
type plan struct {
	Kills int     `json:"kills"`
	Seed  uint64  `json:"seed"`
	Rate  float64 `json:"rows_per_second"`
	Once  bool    `json:"exactly_once"` // the relay publishes exactly once
	Polls bool    `json:"polls"`        // it polls the tables, so there is no position to sample

	Hold time.Duration `json:"-"` // of a trouble, at most
	Long time.Duration `json:"-"` // of Kafka's long outage, which comes once in every 500 kills, and once at least
	// Patience bounds every wait for something that should happen soon.
	Patience time.Duration `json:"-"`
	// Only are the troubles to choose from, by name; nil is all.
	Only []string `json:"-"`
	// NoPoints leaves out the crash points.
	NoPoints bool `json:"-"`
}

// run is one run of the proof.
type run struct {
	t      testing.TB
	plan   plan
	rng    *rand.Rand
	binary string
	plant  string // the fault to switch on in the binary
	logs   string

	server  *proof.Server
	cluster *proof.Cluster
	ledger  *ledger
	witness *witness
	kafka   *kgo.Client // around the leg

	slotMade bool
	first    *subject // the relay that made the slot
	stop     func()   // ends the witness
	point    string   // that the relay which runs is to die at, "" for none
	deals    struct {
		troubles func() proof.Trouble
		points   func() string
	}
	result result

	mu     sync.Mutex // guards broken
	broken []error
}

// failed notes what the run cannot go on with, or must not pass with.
func (r *run) failed(err error) {
	if err == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = append(r.broken, err)
}

func (r *run) failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(r.broken...)
}

// result is what a run did and what came of it.
type result struct {
	Plan     plan           `json:"plan"`
	Verdict  *Verdict       `json:"verdict"`
	Seconds  float64        `json:"seconds"`
	Kills    int            `json:"kills"`        // by SIGKILL, at random or at a point
	Points   map[string]int `json:"crash_points"` // of these, by the point
	Troubles map[string]int `json:"troubles"`
	Drains   int            `json:"drains"`
	Missed   int            `json:"missed_samples"` // because a side was away
	// Failure is why the run itself went wrong: the relay gave up or never caught up. What the judge says of
	// what was seen until then stands all the same.
	Failure error `json:"-"`
}

const (
	service    = "orders"
	table      = service + ".outbox"
	slot       = "converge"
	partitions = 3
)

func startServer(t testing.TB, settings map[string]string) *proof.Server {
	t.Helper()
	return proof.StartServer(t, settings, database.Module{Service: service, Sets: []database.Set{{Name: "outbox", FS: outbox.Migrations}}})
}

func startCluster(t testing.TB) *proof.Cluster {
	t.Helper()
	return proof.StartCluster(t, proof.ClusterConfig{DefaultPartitions: partitions})
}

// prove runs the plan against a relay's binary.
func prove(t testing.TB, binary, plant string, p plan) result {
	t.Helper()
	r := begin(t, binary, plant, p)
	writing, stopWriting := context.WithCancel(context.Background())
	defer stopWriting()
	var pens sync.WaitGroup
	pens.Go(func() { r.failed(r.ledger.write(writing, p.Seed)) })
	last := r.torment(r.first)
	stopWriting()
	pens.Wait()
	return r.end(last)
}

// begin starts everything but the ledger's writers.
func begin(t testing.TB, binary, plant string, p plan) *run {
	t.Helper()
	t.Logf("seed %d", p.Seed)
	r := &run{t: t, plan: p, rng: rand.New(rand.NewPCG(p.Seed, 0)), binary: binary, plant: plant, logs: t.TempDir(),
		server: startServer(t, nil), cluster: startCluster(t)}
	r.result = result{Plan: p, Points: map[string]int{}, Troubles: map[string]int{}}
	r.witness = newWitness(r.server, p)
	r.ledger = &ledger{url: r.server.URL(), rate: p.Rate}
	r.prepare()

	r.first = r.startRelay("")
	if err := r.await("the relay reads its slot", r.slotIsRead); err != nil {
		t.Fatalf("%v\n%s", err, r.first.tail())
	}
	r.slotMade = true

	r.kafka = r.cluster.Client()
	reading := []kgo.Opt{kgo.ConsumeTopics(allTopics()...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100 * time.Millisecond), kgo.KeepControlRecords()}
	if p.Once {
		reading = append(reading, kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	}
	consumer := r.cluster.Client(reading...)
	life, stop := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	parts.Go(func() { r.witness.consume(life, consumer) })
	parts.Go(func() { r.witness.watch(life, r.kafka) })
	r.stop = func() { stop(); parts.Wait() }
	t.Cleanup(r.stop)
	return r
}

// end waits until the relay that is left has caught up, and judges.
func (r *run) end(last *subject) result {
	if r.failure() == nil {
		r.failed(r.settle(last))
	}
	r.stop()
	r.result.Verdict = Check(r.witness.history(r.ledger), deadTopic)
	r.result.Missed = r.witness.missed
	r.result.Seconds = time.Since(r.witness.began).Seconds()
	r.result.Failure = r.failure()
	return r.result
}

func (r *run) prepare() {
	conn, err := pgx.Connect(r.t.Context(), r.server.URL())
	if err != nil {
		r.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(r.t.Context(), ledgerSQL); err != nil {
		r.t.Fatal(err)
	}
	if r.plan.Polls {
		if _, err := conn.Exec(r.t.Context(), "CREATE INDEX ON orders.outbox (seq) WHERE published_at IS NULL"); err != nil {
			r.t.Fatal(err)
		}
	}
	for k := range hotKeys + coldKeys {
		if _, err := conn.Exec(r.t.Context(), "INSERT INTO prove.keys VALUES ($1, 0)", keyName(k)); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := r.witness.prepare(r.t.Context(), conn); err != nil {
		r.t.Fatal(err)
	}
}

// await polls until check returns nil.
func (r *run) await(what string, check func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(r.plan.Patience)
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("%s: not within %s: %w", what, r.plan.Patience, err)
		}
	}
}

// pause waits, or less if the process ends before.
func pause(relay *subject, d time.Duration) {
	select {
	case <-time.After(d):
	case <-relay.done:
	}
}

func (r *run) upTo(milliseconds int) time.Duration {
	return time.Duration(r.rng.IntN(milliseconds+1)) * time.Millisecond
}

// shuffle prepares what befalls the relay.
func (r *run) shuffle(longOutage proof.Trouble) {
	all := r.troubles()
	if r.plan.Only != nil {
		all = proof.Choose(all, r.plan.Only)
	} else {
		for _, t := range append(all, longOutage) {
			r.result.Troubles[t.Name] = 0
		}
		all = append(all, slices.Repeat([]proof.Trouble{proof.None}, 6)...)
	}
	r.deals.troubles = proof.Deck(r.rng, all)
	r.deals.points = proof.Deck(r.rng, r.plan.points())
}

// torment kills the relay again and again, in trouble or behind it, and returns the one that runs then.
func (r *run) torment(relay *subject) *subject {
	longOutage := proof.Unreachable(longOutageName, r.cluster.Leg)
	r.shuffle(longOutage)
	long := r.rng.IntN(min(r.plan.Kills, 500))
	shown := 0
	for r.result.Kills < r.plan.Kills && r.failure() == nil {
		if r.result.Kills >= shown+50 {
			shown = r.result.Kills
			r.t.Logf("%d kills after %s", shown, time.Since(r.witness.began).Round(time.Second))
		}
		if r.rng.IntN(10) > 0 {
			r.reading(relay)
		}
		pause(relay, r.upTo(500))
		now := r.deals.troubles()
		if r.plan.Only == nil && r.result.Kills >= long+500*r.result.Troubles[longOutageName] {
			now = longOutage
		}
		r.result.Troubles[now.Name]++
		end := now.Begin(r.rng)
		if now.Name == longOutageName {
			relay = r.outlive(relay, r.plan.Long)
		} else {
			pause(relay, r.upTo(int(r.plan.Hold.Milliseconds())))
		}
		within := r.rng.IntN(2) == 0
		if !within {
			end()
			pause(relay, r.upTo(700))
		}
		if now.Name == "none" && r.rng.IntN(2) == 0 && r.witness.isRead(relay.began) {
			since := r.ends()
			pause(relay, r.upTo(500))
			if r.drain(relay, since) {
				relay = r.next()
				continue
			}
		}
		if r.point != "" {
			pause(relay, 2*time.Second)
		}
		r.kill(relay)
		if within {
			end()
		}
		relay = r.next()
	}
	relay.kill()
	return r.startRelay("")
}

const longOutageName = "Kafka: long outage"

// outlive waits for a while in which the relay may meet its crash point; then another one waits on.
func (r *run) outlive(relay *subject, d time.Duration) *subject {
	over := time.After(d)
	select {
	case <-over:
		return relay
	case <-relay.done:
		r.kill(relay)
		r.point = ""
		relay = r.startRelay("")
		<-over
		return relay
	}
}

// next starts a relay, half of the time one that dies at a point.
func (r *run) next() *subject {
	r.point = ""
	if r.plan.NoPoints || r.rng.IntN(2) == 0 {
		return r.startRelay("")
	}
	r.point = r.deals.points()
	return r.startRelay(fmt.Sprintf("%s:%d", r.point, 1+r.rng.IntN(points[r.point])))
}

// reading waits some time for the relay to read its slot.
func (r *run) reading(relay *subject) {
	deadline := time.After(3 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !r.witness.isRead(relay.began) {
		select {
		case <-tick.C:
		case <-relay.done:
			return
		case <-deadline:
			return
		}
	}
}

// kill makes an end of the relay, or finds that it has met its point.
func (r *run) kill(relay *subject) {
	if !relay.ended() {
		relay.kill()
		r.result.Kills++
		return
	}
	if !relay.crashed() {
		r.failed(fmt.Errorf("the relay gave up (%s):\n%s", relay.command.ProcessState, relay.tail()))
		return
	}
	r.result.Kills++
	r.result.Points[r.point]++
}

// drain asks a relay that reads the slot to end. What came since must be confirmed then. It reports whether the
// relay did: it may have been at its crash point first.
func (r *run) drain(relay *subject, since map[Place]int64) bool {
	if err := relay.command.Process.Signal(syscall.SIGTERM); err != nil {
		return false
	}
	select {
	case <-relay.done:
	case <-time.After(proof.Patience):
		r.failed(fmt.Errorf("the relay does not drain:\n%s", relay.tail()))
		return false
	}
	if relay.crashed() {
		return false // at its point, on the way
	}
	if !relay.command.ProcessState.Success() {
		r.failed(fmt.Errorf("draining: %s\n%s", relay.command.ProcessState, relay.tail()))
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, r.server.URL())
	if err == nil {
		defer conn.Close(context.Background())
		err = r.witness.sample(ctx, conn, r.kafka, since)
	}
	r.failed(err)
	r.result.Drains++
	return true
}

// readerSQL finds the server process that the relay reads through. While a slot is being created it is active
// too, and keeps nothing yet.
func (p *plan) readerSQL() string {
	if p.Polls {
		return "SELECT l.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.granted AND a.application_name = $1 || ' relay'"
	}
	return "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1 AND active AND confirmed_flush_lsn IS NOT NULL"
}

func (r *run) slotIsRead() error {
	if !r.ask(r.plan.readerSQL(), slot, new(int)) {
		return errors.New("nobody reads it")
	}
	return nil
}

// ends returns where the topics end, nothing if Kafka is away.
func (r *run) ends() map[Place]int64 {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	all, err := ends(ctx, r.kafka)
	r.failed(err)
	return all
}

const confirmedSQL = `
SELECT confirmed_flush_lsn::text, confirmed_flush_lsn >= $2::text::pg_lsn
FROM pg_replication_slots
WHERE slot_name = $1`

// settle waits until the relay has confirmed, the judge decoded and the consumer received everything.
func (r *run) settle(relay *subject) error {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, r.server.URL())
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	var end string
	if err := conn.QueryRow(ctx, "SELECT pg_current_wal_lsn()::text").Scan(&end); err != nil {
		return err
	}
	caughtUp := r.await("everything is confirmed", func() error {
		if r.plan.Polls {
			var n int
			if err := conn.QueryRow(ctx, "SELECT count(*) FROM orders.outbox WHERE published_at IS NULL").Scan(&n); err != nil || n == 0 {
				return err
			}
			return fmt.Errorf("%d rows are not marked", n)
		}
		var confirmed string
		var done bool
		if err := conn.QueryRow(ctx, confirmedSQL, slot, end).Scan(&confirmed, &done); err != nil || done {
			return err
		}
		return fmt.Errorf("the slot is confirmed up to %s of %s", confirmed, end)
	})
	if caughtUp != nil {
		caughtUp = fmt.Errorf("%w\n%s", caughtUp, relay.tail())
	}
	decoded := r.await("the log is read", func() error {
		r.witness.sampling.Lock()
		defer r.witness.sampling.Unlock()
		more, err := r.witness.readLog(ctx, conn)
		if err == nil && more {
			err = errors.New("there is more")
		}
		return err
	})
	received := r.await("the topics are read", func() error {
		ends, err := ends(ctx, r.kafka)
		if err != nil {
			return err
		}
		return r.witness.has(ends)
	})
	return errors.Join(caughtUp, decoded, received)
}
