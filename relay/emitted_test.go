package relay_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/internal/mutants"
	"converge/internal/pgtest"
	"converge/producers/outbox"
	"converge/relay"
)

// messages is the configuration of a relay that publishes messages; the publication is the test's own.
func messages(url string, b *broker) relay.Config {
	cfg := config(url, b)
	cfg.Source, cfg.Tables = relay.SourceMessage, nil
	return cfg
}

const emitSQL = "SELECT pg_logical_emit_message($1::boolean, $2::text, $3::text)"

func emit(t testing.TB, conn *pgx.Conn, content string) {
	t.Helper()
	execute(t, conn, emitSQL, true, outbox.MessagePrefix, content)
}

// plainMessage is a message of topic-0 with a payload.
func plainMessage(id uuid.UUID, key string, version int, payload string) string {
	return fmt.Sprintf(`{"event_id": %q, "topic": "topic-0", "aggregate_type": "thing", "aggregate_id": %q, "aggregate_version": %d,
		"event_type": "Happened", "payload": %s}`, id, key, version, payload)
}

func TestMessagesBecomeRecordsOfTheContract(t *testing.T) {
	t.Parallel()
	url, kafka := pgtest.URL(t), startBroker(t)
	cfg := messages(url, kafka)
	subject := startReady(t, cfg)
	conn := connect(t, url)
	const id = "0190163d-8694-739b-aea5-966c26f8ad91"
	const head = `{"event_id": "` + id + `", "topic": "orders", "aggregate_type": "order", "aggregate_id": "key-1", "aggregate_version": 7, `
	execute(t, conn, "BEGIN")
	emit(t, conn, head+`"event_type": "OrderPlaced", "payload": {"n" : 1}, "created_at": "2026-11-23T12:00:00.123456Z",
		"headers": {"correlation_id": "c\"1", "event_id": "forged"}}`)
	emit(t, conn, head+`"event_type": "OrderPlaced", "content_type": "avro/binary", "payload_base64": "AAH/", "headers": {"occurred_at": "2026-11-23T11:00:00Z"}}`)
	emit(t, conn, head+`"event_type": "OrderForgotten", "payload": null}`)
	emit(t, conn, head+`"content_type": "text/plain", "payload_base64": "", "headers": {"event_id": "kept"}}`)
	execute(t, conn, emitSQL, true, "another prefix", "not for us")
	execute(t, conn, "COMMIT")
	caughtUp(t, subject, conn, cfg.Slot)
	all := records(t, kafka, "orders")
	if len(all) != 4 {
		t.Fatalf("%d records, want 4", len(all))
	}
	committed := headersOf(t, all[0])["committed_at"]
	event := func(eventType, contentType, occurred string, more ...string) map[string]string {
		h := map[string]string{"event_id": id, "event_type": eventType, "aggregate_type": "order", "aggregate_version": "7",
			"occurred_at": occurred, "committed_at": committed}
		if contentType != "" {
			h["content-type"] = contentType
		}
		for i := 0; i < len(more); i += 2 {
			h[more[i]] = more[i+1]
		}
		return h
	}
	for i, want := range []struct {
		value   []byte
		headers map[string]string
	}{
		{[]byte(`{"n" : 1}`), event("OrderPlaced", "application/json", "2026-11-23T12:00:00.123456Z", "correlation_id", `c"1`)},
		{[]byte{0, 1, 255}, event("OrderPlaced", "avro/binary", "2026-11-23T11:00:00Z")},
		{nil, event("OrderForgotten", "", committed)},
		{[]byte{}, map[string]string{"event_id": "kept", "content-type": "text/plain"}},
	} {
		r := all[i]
		if diff := cmp.Diff(want.headers, headersOf(t, r)); diff != "" {
			t.Errorf("headers of record %d (-want +got):\n%s", i, diff)
		}
		if string(r.Key) != "key-1" || string(r.Value) != string(want.value) || (r.Value == nil) != (want.value == nil) {
			t.Errorf("record %d is %q: %#v, want %#v", i, r.Key, r.Value, want.value)
		}
	}
}

// encoder gives events the bytes that they carry.
type encoder struct{ contentType string }

func (e encoder) Encode(_ string, data any) (topic, contentType string, value []byte, err error) {
	return "orders", e.contentType, data.([]byte), nil
}

// TestEmittedEventsBecomeTheRecordsOfAppendedOnes: the same events, by a table and by messages.
func TestEmittedEventsBecomeTheRecordsOfAppendedOnes(t *testing.T) {
	t.Parallel()
	url, byTable, byMessage := outboxDatabase(t), startBroker(t), startBroker(t)
	table := config(url, byTable)
	message := messages(url, byMessage)
	message.Publication = "messages"
	reading := []*running{startReady(t, table), startReady(t, message)}
	conn := connect(t, url)
	ctx := outbox.WithCause(t.Context(), outbox.Cause{CorrelationID: "c\u2028<1>", CausationID: "c2", Traceparent: "00-ab-cd-01"})
	tx, err := conn.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var events []outbox.Event
	for i, data := range [][]byte{[]byte(`{"a" : "<ü>", "a": 2}`), {0, 1, 2, 255}, []byte("not json"), nil, {}, []byte("\"\xff\"")} {
		events = append(events, outbox.Event{ID: uuid.New(), Type: "Happened", AggregateType: "thing", AggregateID: "k", AggregateVersion: int64(i),
			OccurredAt: time.Now(), Data: data})
	}
	for _, contentType := range []string{"application/json", "avro/binary"} {
		box := outbox.New(encoder{contentType})
		if err := box.Append(ctx, tx, events...); err != nil {
			t.Fatal(err)
		}
		if err := box.Emit(ctx, tx, events...); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	caughtUp(t, reading[0], conn, table.Slot)
	caughtUp(t, reading[1], conn, message.Slot)
	want, got := perPartition(records(t, byTable, "orders")), perPartition(records(t, byMessage, "orders"))
	if diff := cmp.Diff(want, got); diff != "" || len(want) == 0 {
		t.Errorf("records (-appended +emitted):\n%s", diff)
	}
	letters := func(b *broker, cfg relay.Config) (n int) {
		if b.TopicInfo(cfg.Slot+".relay.dlq") != nil {
			n = len(records(t, b, cfg.Slot+".relay.dlq"))
		}
		return n
	}
	if n := letters(byMessage, message); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

func TestRolledBackMessagesAreNotPublished(t *testing.T) {
	t.Parallel()
	url, kafka := pgtest.URL(t), startBroker(t)
	cfg := messages(url, kafka)
	subject := startReady(t, cfg)
	conn := connect(t, url)
	for i := range 10 {
		execute(t, conn, "BEGIN")
		emit(t, conn, plainMessage(uuid.New(), "k", i, fmt.Sprint(i)))
		execute(t, conn, "SAVEPOINT s")
		emit(t, conn, plainMessage(uuid.New(), "k", i, `"taken back"`))
		execute(t, conn, "ROLLBACK TO s")
		execute(t, conn, []string{"ROLLBACK", "COMMIT"}[i%2])
	}
	caughtUp(t, subject, conn, cfg.Slot)
	var got []string
	for _, r := range records(t, kafka, "topic-0") {
		got = append(got, string(r.Value))
	}
	if diff := cmp.Diff([]string{"1", "3", "5", "7", "9"}, got); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// TestUnreadableMessagesAreDeadLettersAndTheStreamGoesOn: what is no row, and what a transaction did not stand for.
func TestUnreadableMessagesAreDeadLettersAndTheStreamGoesOn(t *testing.T) {
	t.Parallel()
	url, kafka := pgtest.URL(t), startBroker(t)
	cfg := messages(url, kafka)
	subject := startReady(t, cfg)
	conn := connect(t, url)
	id := uuid.New()
	whole := plainMessage(id, "k", 1, "1")
	bad := []string{
		"not json", "", "[]",
		strings.Replace(whole, "event_id", "eventid", 1),
		strings.Replace(whole, "payload", "paylaod", 1),
		strings.Replace(whole, "aggregate_id", "aggregate_type", 1),
		strings.Replace(whole, `"payload": 1`, `"payload_base64": "&"`, 1),
		strings.Replace(whole, `"payload": 1`, `"payload_base64": "", "payload": null`, 1),
		strings.Replace(whole, `"payload": 1`, `"headers": {}`, 1),
		whole + "}",
	}
	for _, content := range bad {
		emit(t, conn, content)
	}
	// It outlives its transaction, which is why it must not be published.
	execute(t, conn, "BEGIN")
	execute(t, conn, emitSQL, false, outbox.MessagePrefix, whole)
	execute(t, conn, "ROLLBACK")
	emit(t, conn, plainMessage(uuid.New(), "k", 2, `"good"`))
	caughtUp(t, subject, conn, cfg.Slot)
	published := records(t, kafka, "topic-0")
	if len(published) != 1 || string(published[0].Value) != `"good"` {
		t.Errorf("published: %v", published)
	}
	letters := records(t, kafka, cfg.Slot+".relay.dlq")
	if len(letters) != len(bad)+1 {
		t.Fatalf("%d dead letters, want %d", len(letters), len(bad)+1)
	}
	byValue := map[string]*kgo.Record{}
	for _, r := range letters {
		byValue[string(r.Value)] = r
		h := headersOf(t, r)
		if h["error_class"] != "bad_message" || h["error"] == "" || h["commit_lsn"] == "" || h["origin_table"] != outbox.MessagePrefix {
			t.Errorf("the dead letter of %s has headers %v", r.Value, h)
		}
	}
	for _, content := range append(bad, whole) {
		if byValue[content] == nil {
			t.Errorf("%s has no dead letter", content)
		}
	}
	if r := byValue[whole]; r != nil && (string(r.Key) != "k" || headersOf(t, r)["event_id"] != id.String()) {
		t.Errorf("the message of no transaction is %q: %v", r.Key, headersOf(t, r))
	}
}

// TestPublicationOfMessagesHoldsNoTable: rows of a table would be confirmed and be on no topic.
func TestPublicationOfMessagesHoldsNoTable(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	conn := connect(t, url)
	execute(t, conn, "CREATE PUBLICATION converge FOR TABLE outbox WITH (publish = 'insert', publish_via_partition_root = true)")
	subject, err := relay.New(messages(url, kafka))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := subject.Run(ctx); err == nil || !strings.Contains(err.Error(), "CREATE PUBLICATION") {
		t.Errorf("Run returned %v, want an error with its fix", err)
	}
	cfg := messages(url, kafka)
	if _, err := relay.Replay(t.Context(), cfg, relay.Range{}); err == nil {
		t.Error("messages are sent again")
	}
	cfg.OnMissingSlot = relay.BackfillMissingSlot
	if _, err := relay.New(cfg); err == nil {
		t.Error("messages are backfilled")
	}
	cfg = messages(url, kafka)
	cfg.Tables = []string{outboxTable}
	if _, err := relay.New(cfg); err == nil {
		t.Error("messages have tables")
	}
}

// writeMessages makes transactions of messages over a key until ctx ends, some large and some rolled back.
func (l *ledger) writeMessages(ctx context.Context, url, key string, rng *rand.Rand) error {
	background := context.WithoutCancel(ctx)
	conn, err := pgx.Connect(background, url)
	if err != nil {
		return err
	}
	defer conn.Close(background)
	for sequence := 0; ctx.Err() == nil; {
		tx, err := conn.Begin(background)
		if err != nil {
			return err
		}
		rows := make([]entry, 1+rng.IntN(20)*rng.IntN(20))
		texts := make([]string, len(rows))
		for i := range rows {
			rows[i] = entry{id: uuid.New(), key: key, sequence: sequence + i}
			payload, err := json.Marshal(strings.Repeat("x", rng.IntN(600)))
			if err != nil {
				return err
			}
			texts[i] = plainMessage(rows[i].id, key, rows[i].sequence, string(payload))
		}
		if _, err := tx.Exec(background, "SELECT pg_logical_emit_message(true, $1::text, m) FROM unnest($2::text[]) AS m", outbox.MessagePrefix, texts); err != nil {
			return err
		}
		if rng.IntN(5) == 0 {
			l.note(&l.rolledBack, rows)
			if err := tx.Rollback(background); err != nil {
				return err
			}
			continue
		}
		if err := tx.Commit(background); err != nil {
			return err
		}
		sequence += len(rows)
		l.note(&l.committed, rows)
		select {
		case <-time.After(time.Duration(rng.IntN(5)) * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return nil
}

// TestKilledAgainAndAgainMessagesAreReadExactlyOnce: with large transactions on disk, and a drain at the end.
func TestKilledAgainAndAgainMessagesAreReadExactlyOnce(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	url, kafka := pgtest.URL(t), startBroker(t)
	c := childConfig{DatabaseURL: soonStreamed(t, url), Brokers: kafka.addrs(), Slot: uniqueSlot(), ExactlyOnce: true, SpillDir: t.TempDir(),
		Source: relay.SourceMessage}
	relayProcess := startChild(t, self, c)
	conn := connect(t, url)
	eventually(t, "the slot is read", slotRead(t, conn, c.Slot))
	var book ledger
	writing, stopWriting := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	defer writers.Wait()
	defer stopWriting()
	for w := range 3 {
		own := rand.New(rand.NewPCG(seed, uint64(w+1)))
		writers.Go(func() {
			if err := book.writeMessages(writing, url, fmt.Sprint("key-", w), own); err != nil {
				t.Errorf("writing: %v", err)
			}
		})
	}
	for kill := range often(8) {
		select {
		case <-time.After(time.Duration(100+rng.IntN(900)) * time.Millisecond):
		case <-t.Context().Done():
		}
		if kill%4 == 1 { // a drain in the middle of it all
			if err := relayProcess.command.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			<-relayProcess.done
			if state := relayProcess.command.ProcessState; !state.Success() {
				t.Errorf("the drain: %s\n%s", state, &relayProcess.output)
			}
		}
		relayProcess.kill()
		relayProcess = startChild(t, self, c)
	}
	stopWriting()
	writers.Wait()
	confirmedPast(t, conn, c.Slot, ask[string](t, conn, walEndSQL))
	var delivered []entry
	for _, r := range committed(t, c.Brokers, "topic-0") {
		delivered = append(delivered, entryOf(t, r))
	}
	f := book.check(delivered)
	t.Logf("%d messages committed, %d rolled back, %d read as committed, %d of them repeats", len(book.committed), len(book.rolledBack), len(delivered), f.repeats)
	if f.bad() || f.repeats > 0 {
		t.Errorf("%d repeated, lost %d, published though rolled back %d, out of order %d: %s", f.repeats, f.lost, f.forged, f.disordered, f.example)
	}
}

// TestMutantsOfMessagesAreFound: the tests of this page fail on the faults that they are there for.
func TestMutantsOfMessagesAreFound(t *testing.T) {
	mutants.Find(t, "converge/relay", []mutants.Fault{
		{File: "relay/emitted.go", Old: "\tif !m.Transactional {\n", New: `	if !m.Transactional && planted("publish what no transaction stands for") {
		s.begin(pgoutput.Begin{CommitLSN: m.LSN, Micros: header.Micros}, header)
		m.Transactional = true
		defer s.commit(pgoutput.Commit{EndLSN: m.LSN + 1})
	}
	if !m.Transactional {
`},
		{File: "relay/emitted.go", Old: "\tif err := read.parse(m.Content); err != nil {\n", New: "\tif err := read.parse(m.Content); err != nil {\n\t\tif planted(\"pass over what cannot be read\") {\n\t\t\treturn nil\n\t\t}\n"},
	}, map[string]mutants.Verdict{
		"publish what no transaction stands for": {Run: "TestUnreadableMessagesAreDeadLettersAndTheStreamGoesOn", Says: "published:"},
		"pass over what cannot be read":          {Run: "TestUnreadableMessagesAreDeadLettersAndTheStreamGoesOn", Says: "dead letters, want"},
	})
}
