package relay_test

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"converge/relay"
)

const (
	confirmedPastSQL = "SELECT confirmed_flush_lsn >= $2::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $1"
	walEndSQL        = "SELECT pg_current_wal_lsn()::text"
	senderSQL        = "SELECT coalesce(active_pid, 0) FROM pg_replication_slots WHERE slot_name = $1"
)

// confirmedPast waits until the slot has confirmed what the WAL holds now.
func confirmedPast(t testing.TB, conn *pgx.Conn, slot, lsn string) {
	t.Helper()
	eventually(t, "the position is confirmed", func() error {
		if !ask[bool](t, conn, confirmedPastSQL, slot, lsn) {
			return errors.New("it is still behind")
		}
		return nil
	})
}

// takeInOrder reads until row n-1 has come, and fails unless the values 0, 1, 2 … first appear in that
// order; it returns how many records were repeats.
func takeInOrder(t testing.TB, reader *topicReader, n int) (repeats int) {
	t.Helper()
	for next := 0; next < n; {
		value := reader.value(t)
		got, err := strconv.Atoi(value)
		switch {
		case err != nil:
			t.Fatalf("record %q: %v", value, err)
		case got == next:
			next++
		case got < next:
			repeats++
		default:
			t.Fatalf("record %d came before %d", got, next)
		}
	}
	return repeats
}

func TestNothingIsConfirmedBeforeKafkaAcknowledges(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := config(url, kafka)
	subject := startReady(t, cfg)
	conn := connect(t, url)
	reader := kafka.reader(t, "orders")
	insertRow(t, conn, "orders", "k", "0")
	reader.next(t)
	confirmedPast(t, conn, cfg.Slot, ask[string](t, conn, walEndSQL))
	sender := ask[int](t, conn, senderSQL, cfg.Slot)

	kafka.gate.pause()
	insertRow(t, conn, "orders", "k", "1")
	after := ask[string](t, conn, walEndSQL)
	// The stall is noticed after five seconds of reports, each of which could have confirmed too much.
	eventually(t, "the relay says that Kafka does not answer", func() error {
		if err := subject.Ready(); err == nil || !strings.Contains(err.Error(), "acknowledged nothing") {
			return fmt.Errorf("ready is %w", err)
		}
		return nil
	})
	if ask[bool](t, conn, confirmedPastSQL, cfg.Slot, after) {
		t.Error("a row that Kafka does not have was confirmed")
	}
	if now := ask[int](t, conn, senderSQL, cfg.Slot); now != sender {
		t.Errorf("the stall cost the connection to PostgreSQL: server process %d became %d", sender, now)
	}

	kafka.gate.open()
	confirmedPast(t, conn, cfg.Slot, after)
	eventually(t, "the relay is ready again", subject.Ready)
	if got := reader.value(t); got != "1" {
		t.Errorf("record %s came, want 1", got)
	}
}

func TestIdleWALIsReleased(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := config(url, kafka)
	startReady(t, cfg)
	conn := connect(t, url)
	execute(t, conn, "CREATE TABLE noise AS SELECT repeat('x', 1000) FROM generate_series(1, 1000)")
	confirmedPast(t, conn, cfg.Slot, ask[string](t, conn, walEndSQL))
}

func TestRelayReconnectsWhenItsWALSenderIsTerminated(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := config(url, kafka)
	subject := startReady(t, cfg)
	conn := connect(t, url)
	reader := kafka.reader(t, "orders")
	const rows = 200
	for i := range rows {
		if i%50 == 25 {
			execute(t, conn, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1", cfg.Slot)
		}
		insertRow(t, conn, "orders", "k", fmt.Sprint(i))
	}
	repeats := takeInOrder(t, reader, rows)
	eventually(t, "the relay is ready again", subject.Ready)
	t.Logf("%d repeats", repeats)
}

func TestRelayOutlivesABrokerThatGoesAway(t *testing.T) {
	forEachSource(t, func(t *testing.T, source source) {
		url, kafka := outboxDatabase(t), startBroker(t)
		cfg := source.config(url, kafka)
		subject := startReady(t, cfg)
		conn := connect(t, url)
		const rows = 300
		for i := range rows {
			switch i {
			case 100:
				kafka.gate.shut()
			case 200:
				eventually(t, "the relay says that Kafka is away", func() error {
					if subject.Ready() == nil {
						return errors.New("it says that it is ready")
					}
					return nil
				})
				kafka.gate.open()
			}
			insertRow(t, conn, "orders", "k", fmt.Sprint(i))
		}
		repeats := takeInOrder(t, kafka.reader(t, "orders"), rows)
		eventually(t, "the relay is ready again", subject.Ready)
		t.Logf("%d repeats", repeats)
	})
}

func TestRelayStartsWithoutKafkaAndWithoutPostgreSQL(t *testing.T) {
	forEachSource(t, func(t *testing.T, source source) {
		url, kafka := outboxDatabase(t), startBroker(t)
		kafka.gate.shut()
		cfg := source.config(url, kafka)
		subject := start(t, cfg)
		eventually(t, "the relay tried", func() error {
			if err := subject.Ready(); err == nil || !strings.Contains(err.Error(), "Kafka") {
				return fmt.Errorf("ready is %w", err)
			}
			return nil
		})
		kafka.gate.open()
		eventually(t, "the relay streams", subject.Ready)

		cfg.DatabaseURL = "postgres://nobody@127.0.0.1:1/none?sslmode=disable"
		subject = start(t, cfg)
		eventually(t, "the relay tried", func() error {
			if err := subject.Ready(); err == nil || !strings.Contains(err.Error(), "connecting to the database") {
				return fmt.Errorf("ready is %w", err)
			}
			return nil
		})
		select {
		case <-subject.done:
			t.Errorf("an outage ended Run: %v", subject.err)
		default:
		}
	})
}

func TestStandbyTakesOver(t *testing.T) {
	forEachSource(t, func(t *testing.T, source source) {
		url, kafka := outboxDatabase(t), startBroker(t)
		cfg := source.config(url, kafka)
		first := startReady(t, cfg)
		second := start(t, cfg)
		eventually(t, "the second stands by", func() error {
			err := second.Ready()
			if err == nil {
				t.Fatal("both relays read")
			}
			if !strings.Contains(err.Error(), "standing by") {
				return fmt.Errorf("ready is %w", err)
			}
			return nil
		})
		if err := first.stop(); err != nil {
			t.Fatalf("draining the first: %v", err)
		}
		eventually(t, "the second took over", second.Ready)
		conn := connect(t, url)
		insertRow(t, conn, "orders", "k", "0")
		kafka.reader(t, "orders").next(t)
	})
}

func TestDrainConfirmsEverythingThatWasPublished(t *testing.T) {
	forEachSource(t, func(t *testing.T, source source) {
		url, kafka := outboxDatabase(t), startBroker(t)
		cfg := source.config(url, kafka)
		subject := startReady(t, cfg)
		conn := connect(t, url)
		reader := kafka.reader(t, "orders")
		const rows = 50
		for i := range rows {
			insertRow(t, conn, "orders", "k", fmt.Sprint(i))
		}
		end := ask[string](t, conn, walEndSQL)
		takeInOrder(t, reader, rows)
		if err := subject.stop(); err != nil {
			t.Fatalf("draining: %v", err)
		}
		if doneWith(t, conn, cfg, end)() != nil {
			t.Error("the drain left published rows unconfirmed")
		}
		startReady(t, cfg)
		insertRow(t, conn, "orders", "k", "next")
		if got := reader.value(t); got != "next" {
			t.Errorf("the second relay began with %q, want the row after the drain", got)
		}
	})
}

func TestDrainThatKafkaDoesNotAnswerEndsInTime(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := config(url, kafka)
	cfg.DrainTimeout = 200 * time.Millisecond
	subject := startReady(t, cfg)
	conn := connect(t, url)
	insertRow(t, conn, "orders", "k", "0")
	reader := kafka.reader(t, "orders")
	reader.next(t)
	kafka.gate.pause()
	insertRow(t, conn, "orders", "k", "1")
	eventually(t, "the row is under way", func() error {
		if n := ask[int64](t, conn, "SELECT pg_current_wal_lsn() - sent_lsn FROM pg_stat_replication WHERE pid = $1",
			ask[int](t, conn, senderSQL, cfg.Slot)); n > 0 {
			return fmt.Errorf("%d bytes are not sent", n)
		}
		return nil
	})
	if err := subject.stop(); !errors.Is(err, relay.ErrDrainTimedOut) {
		t.Fatalf("Run returned %v, want ErrDrainTimedOut", err)
	}
	kafka.gate.shut()
	kafka.gate.open()
	startReady(t, cfg)
	for got := "0"; got != "1"; { // row 0 may be repeated
		if got = reader.value(t); got != "0" && got != "1" {
			t.Fatalf("record %s came", got)
		}
	}
}

func TestRowsThatNoWaitingHelpsAreDeadLettersAndTheStreamGoesOn(t *testing.T) {
	forEachSource(t, func(t *testing.T, source source) {
		url, kafka := outboxDatabase(t), startBroker(t)
		if err := kafka.CreateTopic("orders", 1, map[string]string{"max.message.bytes": "2000"}); err != nil {
			t.Fatal(err)
		}
		registry := prometheus.NewRegistry()
		cfg := source.config(url, kafka)
		cfg.Registerer = registry
		subject := startReady(t, cfg)
		conn := connect(t, url)
		orders, dead := kafka.reader(t, "orders"), kafka.reader(t, cfg.Slot+".relay.dlq")
		insertRow(t, conn, "orders", "k", "0")
		insertRow(t, conn, "orders", "k", strings.Repeat("x", 3000))
		insertRow(t, conn, "no topic at all", "k", "1")
		insertRow(t, conn, "orders", "k", "1")
		end := ask[string](t, conn, walEndSQL)
		if repeats := takeInOrder(t, orders, 2); repeats != 0 {
			t.Errorf("%d rows were repeated: the stream began anew", repeats)
		}
		for _, want := range []struct {
			origin, class string
			size          int
		}{{"orders", "too_large", 3000}, {"no topic at all", "invalid_topic", 1}} {
			letter := dead.next(t)
			headers := headersOf(t, letter)
			if string(letter.Key) != "k" || len(letter.Value) != want.size || headers["origin_topic"] != want.origin ||
				headers["error_class"] != want.class || headers["origin_table"] != outboxTable || headers["event_type"] != "Happened" ||
				headers["payload_bytes"] != strconv.Itoa(want.size) {
				t.Errorf("a dead letter of %d bytes says %v, want %+v", len(letter.Value), headers, want)
			}
			saysWhere(t, conn, cfg, headers, "0", end)
			if got := sum(t, registry, "converge_relay_publish_errors_total", "reason", want.class); got != 1 {
				t.Errorf("%v rows counted as %s, want 1", got, want.class)
			}
		}
		eventually(t, "everything is done with", doneWith(t, conn, cfg, end))
		if err := subject.Ready(); err != nil {
			t.Errorf("not ready: %v", err)
		}
	})
}

// saysWhere holds what a dead letter says of its row's place against the database.
func saysWhere(t testing.TB, conn *pgx.Conn, cfg relay.Config, headers map[string]string, ordinal, end string) {
	t.Helper()
	if cfg.Source == relay.SourcePolling {
		if !ask[bool](t, conn, "SELECT EXISTS (SELECT FROM outbox WHERE seq = $1::text::bigint AND event_id = $2::text::uuid)", headers["seq"], headers["event_id"]) {
			t.Errorf("the dead letter is of row number %q", headers["seq"])
		}
		return
	}
	if lsn := headers["commit_lsn"]; headers["ordinal"] != ordinal || !ask[bool](t, conn, "SELECT $1::text::pg_lsn < $2::text::pg_lsn", lsn, end) {
		t.Errorf("the dead letter is of row %s in transaction %s, want %s, before %s", headers["ordinal"], lsn, ordinal, end)
	}
}

// A broker answers for a batch. Which of its rows it will not have shows when each is sent alone. The row is the
// last: one behind it could overtake, see settle.
func TestRowThatTheBrokerRefusesIsToldFromItsCompany(t *testing.T) {
	forEachSource(t, func(t *testing.T, source source) {
		url, kafka := outboxDatabase(t), startBroker(t)
		poison := []byte("poison")
		kafka.ControlKey(int16(kmsg.Produce), func(request kmsg.Request) (kmsg.Response, error, bool) {
			kafka.KeepControl()
			produce := request.(*kmsg.ProduceRequest)
			for _, topic := range produce.Topics {
				for _, p := range topic.Partitions {
					if bytes.Contains(p.Records, poison) && !bytes.Contains(p.Records, []byte("origin_topic")) {
						return refuseProduce(produce, kerr.InvalidRecord), nil, true
					}
				}
			}
			return nil, nil, false
		})
		cfg := source.config(url, kafka)
		cfg.KafkaOptions = []kgo.Opt{kgo.ProducerBatchCompression(kgo.NoCompression())}
		startReady(t, cfg)
		conn := connect(t, url)
		orders, dead := kafka.reader(t, "orders"), kafka.reader(t, cfg.Slot+".relay.dlq")
		execute(t, conn, `
INSERT INTO outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload)
SELECT gen_random_uuid(), 'orders', 'thing', 'k', 1, 'Happened', 'text/plain',
       convert_to(CASE WHEN n = 99 THEN 'poison' ELSE n::text END, 'UTF8')
FROM generate_series(0, 99) AS n`)
		end := ask[string](t, conn, walEndSQL)
		takeInOrder(t, orders, 99)
		letter := dead.next(t)
		if headers := headersOf(t, letter); string(letter.Value) != "poison" || headers["error_class"] != "rejected" {
			t.Errorf("the dead letter is %q with %v", letter.Value, headers)
		} else {
			saysWhere(t, conn, cfg, headers, "99", end)
		}
		eventually(t, "everything is done with", doneWith(t, conn, cfg, end))
		insertRow(t, conn, "orders", "k", "after")
		for orders.value(t) != "after" { //nolint:revive // rows may be repeated before it
		}
	})
}

// refuseProduce answers a whole request with one error.
func refuseProduce(request *kmsg.ProduceRequest, no *kerr.Error) kmsg.Response {
	response := request.ResponseKind().(*kmsg.ProduceResponse)
	for _, topic := range request.Topics {
		answered := kmsg.NewProduceResponseTopic()
		answered.Topic, answered.TopicID = topic.Topic, topic.TopicID
		for _, p := range topic.Partitions {
			partition := kmsg.NewProduceResponseTopicPartition()
			partition.Partition, partition.ErrorCode = p.Partition, no.Code
			answered.Partitions = append(answered.Partitions, partition)
		}
		response.Topics = append(response.Topics, answered)
	}
	return response
}

func TestMissingTopicStopsTheStreamUntilSomeoneMakesIt(t *testing.T) {
	forEachSource(t, func(t *testing.T, source source) {
		url, kafka := outboxDatabase(t), startBroker(t)
		cfg := source.config(url, kafka)
		cfg.NoCreateTopics = true
		subject := startReady(t, cfg)
		conn := connect(t, url)
		insertRow(t, conn, "orders", "k", "0")
		end := ask[string](t, conn, walEndSQL)
		eventually(t, "the relay names the topic and the fix", func() error {
			if err := subject.Ready(); err == nil || !strings.Contains(err.Error(), "create the topic") || !strings.Contains(err.Error(), "orders") {
				return fmt.Errorf("ready is %w", err)
			}
			return nil
		})
		if doneWith(t, conn, cfg, end)() == nil {
			t.Error("the row that was not published was confirmed")
		}
		if err := kafka.CreateTopic("orders", 1, nil); err != nil {
			t.Fatal(err)
		}
		takeInOrder(t, kafka.reader(t, "orders"), 1)
		eventually(t, "everything is done with", doneWith(t, conn, cfg, end))
	})
}

// sum adds up a counter's samples that carry the label.
func sum(t testing.TB, registry *prometheus.Registry, counter, label, value string) (total float64) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != counter {
			continue
		}
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == label && l.GetValue() == value {
					total += m.GetCounter().GetValue()
				}
			}
		}
	}
	return total
}

// A broker that does not know what is wrong with it says nothing about the rows: they wait.
func TestABrokerThatIsBrokenMakesNoDeadLetters(t *testing.T) {
	forEachSource(t, func(t *testing.T, source source) {
		url, kafka := outboxDatabase(t), startBroker(t)
		var times atomic.Int64
		kafka.ControlKey(int16(kmsg.Produce), func(request kmsg.Request) (kmsg.Response, error, bool) {
			kafka.KeepControl()
			produce := request.(*kmsg.ProduceRequest)
			for _, topic := range produce.Topics {
				for _, p := range topic.Partitions {
					// Twice make a suspect and a dead letter of a row that is refused.
					if bytes.Contains(p.Records, []byte("a-key")) && times.Add(1) <= 5 {
						return refuseProduce(produce, kerr.UnknownServerError), nil, true
					}
				}
			}
			return nil, nil, false
		})
		cfg := source.config(url, kafka)
		cfg.KafkaOptions = []kgo.Opt{kgo.ProducerBatchCompression(kgo.NoCompression())}
		startReady(t, cfg)
		conn := connect(t, url)
		const rows = 20
		for i := range rows {
			insertRow(t, conn, "orders", "a-key", fmt.Sprint(i))
		}
		end := ask[string](t, conn, walEndSQL)
		reader := kafka.reader(t, "orders")
		takeInOrder(t, reader, rows)
		eventually(t, "everything is done with", doneWith(t, conn, cfg, end))
		if n := times.Load(); n <= 5 {
			t.Errorf("the broker was broken %d times only", n)
		}
		topics, err := kadm.NewClient(reader.client).ListTopics(t.Context(), cfg.Slot+".relay.dlq")
		if err != nil || topics.Has(cfg.Slot+".relay.dlq") {
			t.Errorf("there is a dead-letter topic (%v)", err)
		}
	})
}

func TestRecordThatTheBrokerRefusesIsSentAgainWithAllBehindIt(t *testing.T) {
	forEachSource(t, func(t *testing.T, source source) {
		url, kafka := outboxDatabase(t), startBroker(t)
		cfg := source.config(url, kafka)
		subject := startReady(t, cfg)
		conn := connect(t, url)
		reader := kafka.reader(t, "orders")
		insertRow(t, conn, "orders", "k", "0")
		reader.next(t)
		fault := kafka.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.TopicAuthorizationFailed, Count: -1})
		const rows = 20
		for i := 1; i < rows; i++ {
			insertRow(t, conn, "orders", "k", fmt.Sprint(i))
		}
		eventually(t, "the relay names the fix", func() error {
			if err := subject.Ready(); err == nil || !strings.Contains(err.Error(), "grant the relay WRITE") {
				return fmt.Errorf("ready is %w", err)
			}
			return nil
		})
		fault.Remove()
		next := 1
		for next < rows {
			if value := reader.value(t); value == fmt.Sprint(next) {
				next++
			} else if value != "0" {
				t.Fatalf("record %s came, want %d", value, next)
			}
		}
	})
}

func TestMetricsFollowTheConventions(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	registry := prometheus.NewRegistry()
	cfg := config(url, kafka)
	cfg.Registerer = registry
	startReady(t, cfg)
	conn := connect(t, url)
	insertRow(t, conn, "orders", "k", "0")
	kafka.reader(t, "orders").next(t)
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
	eventually(t, "the row is counted", func() error {
		return testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP converge_relay_events_published_total Outbox rows acknowledged by all in-sync replicas, repeats included, by topic.
# TYPE converge_relay_events_published_total counter
converge_relay_events_published_total{topic="orders"} 1
# HELP converge_relay_leader 1 while this relay reads the slot, 0 while it stands by or is disconnected.
# TYPE converge_relay_leader gauge
converge_relay_leader 1
# HELP converge_relay_slot_active 1 while any relay reads the slot.
# TYPE converge_relay_slot_active gauge
converge_relay_slot_active 1
`), "converge_relay_events_published_total", "converge_relay_leader", "converge_relay_slot_active")
	})
	if _, err := relay.New(cfg); err == nil {
		t.Error("two relays share a registry")
	}
}
