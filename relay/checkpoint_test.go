package relay_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"converge/relay"
	"converge/relay/pgoutput"
)

// written is a checkpoint as others read it.
type written struct {
	System    string       `json:"system_identifier"`
	Timeline  int          `json:"timeline"`
	Confirmed pgoutput.LSN `json:"confirmed_lsn"`
	Tables    []string     `json:"tables"`
	At        time.Time    `json:"at"`
	Session   int64        `json:"session"`
	Pending   bool         `json:"backfill_pending"`
}

func checkpointTopic(cfg relay.Config) string { return cfg.Slot + ".relay.checkpoint" }

// checkpointsOf returns all checkpoints on the topic.
func checkpointsOf(t testing.TB, kafka *broker, cfg relay.Config) (found []written) {
	t.Helper()
	for _, r := range records(t, kafka, checkpointTopic(cfg)) {
		var w written
		if err := json.Unmarshal(r.Value, &w); err != nil {
			t.Fatal(err)
		}
		if string(r.Key) != cfg.Slot {
			t.Errorf("a checkpoint has key %q, want the slot's name", r.Key)
		}
		found = append(found, w)
	}
	return found
}

// records reads everything that a topic of untransacted records holds.
func records(t testing.TB, kafka *broker, topic string) (found []*kgo.Record) {
	t.Helper()
	reader := kafka.reader(t, topic)
	ends, err := kadm.NewClient(reader.client).ListEndOffsets(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	var held int64
	ends.Each(func(o kadm.ListedOffset) { held += o.Offset })
	for range held {
		found = append(found, reader.next(t))
	}
	return found
}

// produce writes one record to a topic that exists.
func produce(t testing.TB, kafka *broker, topic, key, value string) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(kafka.addrs()...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Key: []byte(key), Value: []byte(value)}).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

const confirmedSQL = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1"

func lsn(t testing.TB, text string) pgoutput.LSN {
	t.Helper()
	l, err := pgoutput.ParseLSN(text)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// streamed runs a relay that publishes one row, and ends it.
func streamed(t testing.TB, cfg relay.Config, conn *pgx.Conn, payload string) {
	t.Helper()
	subject := startReady(t, cfg)
	insertRow(t, conn, "orders", "k", payload)
	confirmedPast(t, conn, cfg.Slot, ask[string](t, conn, walEndSQL))
	if err := subject.stop(); err != nil {
		t.Fatal(err)
	}
}

// onFreeSlot executes a statement that the server refuses while the relay's connection is on its way out.
func onFreeSlot(t testing.TB, conn *pgx.Conn, sql string) {
	t.Helper()
	eventually(t, sql, func() error {
		_, err := conn.Exec(t.Context(), sql)
		return err
	})
}

// ended waits until Run has ended with an error that says all of want.
func ended(t testing.TB, subject *running, want ...string) {
	t.Helper()
	eventually(t, "Run ends", func() error {
		select {
		case <-subject.done:
			return nil
		default:
		}
		if subject.Ready() == nil {
			t.Fatal("Run goes on: the relay streams")
		}
		return subject.Ready()
	})
	for _, w := range want {
		if subject.err == nil || !strings.Contains(subject.err.Error(), w) {
			t.Fatalf("Run returned %v, want an error that says %q", subject.err, w)
		}
	}
}

func TestDrainedRelayAndItsCheckpointAgreeWithTheSlot(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	conn := connect(t, url)
	cfg := config(url, kafka)
	streamed(t, cfg, conn, "0")
	all := checkpointsOf(t, kafka, cfg)
	last := all[len(all)-1]
	if slot := lsn(t, ask[string](t, conn, confirmedSQL, cfg.Slot)); last.Confirmed != slot {
		t.Errorf("the checkpoint says %s, the slot stands at %s", last.Confirmed, slot)
	}
	if system := ask[string](t, conn, "SELECT system_identifier::text FROM pg_control_system()"); last.System != system || last.Timeline != 1 {
		t.Errorf("the checkpoint is of system %s on timeline %d, want %s on 1", last.System, last.Timeline, system)
	}
	if fmt.Sprint(last.Tables) != "[orders.outbox]" || time.Since(last.At) > time.Minute {
		t.Errorf("the checkpoint is %+v", last)
	}
}

// TestSlotThatSomebodyMovedIsNotReadOn: each way to move a slot past rows that are on no topic ends Run with
// the gap; accepting it is possible, and good for this gap alone.
func TestSlotThatSomebodyMovedIsNotReadOn(t *testing.T) {
	t.Parallel()
	for name, move := range map[string]string{
		"advanced":   "SELECT pg_replication_slot_advance('SLOT', pg_current_wal_lsn())",
		"made anew":  "SELECT pg_drop_replication_slot('SLOT'); SELECT pg_create_logical_replication_slot('SLOT', 'pgoutput')",
		"gone":       "SELECT pg_drop_replication_slot('SLOT')",
		"other read": "SELECT count(*) FROM pg_logical_slot_get_binary_changes('SLOT', NULL, NULL, 'proto_version', '1', 'publication_names', 'converge')",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, kafka := outboxDatabase(t), startBroker(t)
			conn := connect(t, url)
			cfg := config(url, kafka)
			streamed(t, cfg, conn, "0")
			from := ask[string](t, conn, confirmedSQL, cfg.Slot)

			insertRow(t, conn, "orders", "k", "lost")
			for _, statement := range strings.Split(strings.ReplaceAll(move, "SLOT", cfg.Slot), "; ") {
				onFreeSlot(t, conn, statement)
			}
			subject := start(t, cfg)
			ended(t, subject, "rows committed from "+from+" to ", "converge relay replay --from 20", "--accept-gap ")
			to := ask[string](t, conn, confirmedSQL, cfg.Slot)
			ended(t, subject, "from "+from+" to "+to+" ", "--accept-gap "+to)
			ended(t, start(t, cfg), "--accept-gap "+to) // it was not accepted by trying twice

			cfg.AcceptGap = to
			streamed(t, cfg, conn, "1")
			insertRow(t, conn, "orders", "k", "lost too")
			onFreeSlot(t, conn, strings.ReplaceAll("SELECT pg_replication_slot_advance('SLOT', pg_current_wal_lsn())", "SLOT", cfg.Slot))
			ended(t, start(t, cfg), "rows committed from ") // the flag may stay where it is

			reader := kafka.reader(t, "orders")
			if got := reader.value(t) + reader.value(t); got != "01" {
				t.Errorf("the topic holds %s, want 01", got)
			}
		})
	}
}

func TestAnotherServerIsNotReadOn(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	conn := connect(t, url)
	cfg := config(url, kafka)
	streamed(t, cfg, conn, "0")
	all := checkpointsOf(t, kafka, cfg)
	value, err := json.Marshal(map[string]any{"system_identifier": "7000000000000000001", "timeline": 1, "confirmed_lsn": "FF/0", "session": 1 + all[len(all)-1].Session})
	if err != nil {
		t.Fatal(err)
	}
	produce(t, kafka, checkpointTopic(cfg), cfg.Slot, string(value))
	slot := ask[string](t, conn, confirmedSQL, cfg.Slot)
	ended(t, start(t, cfg), "came from system 7000000000000000001", "--accept-gap "+slot)
	cfg.AcceptGap = slot
	streamed(t, cfg, conn, "1")
	cfg.AcceptGap = ""
	streamed(t, cfg, conn, "2") // what was accepted is the checkpoint now
}

func TestAnotherTimelineIsAWarningWhenTheSlotIsNotAhead(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	conn := connect(t, url)
	cfg := config(url, kafka)
	streamed(t, cfg, conn, "0")
	all := checkpointsOf(t, kafka, cfg)
	last := all[len(all)-1]
	value, err := json.Marshal(map[string]any{"system_identifier": last.System, "timeline": 7, "confirmed_lsn": last.Confirmed + 1<<30, "session": last.Session})
	if err != nil {
		t.Fatal(err)
	}
	produce(t, kafka, checkpointTopic(cfg), cfg.Slot, string(value))
	var log logged
	cfg.Logger = log.logger()
	streamed(t, cfg, conn, "1")
	if !log.has("the server is on another timeline") {
		t.Error("nothing was said of the failover")
	}
	streamed(t, cfg, conn, "2")
}

// TestCheckpointOfARelayThatLostTheSlotIsNotBelieved: one that was on its way when another relay took over
// must not make the slot look moved.
func TestCheckpointOfARelayThatLostTheSlotIsNotBelieved(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	conn := connect(t, url)
	cfg := config(url, kafka)
	streamed(t, cfg, conn, "0")
	late := checkpointsOf(t, kafka, cfg)
	streamed(t, cfg, conn, "1")
	value, err := json.Marshal(late[len(late)-1])
	if err != nil {
		t.Fatal(err)
	}
	produce(t, kafka, checkpointTopic(cfg), cfg.Slot, string(value))
	streamed(t, cfg, conn, "2")
}

func TestWithoutTheTopicTheRelayStreamsUnchecked(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	conn := connect(t, url)
	cfg := config(url, kafka)
	cfg.NoCreateTopics = true
	client, err := kadm.NewOptClient(kgo.SeedBrokers(kafka.addrs()...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.CreateTopic(t.Context(), 1, 1, nil, "orders"); err != nil {
		t.Fatal(err)
	}
	var log logged
	cfg.Logger = log.logger()
	streamed(t, cfg, conn, "0")
	if !log.has("no topic for checkpoints") {
		t.Error("nothing was said of the missing topic")
	}
	streamed(t, cfg, conn, "1")
}

// TestNothingIsConfirmedBeforeItsCheckpoint: rows are acknowledged, the checkpoint's topic answers nothing.
func TestNothingIsConfirmedBeforeItsCheckpoint(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	conn := connect(t, url)
	cfg := config(url, kafka)
	startReady(t, cfg)
	insertRow(t, conn, "orders", "k", "0")
	confirmedPast(t, conn, cfg.Slot, ask[string](t, conn, walEndSQL))

	// The broker refuses what goes to the checkpoint's topic, in a way that passes.
	fault := kafka.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: checkpointTopic(cfg),
		Err: kerr.NotLeaderForPartition, Count: -1})
	before := ask[string](t, conn, confirmedSQL, cfg.Slot)
	reader := kafka.reader(t, "orders")
	reader.next(t)
	insertRow(t, conn, "orders", "k", "1")
	if got := reader.value(t); got != "1" {
		t.Fatalf("record %s came, want 1", got)
	}
	// Between the attempts to write it, two statuses go out at least.
	began := time.Now()
	eventually(t, "a checkpoint is tried for some seconds", func() error {
		if fault.Hits() < 3 || time.Since(began) < 2500*time.Millisecond {
			return fmt.Errorf("%d attempts", fault.Hits())
		}
		return nil
	})
	if now := ask[string](t, conn, confirmedSQL, cfg.Slot); now != before {
		t.Errorf("the slot went from %s to %s before a checkpoint was acknowledged", before, now)
	}
	end := ask[string](t, conn, walEndSQL)
	fault.Remove()
	confirmedPast(t, conn, cfg.Slot, end)
}

// logged keeps log lines.
type logged struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *logged) has(message string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), message)
}
