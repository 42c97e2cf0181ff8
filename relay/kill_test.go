package relay_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"

	"converge/internal/mutants"
	"converge/internal/process"
	"converge/relay"
)

// childVariable holds the configuration of a relay that the test binary runs instead of its tests.
const childVariable = "CONVERGE_TEST_RELAY_CHILD"

type childConfig struct {
	DatabaseURL string
	Brokers     []string
	Slot        string
	ExactlyOnce bool

	OnMissingSlot relay.MissingSlot // "": create
}

func TestMain(m *testing.M) {
	if encoded := os.Getenv(childVariable); encoded != "" {
		if err := runChild(encoded); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func runChild(encoded string) error {
	var c childConfig
	if err := json.Unmarshal([]byte(encoded), &c); err != nil {
		return err
	}
	subject, err := relay.New(relay.Config{DatabaseURL: c.DatabaseURL, Brokers: c.Brokers, Slot: c.Slot,
		Tables: []string{outboxTable}, OnMissingSlot: cmp.Or(c.OnMissingSlot, relay.CreateMissingSlot), ExactlyOnce: c.ExactlyOnce,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return subject.Run(ctx)
}

// child is a relay in a process of its own.
type child struct {
	command *exec.Cmd
	output  bytes.Buffer // complete once done is closed
	done    <-chan struct{}
}

func startChild(t testing.TB, binary string, c childConfig) *child {
	t.Helper()
	encoded, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	p := &child{command: exec.Command(binary)}
	p.command.Env = append(os.Environ(), childVariable+"="+string(encoded))
	p.command.Stderr = &p.output
	if p.done, err = process.StartChild(p.command); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.kill() })
	return p
}

// kill ends the process the way a power cut does, and waits until it is gone.
func (p *child) kill() {
	_ = p.command.Process.Kill() // it may have ended already
	<-p.done
}

// entry is one row that a writer inserted.
type entry struct {
	id       uuid.UUID
	key      string
	sequence int
}

// ledger is what the writers know: every row, by what became of its transaction.
type ledger struct {
	mu         sync.Mutex // guards all below
	committed  []entry
	rolledBack []entry
	unknown    []entry // the answer to COMMIT was lost
}

func (l *ledger) note(outcome *[]entry, rows []entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*outcome = append(*outcome, rows...)
}

const keysPerWriter = 8

// write inserts transactions of 1 to 20 rows over the writer's own keys until ctx ends, one in five
// rolled back. A key belongs to one writer, so its sequence is the order of its commits.
func (l *ledger) write(ctx context.Context, url string, writer int, rng *rand.Rand) error {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return err
	}
	cfg.RuntimeParams["search_path"] = service
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	sequence := make([]int, keysPerWriter)
	pace := time.NewTicker(2 * time.Millisecond)
	defer pace.Stop()
	for {
		select {
		case <-pace.C:
		case <-ctx.Done():
			return nil
		}
		// A transaction that began is finished whatever ctx says, so that its outcome is known.
		if err := l.transaction(context.WithoutCancel(ctx), conn, writer, sequence, rng); err != nil {
			return err
		}
	}
}

const insertEntrySQL = `
INSERT INTO outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload, headers)
VALUES ($1, $2, 'thing', $3, $4, 'Happened', 'application/json', $5, '{"correlation_id": "c"}')`

func (l *ledger) transaction(ctx context.Context, conn *pgx.Conn, writer int, sequence []int, rng *rand.Rand) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	next := append([]int(nil), sequence...)
	var rows []entry
	batch := &pgx.Batch{}
	for range 1 + rng.IntN(20) {
		k := rng.IntN(keysPerWriter)
		e := entry{id: uuid.New(), key: fmt.Sprintf("%d-%d", writer, k), sequence: next[k]}
		next[k]++
		rows = append(rows, e)
		topic := fmt.Sprintf("topic-%d", k%2)
		batch.Queue(insertEntrySQL, e.id, topic, e.key, e.sequence, bytes.Repeat([]byte("x"), rng.IntN(600)))
	}
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return err
	}
	if rng.IntN(5) == 0 {
		l.note(&l.rolledBack, rows)
		return tx.Rollback(ctx)
	}
	if err := tx.Commit(ctx); err != nil {
		l.note(&l.unknown, rows)
		return err
	}
	copy(sequence, next)
	l.note(&l.committed, rows)
	return nil
}

// finding is what the checker holds against a run.
type finding struct {
	lost, forged, disordered, repeats int
	example                           string
}

func (f finding) bad() bool { return f.lost > 0 || f.forged > 0 || f.disordered > 0 }

// check compares the ledger with what was delivered: committed ⊆ delivered, rolled back ∩ delivered is
// empty, and each key's rows first appear in the order of their commits.
func (l *ledger) check(delivered []entry) (f finding) {
	seen := make(map[uuid.UUID]bool, len(delivered))
	next := map[string]int{}
	for _, d := range delivered {
		if seen[d.id] {
			f.repeats++
			continue
		}
		seen[d.id] = true
		if d.sequence != next[d.key] {
			f.disordered++
			f.example = fmt.Sprintf("key %s: %d came, want %d", d.key, d.sequence, next[d.key])
		}
		next[d.key] = d.sequence + 1
	}
	for _, e := range l.committed {
		if !seen[e.id] {
			f.lost++
			f.example = fmt.Sprintf("key %s: %d was lost", e.key, e.sequence)
		}
	}
	for _, e := range l.rolledBack {
		if seen[e.id] {
			f.forged++
			f.example = fmt.Sprintf("key %s: %d was published and rolled back", e.key, e.sequence)
		}
	}
	return f
}

// killTest runs binary's relay under load, kills it again and again, and returns the checker's finding.
// Every third time Kafka's network stops some time before the kill, so that rows are read that it does
// not have, and what was sent meanwhile is lost with the connection.
func killTest(t *testing.T, binary string, kills int, seed uint64) finding {
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	url, kafka := outboxDatabase(t), startBroker(t)
	c := childConfig{DatabaseURL: url, Brokers: kafka.addrs(), Slot: uniqueSlot()}

	relayProcess := startChild(t, binary, c)
	conn := connect(t, url)
	eventually(t, "the slot exists", func() error {
		if !ask[bool](t, conn, "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)", c.Slot) {
			return errors.New("it does not")
		}
		return nil
	})

	var book ledger
	writing, stopWriting := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	for w := range 4 {
		own := rand.New(rand.NewPCG(seed, uint64(w+1)))
		writers.Go(func() {
			if err := book.write(writing, url, w, own); err != nil {
				t.Errorf("writing: %v", err)
			}
		})
	}
	wait := func(d time.Duration) {
		select {
		case <-time.After(d):
		case <-t.Context().Done():
		}
	}
	for kill := range kills {
		wait(time.Duration(rng.IntN(700)) * time.Millisecond)
		stall := kill%3 == 0
		if stall {
			kafka.gate.pause()
			wait(time.Duration(1200+rng.IntN(600)) * time.Millisecond)
		}
		relayProcess.kill()
		if stall {
			kafka.gate.shut()
			kafka.gate.open()
		}
		relayProcess = startChild(t, binary, c)
	}
	stopWriting()
	writers.Wait()
	// What the relay has confirmed must be on the topics; waiting for that waits for all there is.
	confirmedPast(t, conn, c.Slot, ask[string](t, conn, walEndSQL))
	delivered := deliveries(t, kafka, "topic-0", "topic-1")
	f := book.check(delivered)
	t.Logf("%d kills: %d rows committed, %d rolled back, %d delivered, %d of them repeats",
		kills, len(book.committed), len(book.rolledBack), len(delivered), f.repeats)
	if err := relayProcess.command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("asking the relay to drain: %v", err)
	}
	<-relayProcess.done
	if state := relayProcess.command.ProcessState; !state.Success() {
		t.Errorf("draining: %v\n%s", state, &relayProcess.output)
	}
	if f.bad() {
		t.Logf("the last relay's log:\n%s", &relayProcess.output)
	}
	return f
}

// deliveries reads everything that the topics hold.
func deliveries(t testing.TB, kafka *broker, topics ...string) (delivered []entry) {
	reader := kafka.reader(t, topics...)
	ends, err := kadm.NewClient(reader.client).ListEndOffsets(t.Context(), topics...)
	if err != nil {
		t.Fatal(err)
	}
	var held int64
	ends.Each(func(o kadm.ListedOffset) { held += o.Offset })
	for range held {
		r := reader.next(t)
		e := entry{key: string(r.Key)}
		for _, h := range r.Headers {
			switch h.Key {
			case "event_id":
				e.id = uuid.MustParse(string(h.Value))
			case "aggregate_version":
				if e.sequence, err = strconv.Atoi(string(h.Value)); err != nil {
					t.Fatal(err)
				}
			}
		}
		delivered = append(delivered, e)
	}
	return delivered
}

func TestKillingTheRelayLosesNothing(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if f := killTest(t, self, 20, uint64(time.Now().UnixNano())); f.bad() {
		t.Errorf("lost %d, published though rolled back %d, out of order %d: %s", f.lost, f.forged, f.disordered, f.example)
	}
}

// plants are faults that popular relays have had. The kill test must find each, or it proves nothing.
var plants = map[string]mutants.Fault{
	"confirms what it has received": {File: "relay/tracker.go",
		Old: "x != nil && x.pending.Load() == 0", New: "x != nil && x.end != 0"},
	"confirms a keepalive while transactions wait": {File: "relay/tracker.go",
		Old: "if t.head == nil {\n\t\t// A keepalive", New: "if !t.open {\n\t\t// A keepalive"},
}

// unchecked takes the second lock off the door, as without a topic for checkpoints: a Kafka that has not the
// rows does not acknowledge their checkpoint either, and the next start finds a slot that went ahead.
var unchecked = mutants.Fault{File: "relay/checkpoint.go", Old: "if c.kafka.missing(err) {", New: "if true {"}

func TestKillTestCatchesPlantedFaults(t *testing.T) {
	t.Parallel()
	for name, fault := range plants {
		t.Run(name, func(t *testing.T) {
			mutant := mutants.Build(t, []mutants.Fault{fault, unchecked}, "test", "-c", "-vet=off", "converge/relay")
			if f := killTest(t, mutant, 4, uint64(time.Now().UnixNano())); f.lost == 0 {
				t.Errorf("the checker found nothing wrong: %+v", f)
			} else {
				t.Logf("caught: %d rows lost, as in %s", f.lost, f.example)
			}
		})
	}
}
