package relay_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/event"
	"converge/internal/pgtest"
	"converge/relay"
)

// debezium is the configuration of a user who moves from there.
func debezium(url string, b *broker) relay.Config {
	cfg := config(url, b)
	cfg.Preset, cfg.Tables = relay.PresetDebezium, []string{"public.outbox"}
	return cfg
}

// shown is a record as a consumer sees it.
type shown struct {
	Topic, Key string
	Value      *string
	Headers    map[string]string
}

func show(t testing.TB, r *kgo.Record) shown {
	t.Helper()
	s := shown{Topic: r.Topic, Key: string(r.Key), Headers: headersOf(t, r)}
	if r.Value != nil {
		value := string(r.Value)
		s.Value = &value
	}
	return s
}

const debeziumID = "4d47e190-0402-4048-bc2c-89dd54343cdc"

// Rows of a table that Debezium's outbox event router reads become the records that it makes: also those that are
// deleted in the transaction that inserted them, which is a habit there.
func TestADebeziumOutboxBecomesTheRoutersRecords(t *testing.T) {
	url, kafka := pgtest.URL(t), startBroker(t)
	conn := connect(t, url)
	execute(t, conn, `SET search_path = public`)
	execute(t, conn, `
		CREATE TYPE mood AS ENUM ('calm', 'cross');
		CREATE DOMAIN cents AS int;
		CREATE DOMAIN price AS cents CHECK (VALUE > 0);
		CREATE TABLE outbox (
			id uuid PRIMARY KEY, aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload jsonb,
			tenant text, total numeric, small smallint, big bigint, sure boolean, made timestamptz, day date, mood mood, price price,
			ref uuid, data jsonb, raw bytea, tags text[], nothing text)`)
	startReady(t, debezium(url, kafka))
	execute(t, conn, "BEGIN")
	execute(t, conn, `INSERT INTO outbox VALUES ($1, 'order', '1', 'OrderCreated', '{"lineItems": [1], "total": "é"}',
		'acme', 12.50, -2, 9007199254740993, true, '2026-11-23 12:00:00.5+02', '2026-11-23', 'cross', 100,
		$1, '[1, 2]', '\x00ff', '{a,"b c"}', NULL)`, debeziumID)
	execute(t, conn, `INSERT INTO outbox (id, aggregatetype, aggregateid, type) VALUES (gen_random_uuid(), 'order', '1', 'OrderForgotten')`)
	execute(t, conn, "DELETE FROM outbox")
	execute(t, conn, "COMMIT")
	reader := kafka.reader(t, "outbox.event.order")
	value := `{"total": "é", "lineItems": [1]}` // as jsonb prints it
	want := shown{"outbox.event.order", "1", &value, map[string]string{"id": debeziumID, "eventType": "OrderCreated", "tenant": "acme", "total": "12.50", "small": "-2",
		"big": "9007199254740993", "sure": "true", "made": "2026-11-23T10:00:00.5Z", "day": "2026-11-23", "mood": "cross", "price": "100",
		"ref": debeziumID, "data": "[1, 2]", "raw": "\x00\xff", "tags": `{a,"b c"}`}}
	if diff := cmp.Diff(want, show(t, reader.next(t))); diff != "" {
		t.Error(diff)
	}
	if tombstone := show(t, reader.next(t)); tombstone.Value != nil || tombstone.Key != "1" || len(tombstone.Headers) != 2 {
		t.Errorf("a row without payload became %+v", tombstone)
	}
}

func TestADebeziumOutboxMayHaveOtherTypes(t *testing.T) {
	for name, c := range map[string]struct{ columns, id, key, payload, value string }{
		"json":                 {"id uuid, aggregateid varchar(255), payload json", debeziumID, "1", `{"a":  1}`, `{"a":  1}`},
		"text":                 {"id text, aggregateid text, payload text", "order-1/1", "k", "plain", "plain"},
		"bytea":                {"id varchar, aggregateid uuid, payload bytea", "42", debeziumID, `\x0001`, "\x00\x01"},
		"a number for the key": {"id uuid, aggregateid bigint, payload jsonb", debeziumID, "-7", `{}`, "{}"},
	} {
		t.Run(name, func(t *testing.T) {
			url, kafka := pgtest.URL(t), startBroker(t)
			conn := connect(t, url)
			execute(t, conn, `SET search_path = public`)
			execute(t, conn, "CREATE TABLE outbox (aggregatetype text, type text, "+c.columns+")")
			startReady(t, debezium(url, kafka))
			execute(t, conn, fmt.Sprintf("INSERT INTO outbox (aggregatetype, type, id, aggregateid, payload) VALUES ('order', 'Placed', '%s', '%s', '%s')", c.id, c.key, c.payload))
			want := shown{"outbox.event.order", c.key, &c.value, map[string]string{"id": c.id, "eventType": "Placed"}}
			if diff := cmp.Diff(want, show(t, kafka.reader(t, "outbox.event.order").next(t))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestATableThatIsNoDebeziumOutboxIsRefusedWithTheFix(t *testing.T) {
	for name, c := range map[string]struct{ columns, fix string }{
		"no payload":         {"id uuid, aggregatetype text, aggregateid text, type text", "add payload jsonb"},
		"a number for an id": {"id bigint, aggregatetype text, aggregateid text, type text, payload jsonb", "make it a uuid"},
		"a composite":        {"id uuid, aggregatetype text, aggregateid text, type text, payload jsonb, pair pair", "make it a text, or leave it out of the publication's column list"},
	} {
		t.Run(name, func(t *testing.T) {
			url, kafka := pgtest.URL(t), startBroker(t)
			conn := connect(t, url)
			execute(t, conn, `SET search_path = public`)
			execute(t, conn, "CREATE TYPE pair AS (a int, b int); CREATE TABLE outbox ("+c.columns+")")
			r := start(t, debezium(url, kafka))
			<-r.done
			if r.err == nil || !strings.Contains(r.err.Error(), c.fix) {
				t.Errorf("Run returned %v, want %q", r.err, c.fix)
			}
		})
	}
}

// Whatever the headers are called, the records are one event to converge's own consumers.
func TestHeaderPresetsTellOneEvent(t *testing.T) {
	url, kafka := outboxDatabase(t), startBroker(t)
	conn := connect(t, url)
	for _, headers := range []relay.Headers{relay.HeadersConverge, relay.HeadersCloudEvents, relay.HeadersDebezium} {
		cfg := config(url, kafka)
		cfg.Headers, cfg.Topic, cfg.Publication = headers, "{topic}."+string(headers), "of_"+string(headers)
		startReady(t, cfg)
	}
	const id = "0190163d-8694-739b-aea5-966c26f8ad91"
	execute(t, conn, `
		INSERT INTO outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload, headers, created_at)
		VALUES ($1, 'orders', 'order', 'key-1', 7, 'OrderPlaced', 'application/json', '{"n": 1}',
		        '{"correlation_id": "c 1", "causation_id": "c2", "traceparent": "00-ab-cd-01", "x-tenant": "acme"}', '2026-11-23 12:00:00.123456+00'),
		       (gen_random_uuid(), 'other', '', 'key-1', 0, '', 'text/plain', 'raw', '{"x-attempt": "2"}', now())`, id)
	common := func(more ...string) map[string]string {
		h := map[string]string{"x-tenant": "acme", "content-type": "application/json"}
		for i := 0; i < len(more); i += 2 {
			h[more[i]] = more[i+1]
		}
		return h
	}
	var committed string
	want := map[relay.Headers]func() map[string]string{
		relay.HeadersConverge: func() map[string]string {
			return common("event_id", id, "event_type", "OrderPlaced", "aggregate_type", "order", "aggregate_version", "7", "committed_at", committed,
				"occurred_at", "2026-11-23T12:00:00.123456Z", "correlation_id", "c 1", "causation_id", "c2", "traceparent", "00-ab-cd-01")
		},
		relay.HeadersCloudEvents: func() map[string]string {
			return common("ce_specversion", "1.0", "ce_id", id, "ce_source", "/orders/outbox", "ce_type", "OrderPlaced", "ce_subject", "key-1",
				"ce_time", "2026-11-23T12:00:00.123456Z", "ce_aggregatetype", "order", "ce_aggregateversion", "7", "ce_committedat", committed,
				"ce_correlationid", "c 1", "ce_causationid", "c2", "ce_traceparent", "00-ab-cd-01")
		},
		relay.HeadersDebezium: func() map[string]string {
			return common("id", id, "eventType", "OrderPlaced", "aggregate_version", "7",
				"correlation_id", "c 1", "causation_id", "c2", "traceparent", "00-ab-cd-01")
		},
	}
	for _, headers := range []relay.Headers{relay.HeadersConverge, relay.HeadersCloudEvents, relay.HeadersDebezium} {
		record := kafka.reader(t, "orders."+string(headers)).next(t)
		e := &event.Event{Topic: record.Topic, Partition: record.Partition, Offset: record.Offset, Key: record.Key}
		for _, h := range record.Headers {
			e.Headers = append(e.Headers, event.Header{Key: h.Key, Value: h.Value})
		}
		e.Identify()
		if headers == relay.HeadersConverge {
			committed = headersOf(t, record)["committed_at"]
		}
		if diff := cmp.Diff(want[headers](), headersOf(t, record)); diff != "" {
			t.Errorf("%s:\n%s", headers, diff)
		}
		if e.ID != uuid.MustParse(id) || e.Type != "OrderPlaced" || e.AggregateID != "key-1" || e.AggregateVersion != 7 || e.CorrelationID != "c 1" ||
			e.CausationID != "c2" || e.Traceparent != "00-ab-cd-01" || e.ContentType != "application/json" {
			t.Errorf("%s tells %+v", headers, e)
		}
		if headers == relay.HeadersCloudEvents {
			cloudEvent(t, record)
		}
	}
	for range 3 { // a record of someone else's making goes out as it is, three times to its own topic
		if diff := cmp.Diff(map[string]string{"x-attempt": "2", "content-type": "text/plain"}, headersOf(t, kafka.reader(t, "other").next(t))); diff != "" {
			t.Error(diff)
		}
	}
}

// cloudEvent holds a record against CloudEvents 1.0 and its Kafka binding.
func cloudEvent(t *testing.T, r *kgo.Record) {
	t.Helper()
	required := map[string]bool{"id": false, "source": false, "specversion": false, "type": false}
	for _, h := range r.Headers {
		name, ok := strings.CutPrefix(h.Key, "ce_")
		if !ok {
			continue
		}
		required[name] = true
		if strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789") != "" || name == "data" || name == "datacontenttype" {
			t.Errorf("%s is no attribute that a header may be", h.Key)
		}
		if len(h.Value) == 0 || strings.ContainsFunc(string(h.Value), func(c rune) bool { return c < 0x20 || c >= 0x7f && c <= 0x9f }) {
			t.Errorf("%s is %q", h.Key, h.Value)
		}
	}
	for name, there := range required {
		if !there {
			t.Errorf("the event has no %s", name)
		}
	}
}

// A row whose topic no broker would have is a dead letter that says where it was to go.
func TestTopicsAreNamedAfterRows(t *testing.T) {
	url, kafka := outboxDatabase(t), startBroker(t)
	conn := connect(t, url)
	cfg := config(url, kafka)
	cfg.Topic = "{aggregate_type}-{event_type}.v1"
	startReady(t, cfg)
	insert := func(aggregate, eventType string) {
		t.Helper()
		execute(t, conn, `INSERT INTO outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload)
			VALUES (gen_random_uuid(), 'own', $1, 'k', 1, $2, '', '')`, aggregate, eventType)
	}
	insert("order", "Placed")
	insert("stock", "Reserved")
	insert("order", "Placed")
	insert("a b", "Placed") // no topic has such a name
	for _, name := range []string{"order-Placed.v1", "stock-Reserved.v1"} {
		kafka.reader(t, name).next(t)
	}
	if origin := headersOf(t, kafka.reader(t, cfg.Slot+".relay.dlq").next(t))["origin_topic"]; origin != "a b-Placed.v1" {
		t.Errorf("the dead letter was for %q", origin)
	}
}

func TestAConfigurationThatNamesNoTopicIsRefused(t *testing.T) {
	for _, c := range []struct {
		preset relay.Preset
		topic  string
		says   string
	}{
		{relay.PresetConverge, "{nothing}", "{nothing} is not one of {topic}, {aggregate_type}, {aggregate_id}, {event_type}, {content_type}"},
		{relay.PresetConverge, "{payload}", "{payload} is not one of"},
		{relay.PresetDebezium, "{topic}", "{topic} is not one of {aggregatetype}, {aggregateid}, {type}"},
		{relay.PresetConverge, "a{topic", "has a { without a }"},
		{relay.PresetConverge, "a}b", "has a } without a {"},
		{"postgres", "", `preset "postgres" is not "converge" or "debezium"`},
	} {
		_, err := relay.New(relay.Config{DatabaseURL: "postgres://x", Brokers: []string{"x:1"}, Preset: c.preset, Topic: c.topic})
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s %q: %v, want %q", c.preset, c.topic, err, c.says)
		}
	}
	for _, cfg := range []relay.Config{{Headers: "http"}, {Preset: relay.PresetDebezium, OnMissingSlot: relay.BackfillMissingSlot}} {
		cfg.DatabaseURL, cfg.Brokers = "postgres://x", []string{"x:1"}
		if _, err := relay.New(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
}
