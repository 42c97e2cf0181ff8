package event_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"converge/consumers/event"
)

func identified(offset int64, headers ...string) *event.Event {
	e := &event.Event{Topic: "orders", Partition: 2, Offset: offset, Key: []byte("k")}
	for i := 0; i < len(headers); i += 2 {
		e.Headers = append(e.Headers, event.Header{Key: headers[i], Value: []byte(headers[i+1])})
	}
	e.Identify()
	return e
}

func TestEveryDeliveryOfARecordHasTheSameID(t *testing.T) {
	const id = "0190b5a0-7c3e-7cc2-8f2f-0123456789ab"
	for _, name := range []string{"event_id", "ce_id", "id"} {
		if got := identified(1, name, id).ID.String(); got != id {
			t.Errorf("%s: got %s", name, got)
		}
	}
	if got := identified(1, "id", "0190b5a0-7c3e-7cc2-8f2f-000000000000", "event_id", id).ID.String(); got != id {
		t.Errorf("event_id does not come first: %s", got)
	}
	text, again := identified(1, "event_id", "order-7/placed"), identified(2, "event_id", "order-7/placed")
	if text.ID != again.ID || text.ID.Version() != 5 {
		t.Errorf("one text, two ids: %s and %s", text.ID, again.ID)
	}
	none, redelivered, next := identified(7), identified(7), identified(8)
	if none.ID != redelivered.ID || none.ID == next.ID || none.ID == uuid.Nil {
		t.Errorf("without an id: %s, redelivered %s, the next record %s", none.ID, redelivered.ID, next.ID)
	}
}

func TestHeadersThatSayNothingLeaveZeroes(t *testing.T) {
	e := identified(1, "aggregate_version", "many", "occurred_at", "yesterday", "content-type", "")
	if e.AggregateVersion != 0 || !e.OccurredAt.IsZero() || !e.CommittedAt.IsZero() || e.ContentType != "" || e.Type != "" || e.AggregateID != "k" {
		t.Errorf("got %+v", e)
	}
	e = identified(1, "ce_type", "OrderPlaced", "ce_time", "2026-01-02T03:04:05Z", "datacontenttype", "application/json")
	if e.Type != "OrderPlaced" || !e.OccurredAt.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) || e.ContentType != "application/json" {
		t.Errorf("CloudEvents: got %+v", e)
	}
}

func TestOrderKeysFitAnIndexAndTellKeysApart(t *testing.T) {
	id := uuid.New()
	seen := map[string][]byte{}
	for _, key := range [][]byte{nil, {}, []byte("a"), {0}, {0, 0}, {0xff}, bytes.Repeat([]byte("a"), 256), bytes.Repeat([]byte("a"), 257),
		bytes.Repeat([]byte("a"), 1<<20), bytes.Repeat([]byte{0xff}, 256)} {
		e := event.Event{ID: id, Key: key}
		text := e.OrderKey()
		if other, taken := seen[text]; taken {
			t.Errorf("%.10q and %.10q are one key", key, other)
		}
		seen[text] = key
		if len(text) > 600 {
			t.Errorf("%d bytes for a key of %d", len(text), len(key))
		}
	}
}

func TestRecordsOfOtherHeaderNamesSayTheSame(t *testing.T) {
	const at, trace = "2026-01-02T03:04:05.5Z", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	values := []string{"0190b5a0-7c3e-7cc2-8f2f-0123456789ab", "OrderPlaced", "order", "7", at, at, "corr", "cause", trace, "application/json"}
	want := identified(1, zip(values, "event_id", "event_type", "aggregate_type", "aggregate_version", "occurred_at", "committed_at",
		"correlation_id", "causation_id", "traceparent", "content-type")...)
	want.Headers = nil
	if want.Type != "OrderPlaced" || want.AggregateVersion != 7 || want.CausationID != "cause" {
		t.Fatalf("converge's own: %+v", want)
	}
	for name, headers := range map[string][]string{
		"cloudevents": {"ce_id", "ce_type", "ce_aggregatetype", "ce_aggregateversion", "ce_time", "ce_committedat",
			"ce_correlationid", "ce_causationid", "ce_traceparent", "content-type"},
		"debezium": {"id", "eventType", "aggregate_type", "aggregate_version", "occurred_at", "committed_at",
			"correlation_id", "causation_id", "traceparent", "content-type"},
		"debezium, the type under its column's name": {"id", "type", "aggregate_type", "aggregate_version", "occurred_at", "committed_at",
			"correlation_id", "causation_id", "traceparent", "content-type"},
	} {
		got := identified(1, zip(values, headers...)...)
		got.Headers = nil
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// zip pairs names with values.
func zip(values []string, names ...string) (headers []string) {
	for i, name := range names {
		headers = append(headers, name, values[i])
	}
	return headers
}
