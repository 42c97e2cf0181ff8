package relay_test

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"converge/relay"
)

func TestConfigurationIsChecked(t *testing.T) {
	good := relay.Config{DatabaseURL: "postgres://localhost/x", Brokers: []string{"localhost:9092"}}
	if _, err := relay.New(good); err != nil {
		t.Fatalf("a good configuration: %v", err)
	}
	for name, c := range map[string]struct {
		change func(*relay.Config)
		want   string
	}{
		"no database":     {func(c *relay.Config) { c.DatabaseURL = "" }, "DatabaseURL is empty"},
		"no URL":          {func(c *relay.Config) { c.DatabaseURL = "postgres://%zz" }, "reading DatabaseURL"},
		"no brokers":      {func(c *relay.Config) { c.Brokers = nil }, "Brokers is empty"},
		"a slot's name":   {func(c *relay.Config) { c.Slot = "Converge" }, `"Converge"`},
		"a table's name":  {func(c *relay.Config) { c.Tables = []string{"outbox"} }, "schema.table"},
		"a policy":        {func(c *relay.Config) { c.OnMissingSlot = "hope" }, `"hope"`},
		"too little room": {func(c *relay.Config) { c.BufferBytes = 1 }, "BufferBytes"},
		"a negative time": {func(c *relay.Config) { c.DrainTimeout = -time.Second }, "negative"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := good
			c.change(&bad)
			if _, err := relay.New(bad); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("New returned %v, want an error that says %s", err, c.want)
			}
		})
	}
}

// TestBootFailsClosedWithTheFix: each trap ends Run before anything streams, and following the message
// mends it.
func TestBootFailsClosedWithTheFix(t *testing.T) {
	t.Parallel()
	kafka := startBroker(t)
	const created = "CREATE PUBLICATION converge FOR TABLE orders.outbox WITH (publish = 'insert', publish_via_partition_root = true)"
	for name, c := range map[string]struct {
		prepare []string // after which Run must end with want
		change  func(*relay.Config)
		want    string // the fix, as the message has it
		fix     string // and as it is run; empty: want
	}{
		"publication missing": {
			change: func(c *relay.Config) { c.OnMissingSlot = relay.FailOnMissingSlot },
			want:   `CREATE PUBLICATION "converge" FOR TABLE "orders"."outbox" (event_id, topic,`, fix: created},
		"publication of updates": {prepare: []string{"CREATE PUBLICATION converge FOR TABLE orders.outbox WITH (publish_via_partition_root = true)"},
			want: `ALTER PUBLICATION "converge" SET (publish = 'insert')`},
		"publication of partitions": {prepare: []string{"CREATE PUBLICATION converge FOR TABLE orders.outbox WITH (publish = 'insert')"},
			want: `ALTER PUBLICATION "converge" SET (publish_via_partition_root = true)`},
		"table missing from the publication": {prepare: []string{"CREATE TABLE orders.other (n int)",
			"CREATE PUBLICATION converge FOR TABLE orders.other WITH (publish = 'insert', publish_via_partition_root = true)"},
			want: `ALTER PUBLICATION "converge" ADD TABLE "orders"."outbox"`, fix: "ALTER PUBLICATION converge SET TABLE orders.outbox"},
		"table that nobody named": {prepare: []string{"CREATE TABLE orders.other (n int)",
			"CREATE PUBLICATION converge FOR TABLE orders.outbox, orders.other WITH (publish = 'insert', publish_via_partition_root = true)"},
			want: "also holds orders.other", fix: "ALTER PUBLICATION converge DROP TABLE orders.other"},
		"slot missing": {prepare: []string{created}, change: func(c *relay.Config) { c.OnMissingSlot = relay.FailOnMissingSlot },
			want: "SELECT pg_create_logical_replication_slot('SLOT', 'pgoutput')"},
		"slot of another plugin": {prepare: []string{created, "SELECT pg_create_logical_replication_slot('SLOT', 'test_decoding')"},
			want: "belongs to another plugin", fix: "SELECT pg_drop_replication_slot('SLOT')"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := outboxDatabase(t)
			conn := connect(t, address)
			cfg := config(address, kafka)
			inSlot := func(s string) string { return strings.ReplaceAll(s, "SLOT", cfg.Slot) }
			for _, statement := range c.prepare {
				execute(t, conn, inSlot(statement))
			}
			if c.change != nil {
				c.change(&cfg)
			}
			subject := start(t, cfg)
			select {
			case <-subject.done:
			case <-time.After(patience):
				t.Fatalf("Run goes on; ready is %v", subject.Ready())
			}
			if subject.err == nil || !strings.Contains(subject.err.Error(), inSlot(c.want)) {
				t.Fatalf("Run returned %v, want an error that says %s", subject.err, inSlot(c.want))
			}
			fix := c.fix
			if fix == "" {
				fix = c.want
			}
			execute(t, conn, inSlot(fix))
			if name == "publication missing" {
				cfg.OnMissingSlot = relay.CreateMissingSlot
			}
			startReady(t, cfg)
		})
	}
}

func TestRoleThatDoesNotExistEndsRun(t *testing.T) {
	t.Parallel()
	address, err := url.Parse(outboxDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	address.User = url.User("nobody_here")
	subject := start(t, config(address.String(), startBroker(t)))
	select {
	case <-subject.done:
	case <-time.After(patience):
		t.Fatalf("Run goes on; ready is %v", subject.Ready())
	}
	if subject.err == nil || !strings.Contains(subject.err.Error(), "use a role that exists") {
		t.Errorf("Run returned %v, want to hear about the role", subject.err)
	}
}

func TestSlotThatDisappearsWhileStreamingIsNotMadeAnew(t *testing.T) {
	t.Parallel()
	address, kafka := outboxDatabase(t), startBroker(t)
	cfg := config(address, kafka)
	subject := startReady(t, cfg)
	conn := connect(t, address)
	eventually(t, "the slot is dropped", func() error {
		_, err := conn.Exec(t.Context(), "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active", cfg.Slot)
		if err != nil {
			return err
		}
		_, err = conn.Exec(t.Context(), "SELECT pg_drop_replication_slot($1)", cfg.Slot)
		return err
	})
	select {
	case <-subject.done:
	case <-time.After(patience):
		t.Fatalf("Run goes on; ready is %v", subject.Ready())
	}
	if subject.err == nil || !strings.Contains(subject.err.Error(), "is gone") {
		t.Errorf("Run returned %v, want to hear that the slot is gone", subject.err)
	}
}

func TestTableOfAnotherShapeIsRefused(t *testing.T) {
	t.Parallel()
	address, kafka := outboxDatabase(t), startBroker(t)
	conn := connect(t, address)
	execute(t, conn, "CREATE TABLE orders.wrong (event_id text, topic text)")
	execute(t, conn, "CREATE PUBLICATION converge FOR TABLE orders.wrong WITH (publish = 'insert', publish_via_partition_root = true)")
	cfg := config(address, kafka)
	cfg.Tables = nil
	subject := start(t, cfg)
	select {
	case <-subject.done:
	case <-time.After(patience):
		t.Fatalf("Run goes on; ready is %v", subject.Ready())
	}
	if subject.err == nil || !strings.Contains(subject.err.Error(), "column event_id of orders.wrong") {
		t.Errorf("Run returned %v, want to hear which column is wrong", subject.err)
	}
}

func TestTableThatChangesItsShapeWhileStreamingIsRefused(t *testing.T) {
	t.Parallel()
	address, kafka := outboxDatabase(t), startBroker(t)
	subject := startReady(t, config(address, kafka))
	conn := connect(t, address)
	execute(t, conn, "ALTER TABLE orders.outbox RENAME COLUMN topic TO subject")
	execute(t, conn, "INSERT INTO orders.outbox (event_id, subject, aggregate_type, aggregate_id, aggregate_version, event_type, content_type) "+
		"VALUES (gen_random_uuid(), 'orders', 'thing', 'k', 1, 'Happened', 'application/json')")
	select {
	case <-subject.done:
	case <-time.After(patience):
		t.Fatalf("Run goes on; ready is %v", subject.Ready())
	}
	if subject.err == nil || !strings.Contains(subject.err.Error(), "orders.outbox publishes no column topic") {
		t.Errorf("Run returned %v, want to hear which column is missing", subject.err)
	}
}
