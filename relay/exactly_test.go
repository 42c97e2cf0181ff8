package relay_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// committed reads the committed records of topics from their beginning up to where they end now.
func committed(t testing.TB, brokers []string, topics ...string) (found []*kgo.Record) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListCommittedOffsets(ctx, topics...)
	if err != nil {
		t.Fatal(err)
	}
	left := make(map[string]int64) // what is still to come; a transaction's end is the last of it
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[fmt.Sprint(o.Topic, o.Partition)] = o.Offset
		}
	})
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("reading %v, %d partitions to go: %v", topics, len(left), err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			at := fmt.Sprint(r.Topic, r.Partition)
			if end, more := left[at]; more && r.Offset+1 >= end {
				delete(left, at)
			}
			if !r.Attrs.IsControl() {
				found = append(found, r)
			}
		})
	}
	return found
}

func entryOf(t testing.TB, r *kgo.Record) entry {
	t.Helper()
	e := entry{key: string(r.Key)}
	var err error
	for _, h := range r.Headers {
		switch h.Key {
		case "event_id":
			e.id = uuid.MustParse(string(h.Value))
		case "aggregate_version":
			if e.sequence, err = strconv.Atoi(string(h.Value)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return e
}

// exactlyOnceTest kills binary's relay again and again while rows are written, in transactions of all sizes,
// and returns what a reader of committed records finds.
func exactlyOnceTest(t *testing.T, binary string, brokers []string, kills int, seed uint64) finding {
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	url := outboxDatabase(t)
	c := childConfig{DatabaseURL: url, Brokers: brokers, Slot: uniqueSlot(), ExactlyOnce: true}
	relayProcess := startChild(t, binary, c)
	conn := connect(t, url)
	eventually(t, "the slot exists", func() error {
		if !ask[bool](t, conn, "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)", c.Slot) {
			return errors.New("it does not")
		}
		return nil
	})
	var book ledger
	writing, stopWriting := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	for w := range 2 {
		own := rand.New(rand.NewPCG(seed, uint64(w+1)))
		writers.Go(func() {
			if err := book.write(writing, url, w, own); err != nil {
				t.Errorf("writing: %v", err)
			}
		})
	}
	large := 0
	for range kills {
		// A transaction that takes longer than a Kafka transaction lasts.
		rows := 5000 + rng.IntN(20000)
		execute(t, conn, insertLargeSQL, large, large+rows)
		for n := range rows {
			book.note(&book.committed, []entry{{id: largeID(large + n), key: "large", sequence: large + n}})
		}
		large += rows
		select {
		case <-time.After(time.Duration(100+rng.IntN(900)) * time.Millisecond):
		case <-t.Context().Done():
		}
		relayProcess.kill()
		relayProcess = startChild(t, binary, c)
	}
	stopWriting()
	writers.Wait()
	confirmedPast(t, conn, c.Slot, ask[string](t, conn, walEndSQL))
	var delivered []entry
	for _, r := range committed(t, brokers, "topic-0", "topic-1") {
		delivered = append(delivered, entryOf(t, r))
	}
	f := book.check(delivered)
	t.Logf("%d kills: %d rows committed, %d rolled back, %d read as committed, %d of them repeats",
		kills, len(book.committed), len(book.rolledBack), len(delivered), f.repeats)
	if err := relayProcess.command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("asking the relay to drain: %v", err)
	}
	<-relayProcess.done
	if state := relayProcess.command.ProcessState; !state.Success() || f.bad() || f.repeats > 0 {
		t.Logf("the last relay's log:\n%s", &relayProcess.output)
	}
	return f
}

// insertLargeSQL inserts rows $1 to $2 of the key large in one transaction; their ids are made of their numbers.
const insertLargeSQL = `
INSERT INTO outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload)
SELECT ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid, 'topic-0', 'thing', 'large', n, 'Happened', 'text/plain',
       convert_to(repeat('x', 300), 'UTF8')
FROM generate_series($1::bigint, $2::bigint - 1) AS n`

func largeID(n int) uuid.UUID {
	return uuid.MustParse(fmt.Sprintf("00000000-0000-0000-0000-%012d", n))
}

func TestKilledAgainAndAgainEachRowIsReadExactlyOnce(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if f := exactlyOnceTest(t, self, startBroker(t).addrs(), 12, uint64(time.Now().UnixNano())); f.bad() || f.repeats > 0 {
		t.Errorf("%d repeated, lost %d, published though rolled back %d, out of order %d: %s", f.repeats, f.lost, f.forged, f.disordered, f.example)
	}
}
