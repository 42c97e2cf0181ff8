package relay_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"converge/internal/database"
	"converge/internal/partitions"
	"converge/producers/outbox"
)

// Rows of days are written, and the days are gone before the relay gets to read them: dropped, detached, made
// again under the same name. What is in the WAL is published all the same, to the last byte that was stored
// out of line.
func TestRowsOfADayThatIsDroppedWhileTheSlotIsBehindArePublished(t *testing.T) {
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := config(url, kafka)
	r := startReady(t, cfg)
	conn := connect(t, url)
	pool, err := database.Open(t.Context(), url, service, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	day := time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC)
	makeDays := func() {
		if err := partitions.Make(t.Context(), pool, "outbox", day, 1); err != nil {
			t.Fatal(err)
		}
	}
	big := make([]byte, 500_000) // noise, so that no compression keeps it in the row
	_, _ = rand.NewChaCha8([32]byte{}).Read(big)
	var want [][]byte
	write := func(at time.Time, payload []byte) {
		want = append(want, payload)
		execute(t, conn, `
			INSERT INTO outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload, created_at)
			VALUES (gen_random_uuid(), 'orders', '', 'k', 1, 'OrderPlaced', '', $1, $2)`, payload, at)
	}
	makeDays()
	write(day, []byte("published before"))
	reader := kafka.reader(t, "orders")
	if got := reader.value(t); got != "published before" {
		t.Fatalf("got %q", got)
	}
	want = nil
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	write(day, big)
	execute(t, conn, "BEGIN")
	for i := range 100 {
		write(day.AddDate(0, 0, i%2), fmt.Appendf(nil, "row %d", i))
	}
	execute(t, conn, "COMMIT")
	first, second := partitions.Name("outbox", partitions.Start(day)), partitions.Name("outbox", partitions.Start(day.AddDate(0, 0, 1)))
	execute(t, conn, "ALTER TABLE outbox DETACH PARTITION "+second)
	execute(t, conn, "DROP TABLE "+first)
	execute(t, conn, "DROP TABLE "+second)
	makeDays()
	write(day, []byte("of the new partition"))
	execute(t, conn, "DROP TABLE "+first)
	if got := ask[int](t, conn, "SELECT count(*) FROM outbox"); got != 0 {
		t.Fatalf("%d rows are left to read from the table", got)
	}
	startReady(t, cfg)
	for i, w := range want {
		if got := reader.next(t); !bytes.Equal(got.Value, w) {
			t.Fatalf("record %d is %.40q, want %.40q", i, got.Value, w)
		}
	}
}

// While a relay is at work, what it has published goes within one prune; while it cannot reach Kafka, nothing
// does.
func TestOldDaysGoWhenTheRelayHasPublishedThem(t *testing.T) {
	url, kafka := outboxDatabase(t), startBroker(t)
	cfg := config(url, kafka)
	startReady(t, cfg)
	conn := connect(t, url)
	pool, err := database.Open(t.Context(), url, service, 4)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	old := time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC)
	days := outbox.Days{Pool: pool, Retention: partitions.Day, Slot: cfg.Slot}
	if err := days.Make(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	left := func() int { return ask[int](t, conn, "SELECT count(*) FROM outbox") }
	write := func(payload string) {
		execute(t, conn, `
			INSERT INTO outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload, created_at)
			VALUES (gen_random_uuid(), 'orders', '', 'k', 1, 'OrderPlaced', '', $1, $2)`, []byte(payload), old)
	}
	reader := kafka.reader(t, "orders")
	write("one")
	if got := reader.value(t); got != "one" {
		t.Fatalf("got %q", got)
	}
	kafka.gate.pause()
	write("two")
	pruned := make(chan error, 1)
	go func() {
		p, err := days.Prune(t.Context(), old.AddDate(0, 0, 9))
		if p.Kept != "" {
			err = fmt.Errorf("kept: %s", p.Kept)
		}
		pruned <- err
	}()
	eventually(t, "the prune waits for the slot", func() error {
		if !ask[bool](t, conn, "SELECT EXISTS (SELECT FROM pg_locks WHERE mode = 'ShareLock' AND granted AND relation = $1::regclass)",
			partitions.Name("outbox", partitions.Start(old))) {
			return errors.New("the day is not locked")
		}
		return nil
	})
	select {
	case err := <-pruned:
		t.Errorf("the prune waited for no confirmation: %v", err)
	case <-time.After(500 * time.Millisecond): // a few looks at the slot
	}
	if left() != 2 {
		t.Errorf("%d rows are left while Kafka does not answer", left())
	}
	kafka.gate.open()
	if got := reader.value(t); got != "two" {
		t.Fatalf("got %q", got)
	}
	<-pruned // it may have lost patience on a machine this slow
	eventually(t, "what is published goes", func() error {
		p, err := days.Prune(t.Context(), old.AddDate(0, 0, 9))
		if err == nil && left() > 0 {
			err = fmt.Errorf("%d rows are left: %s", left(), p.Kept)
		}
		return err
	})
}
