package relay_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	neturl "net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/internal/mutants"
	"converge/relay"
	"converge/relay/pgoutput"
)

// soonStreamed makes the server send transactions of more than 64 kB before they end.
func soonStreamed(t testing.TB, url string) string {
	t.Helper()
	u, err := neturl.Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("logical_decoding_work_mem", "64kB")
	u.RawQuery = q.Encode()
	return u.String()
}

// spilling is the configuration of a relay that takes large transactions early.
func spilling(t testing.TB, url string, b *broker) relay.Config {
	cfg := config(soonStreamed(t, url), b)
	cfg.SpillDir = t.TempDir()
	return cfg
}

// spilledFiles returns the files below a directory for large transactions.
func spilledFiles(t testing.TB, dir string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone meanwhile
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func awaitSpilled(t testing.TB, dir string, transactions int) {
	t.Helper()
	eventually(t, "large transactions are on disk", func() error {
		if n := len(spilledFiles(t, dir)); n != transactions {
			return fmt.Errorf("%d are, not %d", n, transactions)
		}
		return nil
	})
}

// insertNumberedSQL inserts rows $1 to $2 of the key $3; their payloads are $3 and their numbers, and long.
const insertNumberedSQL = `
INSERT INTO outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload)
SELECT gen_random_uuid(), 'topic-0', 'thing', $3, n, 'Happened', 'text/plain',
       convert_to($3 || ' ' || n || repeat(' ', 300), 'UTF8')
FROM generate_series($1::bigint, $2::bigint - 1) AS n`

// numbered are the values that it gives.
func numbered(key string, from, to int) (names []string) {
	for n := from; n < to; n++ {
		names = append(names, fmt.Sprint(key, " ", n))
	}
	return names
}

// TestLargeTransactionsWaitOnDiskUntilTheyCommit: two take turns, small ones overtake them, and each comes whole
// and in order where it committed.
func TestLargeTransactionsWaitOnDiskUntilTheyCommit(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := spilling(t, url, kafka)
	registry := prometheus.NewRegistry()
	cfg.Registerer = registry
	subject := startReady(t, cfg)
	first, second, small := connect(t, url), connect(t, url), connect(t, url)
	execute(t, first, "BEGIN")
	execute(t, second, "BEGIN")
	execute(t, first, insertNumberedSQL, 0, 1000, "first")
	awaitSpilled(t, cfg.SpillDir, 1)
	execute(t, second, insertNumberedSQL, 0, 1000, "second")
	awaitSpilled(t, cfg.SpillDir, 2)
	execute(t, first, insertNumberedSQL, 1000, 2000, "first")
	execute(t, small, insertNumberedSQL, 0, 3, "small")
	confirmedPast(t, small, cfg.Slot, ask[string](t, small, walEndSQL))
	if n := gathered(t, registry, "converge_relay_spilled_bytes"); n < 300*2000 {
		t.Errorf("converge_relay_spilled_bytes is %v with 2000 rows on disk", n)
	}
	execute(t, second, insertNumberedSQL, 1000, 1100, "second")
	execute(t, second, "COMMIT")
	execute(t, small, insertNumberedSQL, 3, 4, "small")
	execute(t, first, "COMMIT")
	execute(t, small, insertNumberedSQL, 4, 5, "small")
	caughtUp(t, subject, small, cfg.Slot)
	if err := subject.stop(); err != nil {
		t.Fatal(err)
	}
	byKey := map[string][]string{}
	commits := map[string]string{}
	for _, r := range records(t, kafka, "topic-0") {
		key := string(r.Key)
		byKey[key] = append(byKey[key], strings.TrimSpace(string(r.Value)))
		commits[byKey[key][len(byKey[key])-1]] = headersOf(t, r)["committed_at"]
	}
	want := map[string][]string{"first": numbered("first", 0, 2000), "second": numbered("second", 0, 1100), "small": numbered("small", 0, 5)}
	if diff := cmp.Diff(want, byKey); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	if commits["first 0"] != commits["first 1999"] || commits["small 3"] >= commits["first 0"] || commits["second 0"] >= commits["small 3"] {
		t.Errorf("committed_at: first %s to %s, second %s, small 3 %s", commits["first 0"], commits["first 1999"], commits["second 0"], commits["small 3"])
	}
	if n := gathered(t, registry, "converge_relay_spilled_bytes"); n != 0 {
		t.Errorf("converge_relay_spilled_bytes is %v with nothing on disk", n)
	}
	if left, err := os.ReadDir(cfg.SpillDir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// caughtUp waits until all that was committed is confirmed, and fails at once when the relay cannot read on.
func caughtUp(t testing.TB, r *running, conn *pgx.Conn, slot string) {
	t.Helper()
	end := ask[string](t, conn, walEndSQL)
	eventually(t, "the position is confirmed", func() error {
		if err := r.Ready(); errors.Is(err, pgoutput.ErrMalformed) {
			t.Fatalf("the stream cannot be read: %v", err)
		}
		if !ask[bool](t, conn, confirmedPastSQL, slot, end) {
			return errors.New("it is still behind")
		}
		return nil
	})
}

// gathered returns the sum of a gauge or counter.
func gathered(t testing.TB, registry *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	if n, err := testutil.GatherAndCount(registry, name); err != nil || n == 0 {
		t.Fatalf("%s: %d, %v", name, n, err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			for _, m := range family.GetMetric() {
				sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// TestWhatIsRolledBackIsNotPublishedOutOfAStream: savepoints, in each other, released and taken back, and a
// whole transaction. The first rows of the table are in one that is taken back, its description with them.
func TestWhatIsRolledBackIsNotPublishedOutOfAStream(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := spilling(t, url, kafka)
	subject := startReady(t, cfg)
	conn, other := connect(t, url), connect(t, url)
	rows := func(from, to int) { execute(t, conn, insertNumberedSQL, from, to, "k") }
	execute(t, conn, "BEGIN")
	execute(t, conn, "SAVEPOINT a")
	rows(0, 1000)
	awaitSpilled(t, cfg.SpillDir, 1)
	execute(t, conn, "ROLLBACK TO a")
	rows(0, 500)
	execute(t, conn, "SAVEPOINT b")
	rows(500, 1000)
	execute(t, conn, "SAVEPOINT c")
	rows(1000, 1500)
	execute(t, conn, "SAVEPOINT d")
	rows(1500, 2000)
	execute(t, conn, "RELEASE d")
	execute(t, conn, "ROLLBACK TO c")
	rows(1000, 1300)
	execute(t, conn, "RELEASE b")
	execute(t, conn, "SAVEPOINT e")
	rows(7000, 7001) // too few to be sent before they are taken back
	execute(t, conn, "ROLLBACK TO e")
	rows(1300, 1310)
	execute(t, other, "BEGIN")
	execute(t, other, insertNumberedSQL, 0, 1000, "never")
	awaitSpilled(t, cfg.SpillDir, 2)
	execute(t, other, "ROLLBACK")
	execute(t, other, "CREATE TABLE written ()") // the end of a transaction that is rolled back is not written at once
	awaitSpilled(t, cfg.SpillDir, 1)
	execute(t, conn, "COMMIT")
	// The server takes the table for described, and no other transaction did so.
	rows(1310, 1311)
	caughtUp(t, subject, other, cfg.Slot)
	if err := subject.stop(); err != nil {
		t.Fatal(err)
	}
	byKey := map[string][]string{}
	for _, r := range records(t, kafka, "topic-0") {
		byKey[string(r.Key)] = append(byKey[string(r.Key)], strings.TrimSpace(string(r.Value)))
	}
	if diff := cmp.Diff(map[string][]string{"k": numbered("k", 0, 1311)}, byKey); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// TestOpenLargeTransactionOutlivesTheRelay: its first rows lie in front of what is confirmed, and in a file
// that dies with the relay. The server sends them again.
func TestOpenLargeTransactionOutlivesTheRelay(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	url, kafka := outboxDatabase(t), startBroker(t)
	c := childConfig{DatabaseURL: soonStreamed(t, url), Brokers: kafka.addrs(), Slot: uniqueSlot(), SpillDir: t.TempDir()}
	relayProcess := startChild(t, self, c)
	conn, other := connect(t, url), connect(t, url)
	eventually(t, "the slot is read", slotRead(t, other, c.Slot))
	execute(t, conn, "BEGIN")
	execute(t, conn, insertNumberedSQL, 0, 1000, "k")
	awaitSpilled(t, c.SpillDir, 1)
	behind := ask[string](t, other, walEndSQL)
	execute(t, other, insertNumberedSQL, 0, 1, "small")
	confirmedPast(t, other, c.Slot, behind)
	confirmedPast(t, other, c.Slot, ask[string](t, other, walEndSQL)) // by a keepalive
	relayProcess.kill()
	if n := len(spilledFiles(t, c.SpillDir)); n != 1 {
		t.Fatalf("%d files are left behind, want 1", n)
	}
	stale := spilledFiles(t, c.SpillDir)[0]
	relayProcess = startChild(t, self, c)
	execute(t, conn, insertNumberedSQL, 1000, 2000, "k")
	eventually(t, "it is on disk anew, and alone", func() error {
		if files := spilledFiles(t, c.SpillDir); len(files) != 1 || files[0] == stale {
			return fmt.Errorf("there are %v", files)
		}
		return nil
	})
	confirmedPast(t, other, c.Slot, ask[string](t, other, walEndSQL))
	relayProcess.kill()
	// This time it commits while nobody reads.
	execute(t, conn, insertNumberedSQL, 2000, 2010, "k")
	execute(t, conn, "COMMIT")
	relayProcess = startChild(t, self, c)
	confirmedPast(t, other, c.Slot, ask[string](t, other, walEndSQL))
	var got []string
	for _, r := range records(t, kafka, "topic-0") {
		if string(r.Key) == "k" {
			got = append(got, strings.TrimSpace(string(r.Value)))
		}
	}
	if diff := cmp.Diff(numbered("k", 0, 2010), got); diff != "" {
		t.Errorf("records (-want +got):\n%s\n%s", diff, &relayProcess.output)
	}
}

// TestStreamedTransactionsBecomeTheSameRecords: two relays read one history, one of them early.
func TestStreamedTransactionsBecomeTheSameRecords(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	url, plain, early := outboxDatabase(t), startBroker(t), startBroker(t)
	cfg := config(url, plain)
	startReady(t, cfg)
	streaming := spilling(t, url, early)
	startReady(t, streaming)
	conns := []*pgx.Conn{connect(t, url), connect(t, url), connect(t, url)}
	depth := make([]int, len(conns))
	serial := 0
	for range 120 {
		i := rng.IntN(len(conns))
		conn := conns[i]
		switch p := rng.IntN(10); {
		case depth[i] == 0:
			execute(t, conn, "BEGIN")
			depth[i] = 1
		case p < 5:
			n := 1 + rng.IntN(200)
			execute(t, conn, insertNumberedSQL, serial, serial+n, fmt.Sprint("key-", i))
			serial += n
		case p < 7:
			execute(t, conn, fmt.Sprint("SAVEPOINT s", depth[i]))
			depth[i]++
		case p < 8 && depth[i] > 1:
			depth[i] = 1 + rng.IntN(depth[i]-1)
			execute(t, conn, fmt.Sprint("ROLLBACK TO s", depth[i]))
			depth[i]++
		case p < 9:
			execute(t, conn, "COMMIT")
			depth[i] = 0
		default:
			execute(t, conn, []string{"COMMIT", "ROLLBACK"}[rng.IntN(2)])
			depth[i] = 0
		}
	}
	for i, conn := range conns {
		if depth[i] > 0 {
			execute(t, conn, "COMMIT")
		}
	}
	end := ask[string](t, conns[0], walEndSQL)
	confirmedPast(t, conns[0], cfg.Slot, end)
	confirmedPast(t, conns[0], streaming.Slot, end)
	want, got := perPartition(records(t, plain, "topic-0")), perPartition(records(t, early, "topic-0"))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("records (-protocol 1 +protocol 2):\n%.3000s", diff)
	}
	if len(want) == 0 {
		t.Error("there are no records")
	}
	var streamed int64
	if streamed = ask[int64](t, conns[0], "SELECT stream_txns FROM pg_stat_replication_slots WHERE slot_name = $1", streaming.Slot); streamed == 0 {
		t.Error("no transaction was streamed")
	}
	t.Logf("%d transactions streamed", streamed)
}

// perPartition is everything that records say, in order; that of headers is nobody's promise.
func perPartition(all []*kgo.Record) map[int32][]string {
	found := map[int32][]string{}
	for _, r := range all {
		text := fmt.Sprintf("%s %q %t %d", r.Key, bytes.TrimSpace(r.Value), r.Value == nil, r.Timestamp.UnixMilli())
		var headers []string
		for _, h := range r.Headers {
			headers = append(headers, fmt.Sprintf(" %s=%q", h.Key, h.Value))
		}
		slices.Sort(headers)
		text += strings.Join(headers, "")
		found[r.Partition] = append(found[r.Partition], text)
	}
	return found
}

// TestUnusableSpillDirectoryEndsRun: it was chosen wrongly, and the error names it.
func TestUnusableSpillDirectoryEndsRun(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := spilling(t, url, kafka)
	cfg.SpillDir = filepath.Join(cfg.SpillDir, "file", "below")
	if err := os.WriteFile(filepath.Dir(cfg.SpillDir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	subject, err := relay.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := subject.Run(ctx); err == nil || !strings.Contains(err.Error(), cfg.SpillDir) {
		t.Errorf("Run returned %v, want an error that names %s", err, cfg.SpillDir)
	}
}

// TestSpillDirectoryThatVanishesLosesNothing: the session ends and says where, the next has all of it again.
func TestSpillDirectoryThatVanishesLosesNothing(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := spilling(t, url, kafka)
	subject := startReady(t, cfg)
	conn, other := connect(t, url), connect(t, url)
	execute(t, conn, "BEGIN")
	execute(t, conn, insertNumberedSQL, 0, 1000, "k")
	awaitSpilled(t, cfg.SpillDir, 1)
	if err := os.RemoveAll(cfg.SpillDir); err != nil {
		t.Fatal(err)
	}
	// A file where the directory should be made anew keeps the relay from doing so for a while.
	if err := os.WriteFile(cfg.SpillDir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	execute(t, conn, insertNumberedSQL, 1000, 2000, "k")
	eventually(t, "the directory is named", func() error {
		if err := subject.Ready(); err == nil || !strings.Contains(err.Error(), cfg.SpillDir) {
			return fmt.Errorf("Ready says %v", err)
		}
		return nil
	})
	if err := os.Remove(cfg.SpillDir); err != nil {
		t.Fatal(err)
	}
	execute(t, conn, "COMMIT")
	confirmedPast(t, other, cfg.Slot, ask[string](t, other, walEndSQL))
	var got []string
	for _, r := range records(t, kafka, "topic-0") {
		got = append(got, strings.TrimSpace(string(r.Value)))
	}
	if diff := cmp.Diff(numbered("k", 0, 2000), got); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// TestSpillDirectoryIsSharedByRelays: what another slot's or another server's relay keeps is not touched, what
// the slot's own former sessions have left is removed, and not by a relay that stands by.
func TestSpillDirectoryIsSharedByRelays(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := spilling(t, url, kafka)
	conn, other := connect(t, url), connect(t, url)
	system := ask[string](t, conn, "SELECT system_identifier::text FROM pg_control_system()")
	leave := func(slot, system string) string {
		file := filepath.Join(cfg.SpillDir, slot+"."+system+".1.spill", "77")
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("left behind"), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	stale := leave(cfg.Slot, system)
	theirs := []string{leave(cfg.Slot+"_b", system), leave(cfg.Slot, "1"+system)}
	startReady(t, cfg)
	if _, err := os.Stat(stale); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a former session has left: %v, want it gone", err)
	}
	untouched := func() {
		t.Helper()
		for _, file := range theirs {
			if _, err := os.Stat(file); err != nil {
				t.Fatalf("what belongs to another relay: %v", err)
			}
		}
	}
	untouched()
	execute(t, conn, "BEGIN")
	execute(t, conn, insertNumberedSQL, 0, 1000, "k")
	awaitSpilled(t, cfg.SpillDir, len(theirs)+1)
	standby := start(t, cfg)
	eventually(t, "the second stands by", func() error {
		if err := standby.Ready(); err == nil || !strings.Contains(err.Error(), "standing by") {
			return fmt.Errorf("it says %v", err)
		}
		return nil
	})
	execute(t, conn, "COMMIT")
	confirmedPast(t, other, cfg.Slot, ask[string](t, other, walEndSQL))
	if n := len(records(t, kafka, "topic-0")); n != 1000 {
		t.Errorf("%d records, want 1000", n)
	}
	untouched()
}

// TestTableDescribedAnewBesideAStream: what the transaction was told of the table is older than what a small one was.
func TestTableDescribedAnewBesideAStream(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := spilling(t, url, kafka)
	conn, other := connect(t, url), connect(t, url)
	execute(t, other, "CREATE PUBLICATION converge FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true)")
	subject := startReady(t, cfg)
	execute(t, conn, "BEGIN")
	execute(t, conn, insertNumberedSQL, 0, 1000, "large")
	awaitSpilled(t, cfg.SpillDir, 1)
	execute(t, other, `ALTER PUBLICATION converge SET TABLE outbox (event_id, topic, aggregate_type, aggregate_id,
		aggregate_version, event_type, content_type, payload, headers, created_at)`)
	execute(t, other, insertNumberedSQL, 0, 1, "small")
	execute(t, conn, "COMMIT")
	execute(t, other, insertNumberedSQL, 1, 2, "small")
	caughtUp(t, subject, other, cfg.Slot)
	if n := len(records(t, kafka, "topic-0")); n != 1002 {
		t.Errorf("%d records, want 1002", n)
	}
}

// TestServerWaitsForALargeTransactionToBePublished: Kafka does not answer for longer than the server waits for a
// sign of life, in the middle of a file.
func TestServerWaitsForALargeTransactionToBePublished(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := spilling(t, url, kafka)
	cfg.BufferBytes = 256 << 10
	startReady(t, cfg)
	conn := connect(t, url)
	reader := kafka.reader(t, "topic-0")
	execute(t, conn, insertNumberedSQL, 0, 1, "small") // the topic is there
	reader.next(t)
	sender := ask[int](t, conn, senderSQL, cfg.Slot)
	kafka.gate.pause()
	execute(t, conn, insertNumberedSQL, 0, 5000, "large")
	held := ask[string](t, conn, walEndSQL)
	select {
	case <-time.After(20 * time.Second): // wal_sender_timeout is 15 s
	case <-t.Context().Done():
	}
	if ask[bool](t, conn, confirmedPastSQL, cfg.Slot, held) {
		t.Error("the transaction is confirmed, which Kafka does not have")
	}
	kafka.gate.open()
	execute(t, conn, insertNumberedSQL, 1, 2, "small")
	confirmedPast(t, conn, cfg.Slot, ask[string](t, conn, walEndSQL))
	if now := ask[int](t, conn, senderSQL, cfg.Slot); now != sender {
		t.Errorf("the server hung up: process %d reads for us, it was %d", now, sender)
	}
	if n := len(records(t, kafka, "topic-0")); n != 5002 {
		t.Errorf("%d records, want 5002", n)
	}
}

// TestDrainInTheMiddleOfALargeTransaction ends in time, and what was on its topic already is not sent again when
// it is published exactly once.
func TestDrainInTheMiddleOfALargeTransaction(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := spilling(t, url, kafka)
	cfg.ExactlyOnce = true
	cfg.BufferBytes = 256 << 10
	subject := startReady(t, cfg)
	conn := connect(t, url)
	const rows = 60_000
	execute(t, conn, insertNumberedSQL, 0, rows, "large")
	kafka.reader(t, "topic-0").next(t) // uncommitted records count here
	if err := subject.stop(); err != nil {
		t.Fatal(err)
	}
	before := len(committed(t, cfg.Brokers, "topic-0"))
	startReady(t, cfg)
	confirmedPast(t, conn, cfg.Slot, ask[string](t, conn, walEndSQL))
	var got []string
	for _, r := range committed(t, cfg.Brokers, "topic-0") {
		got = append(got, strings.TrimSpace(string(r.Value)))
	}
	t.Logf("%d of %d rows were there before", before, len(got))
	if diff := cmp.Diff(numbered("large", 0, rows), got); diff != "" {
		t.Errorf("records (-want +got):\n%.2000s", diff)
	}
}

// TestMutantsOfStreamsAreFound: the tests of this page fail on the faults that they are there for.
func TestMutantsOfStreamsAreFound(t *testing.T) {
	mutants.Find(t, "converge/relay", []mutants.Fault{
		{File: "relay/streamed.go", Old: "\t\treturn true, s.receive(message)\n", New: `		block := s.spill.current
		err := s.receive(message)
		if err == nil && message[0] == pgoutput.KindStreamStop && planted("publish early") {
			s.begin(pgoutput.Begin{CommitLSN: header.Start}, header)
			err = s.publishSpilled(ctx, block)
			s.transaction = nil
			s.tracker.commit(0)
		}
		return true, err
`},
		{File: "relay/spill.go", Old: "\treturn found\n", New: "\treturn found && !planted(\"publish what is taken back\")\n"},
		{File: "relay/streamed.go", Old: "\t\ts.described++\n", New: "\t\ts.described++\n\t\tif planted(\"forget the relation\") {\n\t\t\treturn nil\n\t\t}\n"},
		{File: "relay/streamed.go", Old: "\tadopt(connection, s.layouts)\n", New: "\tif !planted(\"forget the relation behind\") {\n\t\tadopt(connection, s.layouts)\n\t}\n"},
		{File: "relay/streamed.go", Old: "known.described > l.described", New: "known.described > l.described && !planted(\"believe the older relation\")"},
		{File: "relay/spill.go", Old: "if matches, _ := filepath.Match(", New: "if planted(\"keep what is left\") {\n\t\t\tbreak\n\t\t}\n\t\tif matches, _ := filepath.Match("},
		{File: "relay/spill.go", Old: "name := slot + \".\" + server.System + \".\"", New: "name := slot + map[bool]string{false: \".\" + server.System + \".\"}[planted(\"remove what is another's\")]"},
	}, map[string]mutants.Verdict{
		"publish early":              {Run: "TestLargeTransactionsWaitOnDiskUntilTheyCommit", Says: "records (-want +got)"},
		"publish what is taken back": {Run: "TestWhatIsRolledBackIsNotPublishedOutOfAStream", Says: "records (-want +got)"},
		"forget the relation":        {Run: "TestLargeTransactionsWaitOnDiskUntilTheyCommit", Says: "the stream cannot be read"},
		"forget the relation behind": {Run: "TestWhatIsRolledBackIsNotPublishedOutOfAStream", Says: "the stream cannot be read"},
		"believe the older relation": {Run: "TestNewerDescriptionOfATableIsKept", Says: "is the transaction's"},
		"keep what is left":          {Run: "TestSpillDirectoryIsSharedByRelays", Says: "what a former session has left"},
		"remove what is another's":   {Run: "TestSpillDirectoryIsSharedByRelays", Says: "what belongs to another relay"},
	})
}

// TestRowLargerThanAllMemoryIsPublished, as it comes and out of a file.
func TestRowLargerThanAllMemoryIsPublished(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := spilling(t, url, kafka)
	cfg.BufferBytes = 256 << 10
	subject := startReady(t, cfg)
	conn := connect(t, url)
	execute(t, conn, insertNumberedSQL, 0, 1, "small")
	insertRow(t, conn, "topic-0", "large", strings.Repeat("x", 600<<10))
	execute(t, conn, "BEGIN")
	execute(t, conn, insertNumberedSQL, 1, 1000, "small")
	insertRow(t, conn, "topic-0", "large", strings.Repeat("y", 700<<10))
	awaitSpilled(t, cfg.SpillDir, 1)
	execute(t, conn, "COMMIT")
	caughtUp(t, subject, conn, cfg.Slot)
	sizes := map[int]bool{}
	all := records(t, kafka, "topic-0")
	for _, r := range all {
		sizes[len(r.Value)] = true
	}
	if len(all) != 1002 || !sizes[600<<10] || !sizes[700<<10] {
		t.Errorf("%d records, want 1002; sizes %v", len(all), sizes)
	}
}
