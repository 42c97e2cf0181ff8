package relay_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	neturl "net/url"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/internal/mutants"
)

// committed reads the committed records of topics from their beginning up to where they end now.
func committed(t testing.TB, brokers []string, topics ...string) (found []*kgo.Record) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListCommittedOffsets(ctx, topics...)
	if err != nil {
		t.Fatal(err)
	}
	left := make(map[string]int64) // what is still to come; a transaction's end is the last of it
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[fmt.Sprint(o.Topic, o.Partition)] = o.Offset
		}
	})
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("reading %v, %d partitions to go: %v", topics, len(left), err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			at := fmt.Sprint(r.Topic, r.Partition)
			if end, more := left[at]; more && r.Offset+1 >= end {
				delete(left, at)
			}
			if !r.Attrs.IsControl() {
				found = append(found, r)
			}
		})
	}
	return found
}

func entryOf(t testing.TB, r *kgo.Record) entry {
	t.Helper()
	e := entry{key: string(r.Key)}
	var err error
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
	return e
}

// exactlyOnceTest kills binary's relay again and again while rows are written, in transactions of all sizes,
// and returns what a reader of committed records finds.
func exactlyOnceTest(t *testing.T, binary string, brokers []string, kills int, seed uint64) finding {
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	url := outboxDatabase(t)
	c := childConfig{DatabaseURL: url, Brokers: brokers, Slot: uniqueSlot(), ExactlyOnce: true}
	relayProcess := startChild(t, binary, c)
	conn := connect(t, url)
	eventually(t, "the slot is read", slotRead(t, conn, c.Slot))
	var book ledger
	writing, stopWriting := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	for w := range 2 {
		own := rand.New(rand.NewPCG(seed, uint64(w+1)))
		writers.Go(func() {
			if err := book.write(writing, url, w, own); err != nil {
				t.Errorf("writing: %v", err)
			}
		})
	}
	large := 0
	for range kills {
		// A transaction that takes longer than a Kafka transaction lasts.
		rows := 5000 + rng.IntN(20000)
		execute(t, conn, insertLargeSQL, large, large+rows)
		for n := range rows {
			book.note(&book.committed, []entry{{id: largeID(large + n), key: "large", sequence: large + n}})
		}
		large += rows
		select {
		case <-time.After(time.Duration(100+rng.IntN(900)) * time.Millisecond):
		case <-t.Context().Done():
		}
		relayProcess.kill()
		relayProcess = startChild(t, binary, c)
	}
	stopWriting()
	writers.Wait()
	confirmedPast(t, conn, c.Slot, ask[string](t, conn, walEndSQL))
	var delivered []entry
	for _, r := range committed(t, brokers, "topic-0", "topic-1") {
		delivered = append(delivered, entryOf(t, r))
	}
	f := book.check(delivered)
	t.Logf("%d kills: %d rows committed, %d rolled back, %d read as committed, %d of them repeats",
		kills, len(book.committed), len(book.rolledBack), len(delivered), f.repeats)
	if err := relayProcess.command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("asking the relay to drain: %v", err)
	}
	<-relayProcess.done
	if state := relayProcess.command.ProcessState; !state.Success() || f.bad() || f.repeats > 0 {
		t.Logf("the last relay's log:\n%s", &relayProcess.output)
	}
	return f
}

// insertLargeSQL inserts rows $1 to $2 of the key large in one transaction; their ids are made of their numbers.
const insertLargeSQL = `
INSERT INTO outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload)
SELECT ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid, 'topic-0', 'thing', 'large', n, 'Happened', 'text/plain',
       convert_to(repeat('x', 300), 'UTF8')
FROM generate_series($1::bigint, $2::bigint - 1) AS n`

func largeID(n int) uuid.UUID {
	return uuid.MustParse(fmt.Sprintf("00000000-0000-0000-0000-%012d", n))
}

func TestKilledAgainAndAgainEachRowIsReadExactlyOnce(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if f := exactlyOnceTest(t, self, startBroker(t).addrs(), often(12), uint64(time.Now().UnixNano())); f.bad() || f.repeats > 0 {
		t.Errorf("%d repeated, lost %d, published though rolled back %d, out of order %d: %s", f.repeats, f.lost, f.forged, f.disordered, f.example)
	}
}

// TestRelayThatWasCutOffCannotCommit: a relay is stopped in the middle of its Kafka transaction and loses the
// slot without noticing; another takes over; the first wakes up and wants to commit. What it had open must not
// come behind the other's rows.
func TestRelayThatWasCutOffCannotCommit(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	url, kafka := outboxDatabase(t), startBroker(t)
	conn := connect(t, url)
	behind, err := neturl.Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	network := newCutter(t, behind.Host)
	behind.Host = network.address
	c := childConfig{DatabaseURL: behind.String(), Brokers: kafka.addrs(), Slot: uniqueSlot(), ExactlyOnce: true}
	zombie := startChild(t, self, c)
	eventually(t, "the slot is read", slotRead(t, conn, c.Slot))
	const rows = 60_000
	execute(t, conn, insertLargeSQL, 0, rows)
	kafka.reader(t, "topic-0").next(t) // uncommitted records count here
	if err := zombie.command.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	network.cut()
	eventually(t, "the slot is free", slotFree(t, conn, c.Slot))
	cfg := config(url, kafka)
	cfg.Slot, cfg.ExactlyOnce = c.Slot, true
	subject := startReady(t, cfg)
	execute(t, conn, insertLargeSQL, rows, rows+10)
	confirmedPast(t, conn, cfg.Slot, ask[string](t, conn, walEndSQL))
	if err := zombie.command.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// It finds out when it wants to commit, and has its place behind the other from then on: with the slot
	// free again it goes on where the other stopped.
	execute(t, conn, insertLargeSQL, rows+10, rows+20)
	confirmedPast(t, conn, cfg.Slot, ask[string](t, conn, walEndSQL))
	if err := subject.stop(); err != nil {
		t.Fatal(err)
	}
	execute(t, conn, insertLargeSQL, rows+20, rows+30)
	confirmedPast(t, conn, cfg.Slot, ask[string](t, conn, walEndSQL))
	zombie.kill()
	for i, r := range committed(t, cfg.Brokers, "topic-0") {
		if n := entryOf(t, r).sequence; n != i {
			t.Fatalf("record %d is row %d\n%s", i, n, &zombie.output)
		}
		if i > rows+30 {
			t.Fatal("there are more records than rows")
		}
	}
}

// TestCheckpointFaults: the tests of this page fail on the faults that they are there for.
func TestCheckpointTestsFindPlantedFaults(t *testing.T) {
	mutants.Find(t, "converge/relay", []mutants.Fault{
		{File: "relay/checkpoint.go", Old: "\tif c.off {\n\t\treturn watermark", New: "\tif c.off || planted(\"confirm early\") {\n\t\treturn watermark"},
		{File: "relay/checkpoint.go", Old: "case slot > last.Confirmed:", New: "case slot > last.Confirmed && !planted(\"no gap\"):"},
		{File: "relay/checkpoint.go", Old: "case last.Pending:", New: "case last.Pending && !(planted(\"looks finished\") && last.Confirmed != 0):"},
		{File: "relay/checkpoint.go", Old: "c.next.Session, c.next.Pending = c.last.Session+1, c.last.Pending",
			New: "c.next.Session, c.next.Pending = c.last.Session+1, c.last.Pending && !(planted(\"looks finished\") && c.last.Confirmed != 0)"},
		{File: "relay/checkpoint_read.go", Old: "if c.Session != before.Session {", New: "if planted(\"last wins\") {\n\t\treturn true\n\t}\n\tif c.Session != before.Session {"},
		{File: "relay/transactional.go", Old: "skip = t.start.Ordinal", New: "skip = t.start.Ordinal\n\t\tif planted(\"skip too few\") {\n\t\t\tskip--\n\t\t}"},
		{File: "relay/transactional.go", Old: "t.passing = commit < t.start.Confirmed", New: "t.passing = commit < t.start.Confirmed || planted(\"skip too many\") && commit == t.start.Confirmed"},
		// The rows are committed, then the checkpoint: as often as not the kill comes in between.
		{File: "relay/transactional.go", Old: "\twritten := make(chan error, 1)\n", New: `	if planted("checkpoint apart") {
		_ = t.client.Flush(ctx)
		_ = t.client.EndTransaction(ctx, kgo.TryCommit)
		time.Sleep(transactionInterval)
		_ = t.client.BeginTransaction()
	}
	written := make(chan error, 1)
`},
		{File: "relay/session.go", Old: "if err := fence(ctx, s.kafka.client); err != nil {", New: "if err := fence(ctx, s.kafka.client); err != nil && !planted(\"unfenced\") {"},
		{File: "relay/kafka.go", Old: "kgo.TransactionalID(transactionalID(cfg.Slot))",
			New: "kgo.TransactionalID(transactionalID(cfg.Slot) + map[bool]string{true: time.Now().String()}[planted(\"unfenced\")])"},
	}, map[string]mutants.Verdict{
		"confirm early":    {Run: "TestNothingIsConfirmedBeforeItsCheckpoint", Says: "before a checkpoint was acknowledged"},
		"no gap":           {Run: "TestSlotThatSomebodyMovedIsNotReadOn", Says: "Run goes on"},
		"looks finished":   {Run: "TestBackfillThatDiedBeginsAnew", Says: "Run goes on"},
		"last wins":        {Run: "TestCheckpointOfARelayThatLostTheSlotIsNotBelieved", Says: "somebody advanced the slot"},
		"skip too few":     {Run: "TestWhatACheckpointCoversIsSkippedToTheRow", Says: "6 rows are skipped, want 7"},
		"skip too many":    {Run: "TestWhatACheckpointCoversIsSkippedToTheRow", Says: "rows are skipped, want 0"},
		"checkpoint apart": {Run: "TestKilledAgainAndAgainEachRowIsReadExactlyOnce", Says: "repeated, lost 0"},
		"unfenced":         {Run: "TestRelayThatWasCutOffCannotCommit", Says: "is row"},
	})
}

// cutter is a network between a relay and its server that can be cut so that only the server notices.
type cutter struct {
	address string
	mu      sync.Mutex // guards servers
	servers []net.Conn
}

func newCutter(t testing.TB, server string) *cutter {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	c := &cutter{address: listener.Addr().String()}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", server)
			if err != nil {
				client.Close()
				continue
			}
			c.mu.Lock()
			c.servers = append(c.servers, up)
			c.mu.Unlock()
			go io.Copy(client, up) //nolint:errcheck // the client hears nothing of the end
			go func() {
				_, _ = io.Copy(up, client)
				up.Close()
				_, _ = io.Copy(io.Discard, client)
				client.Close()
			}()
		}
	}()
	return c
}

func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, server := range c.servers {
		server.Close()
	}
}
