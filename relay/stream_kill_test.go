package relay_test

import (
	"context"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// insertOwnSQL inserts rows of the key $1 with the ids $2, numbered from $3 on.
const insertOwnSQL = `
INSERT INTO outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload)
SELECT id, 'topic-0', 'thing', $1, $3 + ordinal - 1, 'Happened', 'text/plain', convert_to(repeat('x', 300), 'UTF8')
FROM unnest($2::uuid[]) WITH ORDINALITY AS u (id, ordinal)
ORDER BY ordinal`

// writeLarge makes transactions of several statements, with parts that are taken back, until ctx ends. One
// in four is rolled back as a whole.
func (l *ledger) writeLarge(ctx context.Context, url, key string, rng *rand.Rand) error {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return err
	}
	cfg.RuntimeParams["search_path"] = service
	background := context.WithoutCancel(ctx)
	conn, err := pgx.ConnectConfig(background, cfg)
	if err != nil {
		return err
	}
	defer conn.Close(background)
	pause := func() {
		select {
		case <-time.After(time.Duration(rng.IntN(60)) * time.Millisecond):
		case <-ctx.Done():
		}
	}
	for sequence := 0; ctx.Err() == nil; {
		tx, err := conn.Begin(background)
		if err != nil {
			return err
		}
		var kept, taken []entry
		for range 2 + rng.IntN(6) {
			back := rng.IntN(4) == 0
			part, err := tx.Begin(background) // a savepoint
			if err != nil {
				return err
			}
			rows := make([]entry, 100+rng.IntN(1500))
			ids := make([]uuid.UUID, len(rows))
			for i := range rows {
				ids[i] = uuid.New()
				rows[i] = entry{id: ids[i], key: key, sequence: sequence + len(kept) + i}
			}
			if _, err := part.Exec(background, insertOwnSQL, key, ids, rows[0].sequence); err != nil {
				return err
			}
			pause()
			end := part.Commit
			if back {
				end = part.Rollback
				taken = append(taken, rows...)
			} else {
				kept = append(kept, rows...)
			}
			if err := end(background); err != nil {
				return err
			}
		}
		l.note(&l.rolledBack, taken)
		if rng.IntN(4) == 0 {
			l.note(&l.rolledBack, kept)
			if err := tx.Rollback(background); err != nil {
				return err
			}
			continue
		}
		if err := tx.Commit(background); err != nil {
			return err
		}
		sequence += len(kept)
		l.note(&l.committed, kept)
	}
	return nil
}

// streamKillTest kills binary's relay again and again while two writers make large transactions and one small
// ones, and returns what is delivered.
func streamKillTest(t *testing.T, binary string, exactly bool, kills int, seed uint64) finding {
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	url, kafka := outboxDatabase(t), startBroker(t)
	c := childConfig{DatabaseURL: soonStreamed(t, url), Brokers: kafka.addrs(), Slot: uniqueSlot(), ExactlyOnce: exactly, SpillDir: t.TempDir()}
	relayProcess := startChild(t, binary, c)
	conn := connect(t, url)
	eventually(t, "the slot is read", slotRead(t, conn, c.Slot))
	var book ledger
	writing, stopWriting := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	defer writers.Wait()
	defer stopWriting()
	for w, write := range []func(*rand.Rand) error{
		func(own *rand.Rand) error { return book.write(writing, url, 0, own) },
		func(own *rand.Rand) error { return book.writeLarge(writing, url, "large-1", own) },
		func(own *rand.Rand) error { return book.writeLarge(writing, url, "large-2", own) },
	} {
		own := rand.New(rand.NewPCG(seed, uint64(w+1)))
		writers.Go(func() {
			if err := write(own); err != nil {
				t.Errorf("writing: %v", err)
			}
		})
	}
	for range kills {
		select {
		case <-time.After(time.Duration(100+rng.IntN(1200)) * time.Millisecond):
		case <-t.Context().Done():
		}
		relayProcess.kill()
		relayProcess = startChild(t, binary, c)
	}
	stopWriting()
	writers.Wait()
	confirmedPast(t, conn, c.Slot, ask[string](t, conn, walEndSQL))
	var delivered []entry
	for _, r := range committed(t, c.Brokers, "topic-0", "topic-1") {
		delivered = append(delivered, entryOf(t, r))
	}
	f := book.check(delivered)
	t.Logf("%d kills: %d rows committed, %d rolled back, %d read as committed, %d of them repeats, %d transactions streamed",
		kills, len(book.committed), len(book.rolledBack), len(delivered), f.repeats,
		ask[int64](t, conn, "SELECT stream_txns FROM pg_stat_replication_slots WHERE slot_name = $1", c.Slot))
	if err := relayProcess.command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("asking the relay to drain: %v", err)
	}
	<-relayProcess.done
	if !relayProcess.command.ProcessState.Success() || f.bad() {
		t.Logf("the last relay's log:\n%s", &relayProcess.output)
	}
	if left := spilledFiles(t, c.SpillDir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	return f
}

func TestKilledAgainAndAgainLargeTransactionsComeWholeAndInOrder(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if f := streamKillTest(t, self, false, often(10), uint64(time.Now().UnixNano())); f.bad() {
		t.Errorf("lost %d, published though rolled back %d, out of order %d: %s", f.lost, f.forged, f.disordered, f.example)
	}
}

func TestKilledAgainAndAgainLargeTransactionsAreReadExactlyOnce(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if f := streamKillTest(t, self, true, often(10), uint64(time.Now().UnixNano())); f.bad() || f.repeats > 0 {
		t.Errorf("%d repeated, lost %d, published though rolled back %d, out of order %d: %s", f.repeats, f.lost, f.forged, f.disordered, f.example)
	}
}
