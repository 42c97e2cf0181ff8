package relay_test

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
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
	before := ask[string](t, conn, walEndSQL)
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
	if !ask[bool](t, conn, confirmedPastSQL, cfg.Slot, before) {
		t.Error("what came before was not confirmed")
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
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := config(url, kafka)
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
}

func TestRelayStartsWithoutKafkaAndWithoutPostgreSQL(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	kafka.gate.shut()
	cfg := config(url, kafka)
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
}

func TestStandbyTakesOver(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := config(url, kafka)
	first := startReady(t, cfg)
	second := start(t, cfg)
	eventually(t, "the second stands by", func() error {
		if err := second.Ready(); err == nil || !strings.Contains(err.Error(), "standing by") {
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
}

func TestDrainConfirmsEverythingThatWasPublished(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := config(url, kafka)
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
	if !ask[bool](t, conn, confirmedPastSQL, cfg.Slot, end) {
		t.Error("the drain left published rows unconfirmed")
	}
	startReady(t, cfg)
	insertRow(t, conn, "orders", "k", "next")
	if got := reader.value(t); got != "next" {
		t.Errorf("the second relay began with %q, want the row after the drain", got)
	}
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

func TestRowTooLargeStopsTheStreamLoudlyUntilTheTopicTakesIt(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	if err := kafka.CreateTopic("orders", 1, map[string]string{"max.message.bytes": "2000"}); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	cfg := config(url, kafka)
	cfg.Registerer = registry
	subject := startReady(t, cfg)
	conn := connect(t, url)
	reader := kafka.reader(t, "orders")
	insertRow(t, conn, "orders", "k", "0")
	before := ask[string](t, conn, walEndSQL)
	insertRow(t, conn, "orders", "k", strings.Repeat("x", 3000))
	after := ask[string](t, conn, walEndSQL)
	insertRow(t, conn, "orders", "k", "2")
	eventually(t, "the relay names the row and the fix", func() error {
		if err := subject.Ready(); err == nil || !strings.Contains(err.Error(), "max.message.bytes") || !strings.Contains(err.Error(), table) {
			return fmt.Errorf("ready is %w", err)
		}
		return nil
	})
	if got := sum(t, registry, "converge_relay_publish_errors_total", "reason", "too_large"); got != 1 {
		t.Errorf("%v rows counted as too large, want 1", got)
	}
	if got := reader.value(t); got != "0" {
		t.Errorf("record %s came first, want 0", got)
	}
	if !ask[bool](t, conn, confirmedPastSQL, cfg.Slot, before) {
		t.Error("the row in front was not confirmed")
	}
	if ask[bool](t, conn, confirmedPastSQL, cfg.Slot, after) {
		t.Error("the row that was not published was confirmed")
	}

	request := kmsg.NewPtrIncrementalAlterConfigsRequest()
	resource := kmsg.NewIncrementalAlterConfigsRequestResource()
	resource.ResourceType, resource.ResourceName = kmsg.ConfigResourceTypeTopic, "orders"
	value := "100000"
	config := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	config.Name, config.Value = "max.message.bytes", &value
	resource.Configs = append(resource.Configs, config)
	request.Resources = append(request.Resources, resource)
	if _, err := request.RequestWith(t.Context(), reader.client); err != nil {
		t.Fatal(err)
	}
	var sizes []int
	for len(sizes) < 2 {
		if value := reader.value(t); value != "0" { // which an attempt may repeat
			sizes = append(sizes, len(value))
		}
	}
	if sizes[0] != 3000 || sizes[1] != 1 {
		t.Errorf("rows of %v bytes came, want 3000 and then 1", sizes)
	}
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

func TestRecordThatTheBrokerRefusesIsSentAgainWithAllBehindIt(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := config(url, kafka)
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
