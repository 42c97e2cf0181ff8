package group_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/group"
)

func (w *world) store(partition int32, offset int64) {
	w.t.Helper()
	if _, err := w.pool.Exec(w.t.Context(), `
INSERT INTO consumer_offsets (consumer, topic, partition, next_offset)
VALUES ($1, $2, $3, $4)
ON CONFLICT (consumer, topic, partition) DO UPDATE
SET next_offset = excluded.next_offset`, service, topic, partition, offset); err != nil {
		w.t.Fatal(err)
	}
}

func TestTheDatabasesOffsetWinsOverKafkas(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	var list []fact
	for i := range 300 {
		list = append(list, newFact(fmt.Sprintf("key-%d", i%3), i/3, eachKind, int32(i%3)))
	}
	w.produce(list...)
	// Kafka is ahead on partition 0, behind on 1, and the database knows nothing of 2: it has no effects either.
	w.store(0, 30)
	w.store(1, 60)
	var offsets kadm.Offsets
	for p, at := range []int64{80, 10, 90} {
		offsets.AddOffset(topic, int32(p), at, -1)
	}
	must(t, w.admin.CommitAllOffsets(t.Context(), service, offsets))
	w.start(w.config(tally{name: "a"}))
	w.settled()
	var want []fact
	for _, f := range list {
		if int64(f.seq) >= []int64{30, 60, 0}[f.partition] {
			want = append(want, f)
		}
	}
	w.check(want, nil)
}

func TestAStoredOffsetBeyondTheEndOfTheLogStopsTheGroup(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.produce(facts(20, 2, 2)...)
	w.store(0, 5)
	w.store(1, 11)
	m := w.start(w.config(tally{name: "a"}))
	if err := m.wait(); !errors.Is(err, group.ErrOffsetBeyondEnd) {
		t.Errorf("Run ended with %v", err)
	}
	if m.Ready() == nil {
		t.Error("a group that stopped is ready")
	}
	if n := len(w.effects()); n != 0 || w.stored(0) != 5 || w.stored(1) != 11 {
		t.Errorf("%d effects, stored %d and %d", n, w.stored(0), w.stored(1))
	}
}

// The log shrinks under a running group, as after an unclean election; here the stored offset grows. What
// comes next has offsets that the group has behind it: to pass it over would lose it.
func TestALogThatEndsBeforeTheStoredOffsetStopsARunningGroup(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.produce(facts(20, 2, 1)...)
	m := w.start(w.config(tally{name: "a"}))
	w.settled()
	w.store(0, 500)
	for range 2 { // the first shows the group that it was overtaken
		w.produce(facts(2, 2, 1)...)
		m.counts(t, 1, "converge_consumer_fenced_total")
	}
	if err := m.wait(); !errors.Is(err, group.ErrOffsetBeyondEnd) {
		t.Errorf("Run ended with %v", err)
	}
	if n := len(w.effects()); n != 20 || w.stored(0) != 500 {
		t.Errorf("%d effects, stored %d", n, w.stored(0))
	}
}

func TestATopicMadeAnewUnderARunningGroupStopsIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.produce(facts(50, 5, 1)...)
	cfg := w.config(tally{name: "a"})
	cfg.Client = append(cfg.Client, kgo.MetadataMinAge(20*time.Millisecond), kgo.MetadataMaxAge(50*time.Millisecond))
	m := w.start(cfg)
	w.settled()
	must(t, w.kafka.DeleteTopic(topic))
	must(t, w.kafka.CreateTopic(topic, 1, nil))
	w.send = w.producer() // the other one remembers the topic that was
	w.produce(facts(20, 5, 1)...)
	if err := m.wait(); !errors.Is(err, group.ErrTopicReplaced) {
		t.Errorf("Run ended with %v", err)
	}
	if n := len(w.effects()); n != 50 || m.Ready() == nil {
		t.Errorf("%d effects, ready: %v", n, m.Ready())
	}
}

// Records that retention has removed are gone; the group says so and reads what there is.
func TestAStoredOffsetBelowTheStartOfTheLogReadsFromTheStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	list := facts(40, 4, 1)
	w.produce(list...)
	w.store(0, 10)
	must(t, w.kafka.DeleteRecords(topic, 0, 25))
	w.start(w.config(tally{name: "a"}))
	w.settled()
	w.check(list[25:], nil)
}
