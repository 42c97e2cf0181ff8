package relay_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"
)

// headersOf returns a record's headers; a repeated name would be lost, so it fails the test.
func headersOf(t testing.TB, r *kgo.Record) map[string]string {
	t.Helper()
	got := make(map[string]string)
	for _, h := range r.Headers {
		if _, twice := got[h.Key]; twice {
			t.Errorf("header %s comes twice", h.Key)
		}
		got[h.Key] = string(h.Value)
	}
	return got
}

func TestRowsBecomeRecordsOfTheContract(t *testing.T) {
	url, kafka := outboxDatabase(t), startBroker(t)
	startReady(t, config(url, kafka))
	conn := connect(t, url)

	const id = "0190163d-8694-739b-aea5-966c26f8ad91"
	insert := func(topic, key, eventType, contentType string, payload []byte, headers string) {
		execute(t, conn, `
			INSERT INTO outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload, headers, created_at)
			VALUES ($1, $2, 'order', $3, 7, $4, $5, $6, $7, '2026-11-23 12:00:00.123456+00')`,
			id, topic, key, eventType, contentType, payload, headers)
	}
	execute(t, conn, "BEGIN")
	insert("orders", "key-1", "OrderPlaced", "application/json", []byte(`{"n":1}`),
		`{"correlation_id": "c\"1", "causation_id": "c2", "traceparent": "00-ab-cd-01", "event_id": "forged"}`)
	insert("orders", "key-1", "OrderPlaced", "avro/binary", []byte{}, `{"occurred_at": "2026-11-23T11:00:00Z"}`)
	insert("orders", "key-1", "OrderForgotten", "application/json", nil, `{}`)
	insert("orders", "key-1", "", "application/json", []byte("raw"), `{"event_id": "kept", "x-attempt": "2"}`)
	execute(t, conn, "COMMIT")

	reader := kafka.reader(t, "orders")
	records := []*kgo.Record{reader.next(t), reader.next(t), reader.next(t), reader.next(t)}
	committed := headersOf(t, records[0])["committed_at"]
	at, err := time.Parse(time.RFC3339Nano, committed)
	if err != nil || time.Since(at).Abs() > time.Minute {
		t.Errorf("committed_at is %q", committed)
	}
	event := func(eventType, contentType, occurred string, more ...string) map[string]string {
		h := map[string]string{"event_id": id, "event_type": eventType, "aggregate_type": "order", "aggregate_version": "7",
			"occurred_at": occurred, "committed_at": committed, "content-type": contentType}
		for i := 0; i < len(more); i += 2 {
			h[more[i]] = more[i+1]
		}
		return h
	}
	want := []struct {
		value   []byte
		headers map[string]string
	}{
		{[]byte(`{"n":1}`), event("OrderPlaced", "application/json", "2026-11-23T12:00:00.123456Z",
			"correlation_id", `c"1`, "causation_id", "c2", "traceparent", "00-ab-cd-01")},
		{[]byte{}, event("OrderPlaced", "avro/binary", "2026-11-23T11:00:00Z")},
		{nil, event("OrderForgotten", "application/json", "2026-11-23T12:00:00.123456Z")},
		{[]byte("raw"), map[string]string{"event_id": "kept", "x-attempt": "2", "content-type": "application/json"}},
	}
	for i, w := range want {
		r := records[i]
		if diff := cmp.Diff(w.headers, headersOf(t, r)); diff != "" {
			t.Errorf("headers of record %d (-want +got):\n%s", i, diff)
		}
		if string(r.Key) != "key-1" || string(r.Value) != string(w.value) || (r.Value == nil) != (w.value == nil) {
			t.Errorf("record %d is %q: %#v, want %#v", i, r.Key, r.Value, w.value)
		}
		if !r.Timestamp.Equal(at.Truncate(time.Millisecond)) {
			t.Errorf("record %d has time %s, want the commit's %s", i, r.Timestamp, at)
		}
	}
}

func TestRolledBackRowsAreNotPublished(t *testing.T) {
	url, kafka := outboxDatabase(t), startBroker(t)
	startReady(t, config(url, kafka))
	conn := connect(t, url)
	for i := range 10 {
		execute(t, conn, "BEGIN")
		insertRow(t, conn, "orders", "k", fmt.Sprint(i))
		if i%2 == 0 {
			execute(t, conn, "ROLLBACK")
		} else {
			execute(t, conn, "COMMIT")
		}
	}
	reader := kafka.reader(t, "orders")
	for i := range 5 {
		if got, want := reader.value(t), fmt.Sprint(2*i+1); got != want {
			t.Errorf("record %d is %s, want %s", i, got, want)
		}
	}
}
