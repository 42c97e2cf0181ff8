package relay_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"converge/relay"
)

const insertManySQL = `
INSERT INTO outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload)
SELECT gen_random_uuid(), 'topic-0', 'thing', 'k', n, 'Happened', 'text/plain', convert_to(repeat('x', 500), 'UTF8')
FROM generate_series($1::bigint, $2::bigint) AS n`

func TestBackfillSendsOlderRowsOnceMarkedAndBeforeNewerOnes(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	conn := connect(t, url)
	execute(t, conn, insertManySQL, 0, 1999)
	cfg := config(url, kafka)
	cfg.OnMissingSlot = relay.BackfillMissingSlot
	subject := startReady(t, cfg)
	execute(t, conn, insertManySQL, 2000, 2099)
	confirmedPast(t, conn, cfg.Slot, ask[string](t, conn, walEndSQL))
	if err := subject.stop(); err != nil {
		t.Fatal(err)
	}
	all := records(t, kafka, "topic-0")
	if len(all) != 2100 {
		t.Fatalf("%d records, want 2100", len(all))
	}
	for i, r := range all {
		h := headersOf(t, r)
		if h["aggregate_version"] != fmt.Sprint(i) || (h["replay"] == "backfill") != (i < 2000) {
			t.Fatalf("record %d has headers %v", i, h)
		}
	}
	found := checkpointsOf(t, kafka, cfg)
	if !found[0].Pending || found[len(found)-1].Pending {
		t.Errorf("the first checkpoint says pending %v, the last %v", found[0].Pending, found[len(found)-1].Pending)
	}
	if err := startReady(t, cfg).stop(); err != nil { // there is nothing left to backfill
		t.Fatal(err)
	}
	if again := records(t, kafka, "topic-0"); len(again) != len(all) {
		t.Errorf("%d records after another start, want %d", len(again), len(all))
	}
}

// TestBackfillThatDiedBeginsAnew: the relay is killed while rows older than the slot are on their way. The
// slot exists then, and must not pass for one that has everything.
func TestBackfillThatDiedBeginsAnew(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	url, kafka := outboxDatabase(t), startBroker(t)
	conn := connect(t, url)
	const rows = 30_000
	execute(t, conn, insertManySQL, 0, rows-1)
	c := childConfig{DatabaseURL: url, Brokers: kafka.addrs(), Slot: uniqueSlot(), OnMissingSlot: relay.BackfillMissingSlot}
	first := startChild(t, self, c)
	kafka.reader(t, "topic-0").next(t) // it is at it
	kafka.gate.pause()
	first.kill()
	kafka.gate.shut()
	kafka.gate.open()
	eventually(t, "the slot is free", slotFree(t, conn, c.Slot))
	if held := len(records(t, kafka, "topic-0")); held >= rows {
		t.Fatalf("all %d rows were sent before the kill", held)
	}

	cfg := config(url, kafka)
	cfg.Slot, cfg.OnMissingSlot = c.Slot, relay.CreateMissingSlot
	ended(t, start(t, cfg), "a backfill that was not finished", "--on-missing-slot backfill")
	execute(t, conn, insertManySQL, rows, rows+9) // older than the second backfill, newer than the slot

	cfg.OnMissingSlot = relay.BackfillMissingSlot
	subject := startReady(t, cfg)
	confirmedPast(t, conn, cfg.Slot, ask[string](t, conn, walEndSQL))
	if err := subject.stop(); err != nil {
		t.Fatal(err)
	}
	next := 0
	for _, r := range records(t, kafka, "topic-0") {
		switch n := entryOf(t, r).sequence; {
		case n == next:
			next++
		case n > next:
			t.Fatalf("row %d came before row %d", n, next)
		}
	}
	if next != rows+10 {
		t.Errorf("%d rows came, want %d", next, rows+10)
	}
}

func slotFree(t testing.TB, conn *pgx.Conn, slot string) func() error {
	return func() error {
		if ask[bool](t, conn, "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active)", slot) {
			return errors.New("it is read")
		}
		return nil
	}
}

// slotRead is whether somebody reads the slot. While it is being created it is active too, waits for all
// transactions of the server and keeps nothing yet.
func slotRead(t testing.TB, conn *pgx.Conn, slot string) func() error {
	return func() error {
		if !ask[bool](t, conn, "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active AND confirmed_flush_lsn IS NOT NULL)", slot) {
			return errors.New("nobody reads it")
		}
		return nil
	}
}

// TestBackfillMendsALostSlot: what the slot missed is in the tables.
func TestBackfillMendsALostSlot(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	conn := connect(t, url)
	cfg := config(url, kafka)
	streamed(t, cfg, conn, "0")
	onFreeSlot(t, conn, strings.ReplaceAll("SELECT pg_drop_replication_slot('SLOT')", "SLOT", cfg.Slot))
	insertRow(t, conn, "orders", "k", "1")
	cfg.OnMissingSlot = relay.BackfillMissingSlot
	streamed(t, cfg, conn, "2")
	var got []string
	for _, r := range records(t, kafka, "orders") {
		got = append(got, string(r.Value))
	}
	if fmt.Sprint(got) != "[0 0 1 2]" {
		t.Errorf("the topic holds %v, want 0, and 0 and 1 from the backfill, and 2", got)
	}
}

func TestBackfillExactlyOnceIsCommittedWithItsEnd(t *testing.T) {
	t.Parallel()
	url, kafka := outboxDatabase(t), startBroker(t)
	conn := connect(t, url)
	execute(t, conn, insertManySQL, 0, 999)
	cfg := config(url, kafka)
	cfg.OnMissingSlot, cfg.ExactlyOnce = relay.BackfillMissingSlot, true
	subject := startReady(t, cfg)
	execute(t, conn, insertManySQL, 1000, 1099)
	confirmedPast(t, conn, cfg.Slot, ask[string](t, conn, walEndSQL))
	if err := subject.stop(); err != nil {
		t.Fatal(err)
	}
	if err := startReady(t, cfg).stop(); err != nil {
		t.Fatal(err)
	}
	all := committed(t, cfg.Brokers, "topic-0")
	if len(all) != 1100 {
		t.Fatalf("%d records, want 1100", len(all))
	}
	for i, r := range all {
		if n := entryOf(t, r).sequence; n != i {
			t.Fatalf("record %d is row %d", i, n)
		}
	}
}
