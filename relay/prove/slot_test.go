package prove

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"converge/internal/proof"
)

const fillSQL = `
INSERT INTO orders.outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload)
SELECT gen_random_uuid(), 'topic-0', 'thing', 'k', n, 'Happened', 'text/plain', ''
FROM generate_series(1, 1000) AS n`

// A server that runs out of patience takes the log away that the relay still needs. Rows are lost to it then, and
// only people can bring them back: the relay must end, and say so, now and whenever it is started.
func TestRelayThatLostItsSlotEndsWithTheFix(t *testing.T) {
	t.Parallel()
	if err := loseSlot(t, buildRelay(t), "", proof.Patience); err != nil {
		t.Error(err)
	}
}

// loseSlot has the server invalidate the slot while Kafka is away, and returns what the relay did wrong.
func loseSlot(t *testing.T, binary, plant string, notice time.Duration) error {
	t.Helper()
	r := &run{t: t, binary: binary, plant: plant, logs: t.TempDir(), plan: plan{Patience: proof.Patience}, cluster: startCluster(t),
		server: startServer(t, map[string]string{"max_slot_wal_keep_size": "1MB"})}
	conn, err := pgx.Connect(t.Context(), r.server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	execute := func(sql string) {
		t.Helper()
		_, err := conn.Exec(t.Context(), sql)
		must(err)
	}
	r.kafka = r.cluster.Client()
	relay := r.startRelay("")
	must(r.await("the slot is read", r.slotIsRead))
	r.slotMade = true
	execute(fillSQL)
	must(r.await("the first rows are published", func() error {
		all, err := ends(t.Context(), r.kafka)
		var got int64
		for _, end := range all {
			got += end
		}
		if err == nil && got == 0 {
			err = errors.New("the topic is empty")
		}
		return err
	}))

	r.cluster.Leg.Cut()
	must(r.await("the server gives the slot up", func() error {
		execute(fillSQL)
		execute("SELECT pg_switch_wal()")
		execute("CHECKPOINT")
		var status string
		err := conn.QueryRow(t.Context(), "SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1", slot).Scan(&status)
		if err == nil && status != "lost" {
			err = errors.New(status)
		}
		return err
	}))
	r.cluster.Leg.Mend()

	for _, when := range []string{"the relay that ran", "a relay that is started later"} {
		select {
		case <-relay.done:
		case <-time.After(notice):
			return fmt.Errorf("%s goes on without the rows:\n%s", when, relay.tail())
		}
		said := relay.tail()
		if relay.command.ProcessState.ExitCode() <= 0 || !strings.Contains(said, "slot "+slot+" was invalidated") || !strings.Contains(said, "pg_drop_replication_slot") {
			return fmt.Errorf("%s ended with %s and without the fix:\n%s", when, relay.command.ProcessState, said)
		}
		relay = r.startRelay("")
	}
	relay.kill()
	return nil
}
