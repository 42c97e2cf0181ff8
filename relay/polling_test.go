package relay_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	neturl "net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"converge/internal/mutants"
	"converge/relay"
)

const polling = source(relay.SourcePolling)

// Numbers are handed out before commits, so a row may be committed behind others with larger numbers.
func TestPollingFindsARowThatWasCommittedLate(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := polling.config(url, kafka)
	registry := prometheus.NewRegistry()
	cfg.Registerer = registry
	startReady(t, cfg)
	conn, late := connect(t, url), connect(t, url)
	reader := kafka.reader(t, "orders")
	execute(t, late, "BEGIN")
	insertRow(t, late, "orders", "late", "late")
	insertRow(t, conn, "orders", "k", "early")
	record := reader.next(t)
	if string(record.Value) != "early" {
		t.Fatalf("record %q came first", record.Value)
	}
	headers := headersOf(t, record)
	if created := ask[time.Time](t, conn, "SELECT created_at FROM outbox WHERE event_id = $1::text::uuid", headers["event_id"]); headers["committed_at"] != created.UTC().Format(time.RFC3339Nano) || headers["replay"] != "" {
		t.Errorf("the record says %v, want committed_at %s and no replay", headers, created.UTC())
	}
	eventually(t, "the row is marked", doneWith(t, conn, cfg, ""))
	execute(t, late, "COMMIT")
	insertRow(t, conn, "orders", "k", "next")
	if got := reader.value(t); got != "late" {
		t.Fatalf("record %q came, want the late one", got)
	}
	eventually(t, "the row is marked", doneWith(t, conn, cfg, ""))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if strings.Contains(f.GetName(), "slot") {
			t.Errorf("there is no slot, but %s", f.GetName())
		}
	}
}

// What is committed between reading a page and marking it has its number among those of the page.
func TestPollingMarksWhatItHasSentAlone(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := polling.config(url, kafka)
	subject := startReady(t, cfg)
	conn, late := connect(t, url), connect(t, url)
	reader := kafka.reader(t, "orders")
	insertRow(t, conn, "orders", "k", "0")
	reader.next(t)
	kafka.gate.pause()
	execute(t, conn, "BEGIN")
	execute(t, late, "BEGIN")
	insertRow(t, conn, "orders", "k", "1")
	insertRow(t, late, "orders", "k", "3")
	insertRow(t, conn, "orders", "k", "2")
	execute(t, conn, "COMMIT")
	eventually(t, "the page is under way", func() error {
		if err := subject.Ready(); err == nil || !strings.Contains(err.Error(), "acknowledged nothing") {
			return fmt.Errorf("ready is %w", err)
		}
		return nil
	})
	execute(t, late, "COMMIT")
	kafka.gate.open()
	eventually(t, "all rows are marked", doneWith(t, conn, cfg, ""))
	insertRow(t, conn, "orders", "k", "4")
	for _, want := range []string{"1", "2", "3", "4"} {
		if got := reader.value(t); got != want {
			t.Fatalf("record %s came, want %s", got, want)
		}
	}
}

func TestPollingMarksNothingBeforeKafkaAcknowledges(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := polling.config(url, kafka)
	cfg.DrainTimeout = 200 * time.Millisecond
	subject := startReady(t, cfg)
	conn := connect(t, url)
	reader := kafka.reader(t, "orders")
	insertRow(t, conn, "orders", "k", "0")
	reader.next(t)
	eventually(t, "the row is marked", doneWith(t, conn, cfg, ""))
	kafka.gate.pause()
	insertRow(t, conn, "orders", "k", "1")
	eventually(t, "the relay says that Kafka does not answer", func() error {
		if err := subject.Ready(); err == nil || !strings.Contains(err.Error(), "acknowledged nothing") {
			return fmt.Errorf("ready is %w", err)
		}
		return nil
	})
	if doneWith(t, conn, cfg, "")() == nil {
		t.Fatal("a row that Kafka does not have was marked")
	}
	if err := subject.stop(); !errors.Is(err, relay.ErrDrainTimedOut) {
		t.Errorf("Run returned %v, want ErrDrainTimedOut", err)
	}
	if doneWith(t, conn, cfg, "")() == nil {
		t.Fatal("a row that Kafka does not have was marked while draining")
	}
	kafka.gate.shut()
	kafka.gate.open()
	startReady(t, cfg)
	for got := "0"; got != "1"; {
		if got = reader.value(t); got != "0" && got != "1" {
			t.Fatalf("record %s came", got)
		}
	}
	eventually(t, "the row is marked", doneWith(t, conn, cfg, ""))
}

// killPolling kills binary's relay again and again while rows are written, some of them by transactions that stay
// open while others with larger numbers are committed, and returns what is on the topics then.
func killPolling(t *testing.T, binary string, kills int, seed uint64) finding {
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	url, kafka := outboxDatabase(t), startBroker(t)
	c := childConfig{DatabaseURL: url, Brokers: kafka.addrs(), Slot: uniqueSlot(), Source: relay.SourcePolling}
	conn := connect(t, url)
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
	process := startChild(t, binary, c)
	large := 0
	for range kills {
		rows := 1 + rng.IntN(8000)
		slow, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		execute(t, slow, "SET search_path = "+service)
		execute(t, slow, "BEGIN")
		execute(t, slow, insertLargeSQL, large, large+rows)
		pause(t, time.Duration(rng.IntN(300))*time.Millisecond)
		execute(t, slow, "COMMIT")
		slow.Close(t.Context())
		for n := range rows {
			book.note(&book.committed, []entry{{id: largeID(large + n), key: "large", sequence: large + n}})
		}
		large += rows
		pause(t, time.Duration(rng.IntN(700))*time.Millisecond)
		process.kill()
		process = startChild(t, binary, c)
	}
	stopWriting()
	writers.Wait()
	eventually(t, "all rows are marked", doneWith(t, conn, relay.Config{Source: relay.SourcePolling}, ""))
	process.kill()
	var delivered []entry
	for _, r := range committed(t, kafka.addrs(), "topic-0", "topic-1") {
		delivered = append(delivered, entryOf(t, r))
	}
	f := book.check(delivered)
	t.Logf("%d kills: %d rows committed, %d rolled back, %d records, %d of them repeats", kills, len(book.committed), len(book.rolledBack), len(delivered), f.repeats)
	if f.bad() {
		t.Logf("the last relay's log:\n%s", &process.output)
	}
	return f
}

func pause(t testing.TB, d time.Duration) {
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

func TestPollingRelayThatIsKilledAgainAndAgainLosesNothing(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if f := killPolling(t, self, often(12), uint64(time.Now().UnixNano())); f.bad() {
		t.Errorf("lost %d, published though rolled back %d, out of order %d: %s", f.lost, f.forged, f.disordered, f.example)
	}
}

// The lock and the right to mark are one connection: a relay that was cut off can mark nothing.
func TestPollingRelayThatWasCutOffHandsOver(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := polling.config(url, kafka)
	startReady(t, cfg)
	conn := connect(t, url)
	const pollersSQL = "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND a.application_name = 'converge relay' AND a.datname = current_database()"
	if n := ask[int](t, conn, pollersSQL); n != 1 {
		t.Fatalf("%d relays have a lock", n)
	}
	status, err := relay.Inspect(t.Context(), cfg)
	if err != nil || !status.Healthy() || !status.Active || status.Backlog == nil || *status.Backlog != 0 {
		t.Errorf("the status is %+v, %v", status, err)
	}
	reader := kafka.reader(t, "orders")
	const rows = 200
	for i := range rows {
		if i%50 == 25 {
			execute(t, conn, "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid = $1", status.PID)
			eventually(t, "another connection has the lock", func() error {
				now, err := relay.Inspect(t.Context(), cfg)
				if err == nil && (!now.Active || now.PID == status.PID) {
					err = errors.New("not yet")
				}
				status = now
				return err
			})
		}
		insertRow(t, conn, "orders", "k", fmt.Sprint(i))
	}
	takeInOrder(t, reader, rows)
	eventually(t, "all rows are marked", doneWith(t, conn, cfg, ""))
}

func TestPollingFailsClosedWithTheFix(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		sql  string
		says string
	}{
		"no published_at":      {"ALTER TABLE outbox DROP published_at", "ADD published_at timestamptz"},
		"no seq":               {"ALTER TABLE outbox DROP seq", "ADD seq bigint"},
		"numbers taken ahead":  {"ALTER SEQUENCE outbox_seq CACHE 20", "CACHE 1"},
		"no table":             {"DROP TABLE outbox", "name outbox tables that exist"},
		"a column is missing":  {"ALTER TABLE outbox DROP headers", "columns event_id"},
		"seq is no bigint":     {"ALTER TABLE outbox ALTER seq TYPE integer", "no column seq of type bigint"},
		"published_at is text": {"ALTER TABLE outbox ALTER published_at TYPE text", "no column published_at of type timestamptz"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, kafka := outboxDatabase(t), startBroker(t)
			execute(t, connect(t, url), test.sql)
			cfg := polling.config(url, kafka)
			subject := start(t, cfg)
			select {
			case <-subject.done:
			case <-time.After(patience):
				t.Fatal("Run goes on")
			}
			if subject.err == nil || !strings.Contains(subject.err.Error(), test.says) {
				t.Errorf("Run returned %v, want what says %q", subject.err, test.says)
			}
			findings, err := relay.Diagnose(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, f := range findings {
				found = found || f.Level == relay.Fail && strings.Contains(f.Found+" "+f.Fix, test.says)
			}
			if !found {
				t.Errorf("doctor found %+v, want what says %q", findings, test.says)
			}
		})
	}
}

func TestPollingNeedsNoLogicalDecodingAndFewRights(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := polling.config(url, kafka)
	conn := connect(t, url)
	role := "poller_" + cfg.Slot
	execute(t, conn, fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD 'secret'", role))
	t.Cleanup(func() {
		if _, err := conn.Exec(context.Background(), fmt.Sprintf("DROP OWNED BY %[1]s; DROP ROLE %[1]s", role)); err != nil {
			t.Error(err)
		}
	})
	execute(t, conn, fmt.Sprintf("GRANT USAGE ON SCHEMA %s TO %s", service, role))
	execute(t, conn, fmt.Sprintf("GRANT SELECT ON outbox TO %s", role))
	as, err := neturl.Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	as.User = neturl.UserPassword(role, "secret")
	cfg.DatabaseURL = as.String()
	subject := start(t, cfg)
	select {
	case <-subject.done:
	case <-time.After(patience):
		t.Fatal("Run goes on")
	}
	if subject.err == nil || !strings.Contains(subject.err.Error(), "GRANT UPDATE (published_at)") {
		t.Errorf("Run returned %v", subject.err)
	}
	execute(t, conn, fmt.Sprintf("GRANT UPDATE (published_at) ON outbox TO %s", role))
	subject = startReady(t, cfg)
	findings, err := relay.Diagnose(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		if f.Level == relay.Fail {
			t.Errorf("doctor found %+v", f)
		}
	}
	insertRow(t, conn, "orders", "k", "0")
	kafka.reader(t, "orders").next(t)
	eventually(t, "the row is marked", doneWith(t, conn, cfg, ""))
	if err := subject.stop(); err != nil {
		t.Error(err)
	}
}

// TestPollingTestsFindPlantedFaults: the tests of this page fail on the faults that they are there for.
func TestPollingTestsFindPlantedFaults(t *testing.T) {
	mutants.Find(t, "converge/relay", []mutants.Fault{
		{File: "relay/polling.go", Old: "	s.push()\n	var refused *refusal\n",
			New: "	s.push()\n	if planted(\"marks early\") {\n		_ = s.mark(ctx, table)\n	}\n	var refused *refusal\n"},
		{File: "relay/polling.go", Old: "WHERE published_at IS NULL\\nORDER BY seq\\nLIMIT \" + strconv.Itoa(pageRows)",
			New: "WHERE published_at IS NULL\" + func() string {\n		if planted(\"has a cursor\") && s.last > 0 {\n			return \" AND seq > \" + strconv.FormatInt(s.last, 10)\n		}\n		return \"\"\n	}() + \"\\nORDER BY seq\\nLIMIT \" + strconv.Itoa(pageRows)"},
		{File: "relay/polling.go", Old: "	place pgoutput.LSN // of the row that was read last\n", New: "	place pgoutput.LSN\n	last  int64\n"},
		{File: "relay/polling.go", Old: "	s.sent.seqs = append(s.sent.seqs, int64Of(tuple[len(tuple)-1]))\n",
			New: "	s.sent.seqs = append(s.sent.seqs, int64Of(tuple[len(tuple)-1]))\n		s.last = max(s.last, int64Of(tuple[len(tuple)-1]))\n"},
		{File: "relay/polling.go", Old: "fmt.Sprintf(markSQL, quoteTable(table))",
			New: "fmt.Sprintf(plantedText(\"marks a range\", markSQL, \"row.seq = sent.seq\\n  AND row.event_id = sent.event_id\", \"row.seq >= $3 AND sent.seq = $4\"), quoteTable(table))"},
		{File: "relay/polling_boot.go", Old: "	if rows[0][0] == yes {\n		return nil\n	}\n	pid,", New: "	if rows[0][0] == yes || planted(\"has no lock\") {\n		return nil\n	}\n	pid,"},
	}, map[string]mutants.Verdict{
		"marks early":   {Run: "TestPollingMarksNothingBeforeKafkaAcknowledges", Says: "a row that Kafka does not have was marked"},
		"marks a range": {Run: "TestPollingMarksWhatItHasSentAlone", Says: "record 4 came, want 3"},
		"has a cursor":  {Run: "TestPollingFindsARowThatWasCommittedLate", Says: "want the late one"},
		"has no lock":   {Run: "TestStandbyTakesOver/polling", Says: "both relays read"},
	})
}
