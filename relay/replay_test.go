package relay_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"converge/relay"
)

// TestReplaySendsTheRowsInRangeMarkedAndInOrder: more rows than memory holds, through filters that each
// leave rows out.
func TestReplaySendsTheRowsInRangeMarkedAndInOrder(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	conn := connect(t, url)
	execute(t, conn, `
INSERT INTO outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload, created_at)
SELECT gen_random_uuid(), CASE WHEN n % 10 = 3 THEN 'others' ELSE 'orders' END, 'thing', 'key, "' || n % 2, n, 'Happened', 'text/plain',
       convert_to(repeat(n || ' ', 300), 'UTF8'), '2026-11-01'::timestamptz + n * interval '1 second'
FROM generate_series(0, 4999) AS n`)
	cfg := config(url, kafka)
	cfg.BufferBytes = 256 << 10
	start := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	if zone := ask[string](t, conn, "SHOW timezone"); zone != "UTC" && zone != "Etc/UTC" {
		start = ask[time.Time](t, conn, "SELECT '2026-11-01'::timestamptz")
	}
	n, err := relay.Replay(t.Context(), cfg, relay.Range{From: start.Add(100 * time.Second), To: start.Add(4000 * time.Second),
		Topics: []string{"orders"}, Keys: []string{`key, "1`}, Mark: "drill"})
	if err != nil {
		t.Fatal(err)
	}
	var want []int
	for i := 100; i < 4000; i++ {
		if i%2 == 1 && i%10 != 3 {
			want = append(want, i)
		}
	}
	if n != int64(len(want)) {
		t.Errorf("Replay sent %d records, want %d", n, len(want))
	}
	reader := kafka.reader(t, "orders")
	for _, i := range want {
		r := reader.next(t)
		h := headersOf(t, r)
		if got, want := string(r.Value), strings.Repeat(fmt.Sprint(i, " "), 300); got != want {
			t.Fatalf("a record of %.20q..., want %.20q...", got, want)
		}
		created := start.Add(time.Duration(i) * time.Second).UTC().Format(time.RFC3339Nano)
		if h["replay"] != "drill" || h["committed_at"] != created || h["aggregate_version"] != fmt.Sprint(i) {
			t.Fatalf("record %d has headers %v, want replay, committed_at %s", i, h, created)
		}
	}
}

func TestReplayOfATableThatIsNoOutboxSaysSo(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := config(url, kafka)
	cfg.Tables = []string{"orders.nothing"}
	if n, err := relay.Replay(t.Context(), cfg, relay.Range{}); n != 0 || err == nil || !strings.Contains(err.Error(), "name outbox tables") {
		t.Errorf("Replay returned %d, %v, want to hear about outbox tables", n, err)
	}
}

func TestReplayBuriesARowThatCannotBeARecordAndGoesOn(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	conn := connect(t, url)
	insertRow(t, conn, "orders", "k", "1")
	insertRow(t, conn, "no topic of this name", "k", "2")
	insertRow(t, conn, "orders", "k", "3")
	cfg := config(url, kafka)
	cfg.DeadLetterTopic = "dead"
	if n, err := relay.Replay(t.Context(), cfg, relay.Range{}); n != 3 || err != nil {
		t.Errorf("Replay returned %d, %v, want 3 and no error", n, err)
	}
	orders, dead := kafka.reader(t, "orders"), kafka.reader(t, "dead")
	if got := []string{orders.value(t), orders.value(t), dead.value(t)}; fmt.Sprint(got) != "[1 3 2]" {
		t.Errorf("the records are %v, want 1 and 3 on their topic and 2 among the dead letters", got)
	}
}
