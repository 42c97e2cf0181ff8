package relay_test

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"converge/relay"
)

// diagnosis returns what each check found.
func diagnosis(t testing.TB, cfg relay.Config) map[string]relay.Finding {
	t.Helper()
	findings, err := relay.Diagnose(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	byCheck := make(map[string]relay.Finding)
	for _, f := range findings {
		if _, twice := byCheck[f.Check]; twice {
			t.Errorf("check %s comes twice", f.Check)
		}
		byCheck[f.Check] = f
		if strings.Contains(f.Found+f.Fix, "\n") {
			t.Errorf("%s is more than one line: %q, %q", f.Check, f.Found, f.Fix)
		}
	}
	return byCheck
}

// faults returns the level of each finding that is not OK.
func faults(t testing.TB, cfg relay.Config) map[string]relay.Level {
	t.Helper()
	levels := make(map[string]relay.Level)
	for check, f := range diagnosis(t, cfg) {
		if f.Level != relay.OK {
			levels[check] = f.Level
			if f.Fix == "" {
				t.Errorf("%s (%s) has no fix", check, f.Found)
			}
		}
	}
	return levels
}

const goodPublication = "CREATE PUBLICATION converge FOR TABLE orders.outbox WITH (publish = 'insert', publish_via_partition_root = true)"

// TestDiagnosisNamesEachTrouble: every trouble is found by its own check, alone, with a fix.
func TestDiagnosisNamesEachTrouble(t *testing.T) {
	t.Parallel()
	kafka := startBroker(t)
	if err := kafka.CreateTopic("small", 1, map[string]string{"max.message.bytes": "4096"}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		prepare []string
		change  func(*relay.Config)
		want    map[string]relay.Level
	}{
		"nothing":          {prepare: []string{goodPublication}, want: map[string]relay.Level{}},
		"nothing made yet": {want: map[string]relay.Level{}},
		"publication missing": {change: func(c *relay.Config) { c.OnMissingSlot = relay.FailOnMissingSlot },
			want: map[string]relay.Level{"publication": relay.Fail, "slot": relay.Fail}},
		"publication of all": {prepare: []string{"CREATE PUBLICATION converge FOR TABLE orders.outbox"},
			want: map[string]relay.Level{"inserts only": relay.Fail, "partitions": relay.Fail}},
		"another table": {prepare: []string{"CREATE TABLE orders.other (LIKE orders.outbox)",
			strings.Replace(goodPublication, "orders.outbox", "orders.outbox, orders.other", 1)},
			want: map[string]relay.Level{"tables": relay.Fail}},
		"a column of another type": {prepare: []string{"CREATE TABLE orders.wrong (event_id text)",
			strings.Replace(goodPublication, "orders.outbox", "orders.wrong", 1)},
			change: func(c *relay.Config) { c.Tables = []string{"orders.wrong"} },
			want:   map[string]relay.Level{"columns": relay.Fail}},
		"a column that is not published": {prepare: []string{strings.Replace(goodPublication, "orders.outbox", "orders.outbox (seq, event_id)", 1)},
			want: map[string]relay.Level{"columns": relay.Fail}},
		"slot missing": {prepare: []string{goodPublication}, change: func(c *relay.Config) { c.OnMissingSlot = relay.FailOnMissingSlot },
			want: map[string]relay.Level{"slot": relay.Fail}},
		"slot of another plugin": {prepare: []string{goodPublication, "SELECT pg_create_logical_replication_slot('SLOT', 'test_decoding')"},
			want: map[string]relay.Level{"slot": relay.Fail}},
		"role without replication": {prepare: []string{goodPublication, "DO $$ BEGIN CREATE ROLE SLOT LOGIN; END $$"},
			change: func(c *relay.Config) { c.DatabaseURL = as(t, c.DatabaseURL, c.Slot) },
			want:   map[string]relay.Level{"role": relay.Warn, "replication connection": relay.Fail}},
		"nobody at the database": {change: func(c *relay.Config) { c.DatabaseURL = "postgres://x@127.0.0.1:1/x" },
			want: map[string]relay.Level{"database": relay.Fail}},
		"no such role": {change: func(c *relay.Config) { c.DatabaseURL = as(t, c.DatabaseURL, "nobody_here") },
			want: map[string]relay.Level{"database": relay.Fail}},
		"nobody at Kafka": {prepare: []string{goodPublication}, change: func(c *relay.Config) { c.Brokers = []string{"127.0.0.1:1"} },
			want: map[string]relay.Level{"kafka": relay.Fail}},
		"a file for a directory": {prepare: []string{goodPublication}, change: func(c *relay.Config) { c.SpillDir = os.Args[0] },
			want: map[string]relay.Level{"spill directory": relay.Fail}},
		"no directory yet": {prepare: []string{goodPublication}, change: func(c *relay.Config) { c.SpillDir = filepath.Join(t.TempDir(), "a", "b") },
			want: map[string]relay.Level{}},
		"topic missing": {prepare: []string{goodPublication, eventFor("absent", "1")}, change: func(c *relay.Config) { c.NoCreateTopics = true },
			want: map[string]relay.Level{"topic absent": relay.Fail, "dead letters": relay.Warn, "checkpoint": relay.Warn}},
		"topic of no name": {prepare: []string{goodPublication, eventFor("a b", "1")},
			want: map[string]relay.Level{"topic a b": relay.Warn}},
		"payload over the limit": {prepare: []string{goodPublication, eventFor("small", strings.Repeat("x", 5000))},
			want: map[string]relay.Level{"topic small": relay.Warn}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := outboxDatabase(t)
			conn := connect(t, address)
			cfg := config(address, kafka)
			for _, statement := range c.prepare {
				execute(t, conn, strings.ReplaceAll(statement, "SLOT", cfg.Slot))
			}
			if c.change != nil {
				c.change(&cfg)
			}
			if name == "role without replication" {
				t.Cleanup(func() { dropRole(t, address, cfg.Slot) })
			}
			if diff := cmp.Diff(c.want, faults(t, cfg)); diff != "" {
				t.Errorf("faults (-want +got):\n%s\nof %+v", diff, diagnosis(t, cfg))
			}
		})
	}
}

func eventFor(topic, payload string) string {
	return "INSERT INTO orders.outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload) " +
		"VALUES (gen_random_uuid(), '" + topic + "', 'thing', 'k', 1, 'Happened', 'text/plain', '" + payload + "')"
}

func as(t testing.TB, address, user string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(user)
	return u.String()
}

func dropRole(t testing.TB, address, role string) {
	conn, err := pgx.Connect(t.Context(), address)
	if err == nil {
		_, err = conn.Exec(t.Context(), "DROP ROLE "+role)
	}
	if err != nil {
		t.Logf("dropping role %s: %v", role, err)
	}
}

// TestDiagnosisChangesNothing: what it says will be made is not made by it.
func TestDiagnosisChangesNothing(t *testing.T) {
	t.Parallel()
	address, kafka := outboxDatabase(t), startBroker(t)
	conn := connect(t, address)
	execute(t, conn, eventFor("orders", "1"))
	cfg := config(address, kafka)
	if f := diagnosis(t, cfg)["topics"]; !strings.Contains(f.Found, "orders: will be created") {
		t.Errorf("the topics are %+v", f)
	}
	if n := ask[int](t, conn, "SELECT count(*) FROM pg_publication"); n != 0 {
		t.Errorf("there are %d publications", n)
	}
	if n := ask[int](t, conn, "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1", cfg.Slot); n != 0 {
		t.Errorf("there are %d slots", n)
	}
	if info := kafka.TopicInfo("orders"); info != nil {
		t.Errorf("topic orders was made: %+v", info)
	}
}

// TestDiagnosisRunsBesideTheRelay: it takes neither the slot nor anything else from it.
func TestDiagnosisRunsBesideTheRelay(t *testing.T) {
	t.Parallel()
	address, kafka := outboxDatabase(t), startBroker(t)
	cfg := config(address, kafka)
	subject := startReady(t, cfg)
	if f := diagnosis(t, cfg)["slot"]; !strings.Contains(f.Found, "is read by converge relay") {
		t.Errorf("the slot is %+v", f)
	}
	insertRow(t, connect(t, address), "orders", "k", "1")
	kafka.reader(t, "orders").next(t)
	if err := subject.Ready(); err != nil {
		t.Error(err)
	}
}

// TestDiagnosisFindsASlotThatWasMovedByHand by the checkpoint, as the relay itself would.
func TestDiagnosisFindsASlotThatWasMovedByHand(t *testing.T) {
	t.Parallel()
	address, kafka := outboxDatabase(t), startBroker(t)
	cfg := config(address, kafka)
	subject := startReady(t, cfg)
	conn := connect(t, address)
	insertRow(t, conn, "orders", "k", "1")
	kafka.reader(t, "orders").next(t)
	if err := subject.stop(); err != nil {
		t.Fatal(err)
	}
	if f := diagnosis(t, cfg)["checkpoint"]; f.Level != relay.OK || !strings.Contains(f.Found, "written") {
		t.Errorf("before: %+v", f)
	}
	insertRow(t, conn, "orders", "k", "2")
	execute(t, conn, "SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())", cfg.Slot)
	want := map[string]relay.Level{"checkpoint": relay.Fail}
	if diff := cmp.Diff(want, faults(t, cfg)); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
}

func TestStatusFollowsTheSlotsLife(t *testing.T) {
	t.Parallel()
	address, kafka := outboxDatabase(t), startBroker(t)
	cfg := config(address, kafka)
	inspect := func() relay.Status {
		t.Helper()
		s, err := relay.Inspect(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := inspect(); s.Exists || s.Healthy() || !strings.Contains(s.Problems[0].Fix, "--on-missing-slot create") {
		t.Errorf("before there is a slot: %+v", s)
	}
	subject := startReady(t, cfg)
	conn := connect(t, address)
	insertRow(t, conn, "orders", "k", "1")
	kafka.reader(t, "orders").next(t)
	s := inspect()
	if !s.Healthy() || !s.Active || s.PID == 0 || s.Reader != "converge relay" || s.WALStatus != "reserved" || s.SafeBytes == nil {
		t.Errorf("while it streams: %+v", s)
	}
	if s.Restart == "" || s.Confirmed == "" || s.Current == "" {
		t.Errorf("positions are missing: %+v", s)
	}
	if err := subject.stop(); err != nil {
		t.Fatal(err)
	}
	execute(t, conn, "SELECT pg_logical_emit_message(false, 'x', repeat('x', 100000))")
	if s := inspect(); s.Checkpoint == nil || s.Checkpoint.Confirmed == "" || s.Checkpoint.System == "" || s.Checkpoint.Covered.IsZero() {
		t.Errorf("after a row was published, the checkpoint is %+v", s.Checkpoint)
	}
	eventually(t, "the lag grows", func() error {
		if s := inspect(); s.Active || s.Healthy() || s.LagBytes < 100000 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
}
