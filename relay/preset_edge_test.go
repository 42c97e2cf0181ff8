package relay_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"converge/internal/pgtest"
	"converge/relay"
)

// The event router reads no column type by default, so its tables may have none.
func TestADebeziumOutboxMayHaveNoType(t *testing.T) {
	for headers, want := range map[relay.Headers]map[string]string{
		relay.HeadersDebezium: {"id": debeziumID},
		relay.HeadersCloudEvents: {"ce_specversion": "1.0", "ce_id": debeziumID, "ce_source": "/public/outbox", "ce_type": "order",
			"ce_subject": "1", "ce_aggregatetype": "order", "content-type": "application/json"},
		relay.HeadersConverge: {"event_id": debeziumID, "aggregate_type": "order", "content-type": "application/json"},
	} {
		t.Run(string(headers), func(t *testing.T) {
			url, kafka := pgtest.URL(t), startBroker(t)
			conn := connect(t, url)
			execute(t, conn, "CREATE TABLE public.outbox (id uuid, aggregatetype text, aggregateid text, payload jsonb)")
			cfg := debezium(url, kafka)
			cfg.Headers = headers
			startReady(t, cfg)
			execute(t, conn, "INSERT INTO public.outbox VALUES ($1, 'order', '1', '{}')", debeziumID)
			record := kafka.reader(t, "outbox.event.order").next(t)
			got := headersOf(t, record)
			for _, when := range []string{"ce_time", "ce_committedat", "committed_at"} {
				delete(got, when)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if headers == relay.HeadersCloudEvents {
				cloudEvent(t, record)
			}
		})
	}
}

// A further column must not pass for what the relay says of the event.
func TestFurtherColumnsDoNotPassForTheEventsIdentity(t *testing.T) {
	for headers, id := range map[relay.Headers]string{relay.HeadersCloudEvents: "ce_id", relay.HeadersConverge: "event_id"} {
		t.Run(string(headers), func(t *testing.T) {
			url, kafka := pgtest.URL(t), startBroker(t)
			conn := connect(t, url)
			execute(t, conn, "CREATE TABLE public.outbox (id uuid, aggregatetype text, aggregateid text, type text, payload jsonb, "+id+" text, forever timestamptz)")
			cfg := debezium(url, kafka)
			cfg.Headers = headers
			startReady(t, cfg)
			execute(t, conn, "INSERT INTO public.outbox VALUES ($1, 'order', '1', 'Placed', '{}', 'another', 'infinity')", debeziumID)
			record, seen := kafka.reader(t, "outbox.event.order").next(t), 0
			for _, h := range record.Headers {
				if h.Key == id {
					if seen++; string(h.Value) != debeziumID {
						t.Errorf("%s is %s", h.Key, h.Value)
					}
				}
			}
			if forever := headersOf(t, record)["forever"]; seen != 1 || forever != "infinity" {
				t.Errorf("%d headers %s, and an infinite time is %q", seen, id, forever)
			}
		})
	}
}

// Whatever an outbox is called and an emitter says, its CloudEvents are valid.
func TestCloudEventsAreValidWhateverTheRowSays(t *testing.T) {
	url, kafka := outboxDatabase(t), startBroker(t)
	conn := connect(t, url)
	execute(t, conn, `ALTER TABLE orders.outbox RENAME TO "out box é%"`)
	cfg := config(url, kafka)
	cfg.Headers, cfg.Tables = relay.HeadersCloudEvents, []string{`orders.out box é%`}
	startReady(t, cfg)
	execute(t, conn, `
		INSERT INTO "out box é%" (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload, headers, created_at)
		VALUES ($1, 'orders', 'order é', '100% é', 7, 'OrderPlaced', 'application/json', '{}',
		        '{"occurred_at": "yesterday", "ce_id": "another", "ce_data": "x", "correlation_id": null}', '2026-11-23 12:00:00+00')`, debeziumID)
	record := kafka.reader(t, "orders").next(t)
	cloudEvent(t, record)
	if len(headersOf(t, record)) != len(record.Headers) {
		t.Errorf("a header comes twice: %v", record.Headers)
	}
	got := headersOf(t, record)
	delete(got, "ce_committedat")
	// Values are UTF-8 as they are: only HTTP's binding encodes them.
	want := map[string]string{"ce_specversion": "1.0", "ce_id": debeziumID, "ce_source": "/orders/out%20box%20%C3%A9%25", "ce_type": "OrderPlaced",
		"ce_subject": "100% é", "ce_aggregatetype": "order é", "ce_aggregateversion": "7", "ce_time": "2026-11-23T12:00:00Z", "content-type": "application/json"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A template that no row could fill would make a dead letter of every one.
func TestATemplateThatNoTopicCanHaveIsRefused(t *testing.T) {
	for _, topic := range []string{"orders/{topic}", "a b", "é{topic}"} {
		_, err := relay.New(relay.Config{DatabaseURL: "postgres://x", Brokers: []string{"x:1"}, Topic: topic})
		if err == nil || !strings.Contains(err.Error(), "cannot stand in a topic's name") {
			t.Errorf("%q: %v", topic, err)
		}
	}
}
