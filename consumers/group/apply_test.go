package group_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/event"
)

func TestEachEventIsAppliedOnceHoweverOftenItIsDelivered(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	list := facts(600, 12, 3)
	// Every third event comes again at once, in the same batch or the next, and every fifth much later.
	var sent []fact
	for i, f := range list {
		sent = append(sent, f)
		if i%3 == 0 {
			sent = append(sent, f)
		}
	}
	w.produce(sent...)
	m := w.start(w.config(tally{name: "a"}))
	w.settled()
	w.check(list, nil)
	before := len(w.effects())
	for i := 0; i < len(list); i += 5 {
		w.produce(list[i])
	}
	w.settled()
	w.check(list, nil)
	if after := len(w.effects()); after != before {
		t.Errorf("duplicates changed %d effects to %d", before, after)
	}
	m.counts(t, 600, "converge_consumer_events_total", "outcome", "applied")
	m.counts(t, 200+120, "converge_consumer_events_total", "outcome", "duplicate")
}

// Another run of the group, from the first record on and without Kafka's memory: the inbox alone knows.
func TestAnEventThatIsReadAgainFromTheStartIsADuplicate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	list := facts(100, 5, 1)
	w.produce(list...)
	m := w.start(w.config(tally{name: "a"}))
	w.settled()
	must(t, m.stop())
	if _, err := w.pool.Exec(t.Context(), "UPDATE consumer_offsets SET next_offset = 0"); err != nil {
		t.Fatal(err)
	}
	again := w.start(w.config(tally{name: "b"}))
	w.settled()
	w.check(list, nil)
	again.counts(t, 100, "converge_consumer_events_total", "outcome", "duplicate")
}

func TestEventsOfOtherTypesArePassedOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	list := facts(3, 1, 1)
	other := newFact("key-0", 9, "SomethingNew", 0)
	tombstone := &kgo.Record{Topic: topic, Key: []byte("key-0")}
	w.produce(list[0], other)
	w.produceRecords(tombstone)
	w.produce(list[1], other, list[2])
	w.start(w.config(tally{name: "a"}))
	w.settled()
	w.check(list, nil)
	if dead := w.letters(); len(dead) != 0 {
		t.Errorf("dead letters: %v", dead)
	}
}

// However much of one partition waits, another one's events are applied meanwhile: both handlers must be at work in the
// same moment before either goes on.
func TestABacklogIsAppliedPartitionsSideBySide(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	list := facts(400, 4, 2)
	var mu sync.Mutex
	met := make(chan struct{})
	seen := map[int32]bool{}
	cfg := w.config(tally{"a", func(ctx context.Context, e *event.Event) error {
		mu.Lock()
		if !seen[e.Partition] {
			if seen[e.Partition] = true; len(seen) == 2 {
				close(met)
			}
		}
		mu.Unlock()
		select {
		case <-met:
			return nil
		case <-ctx.Done(): // the batch's time is over, and its transaction is for nothing
			t.Errorf("partition %d is alone at work", e.Partition)
			return ctx.Err()
		}
	}})
	cfg.MaxEvents, cfg.BatchTime = 20, 10*time.Second
	w.produce(list...)
	w.start(cfg)
	w.settled()
	w.check(list, nil)
}
