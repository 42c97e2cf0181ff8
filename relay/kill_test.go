package relay_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

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
	SpillDir    string
	Source      relay.Source // "": wal

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
	tables := []string{outboxTable}
	if c.Source == relay.SourceMessage {
		tables = nil
	}
	subject, err := relay.New(relay.Config{DatabaseURL: c.DatabaseURL, Brokers: c.Brokers, Slot: c.Slot,
		Source: c.Source, Tables: tables, OnMissingSlot: cmp.Or(c.OnMissingSlot, relay.CreateMissingSlot), ExactlyOnce: c.ExactlyOnce, SpillDir: c.SpillDir,
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

// often is how often a test kills, which short mode makes a third of: make prove-relay kills more than all.
func often(kills int) int {
	if testing.Short() {
		return (kills + 2) / 3
	}
	return kills
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
