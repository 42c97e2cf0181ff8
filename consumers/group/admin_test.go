package group_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/group"
)

func (w *world) positions() []group.Position {
	w.t.Helper()
	positions, err := group.Positions(w.t.Context(), w.pool, w.send, service, topic)
	must(w.t, err)
	return positions
}

func (w *world) reset(offsets ...int64) error {
	w.t.Helper()
	to := map[int32]int64{}
	for p, at := range offsets {
		to[int32(p)] = at
	}
	return group.Reset(w.t.Context(), w.pool, w.send, service, map[string]map[int32]int64{topic: to})
}

// What was stored beyond the log's end is set by hand, and the group goes on from there.
func TestAResetMendsAnOffsetBeyondTheEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	list := facts(20, 2, 2)
	w.produce(list...)
	w.store(1, 500)
	if err := w.start(w.config(tally{name: "a"})).wait(); !errors.Is(err, group.ErrOffsetBeyondEnd) {
		t.Fatal(err)
	}
	if err := w.reset(0, 500); !errors.Is(err, group.ErrNoSuchOffset) {
		t.Errorf("a reset beyond the end: %v", err)
	}
	must(t, w.reset(0, 0))
	for p := range int32(2) {
		if kafka := w.kafkaHas(p); kafka != 0 {
			t.Errorf("Kafka has %d", kafka)
		}
	}
	m := w.start(w.config(tally{name: "a"}))
	w.settled()
	w.check(list, nil)
	for _, p := range w.positions() {
		if p.Stored != p.End || p.Lag != 0 || p.Member == "" || p.Held != 0 {
			t.Errorf("%+v", p)
		}
	}
	must(t, m.stop())
	for _, p := range w.positions() {
		if p.Committed != p.End || p.Member != "" {
			t.Errorf("%+v", p)
		}
	}
}

// A group at work that nothing arrives for reads again from where it is moved back to; its inbox knows what it
// has taken on.
func TestAResetMovesAGroupThatIsAtWork(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	list := facts(40, 4, 2)
	w.produce(list...)
	m := w.start(w.config(tally{name: "a"}))
	w.settled()
	must(t, w.reset(5, 0))
	m.counts(t, float64(len(list)-5), "converge_consumer_events_total", "outcome", "duplicate", "topic", topic)
	w.settled()
	w.check(list, nil)
	eventually(t, "Kafka hears of it", func() error {
		if a, b := w.kafkaHas(0), w.kafkaHas(1); a+b != int64(len(list)) {
			return fmt.Errorf("Kafka has %d and %d", a, b)
		}
		return nil
	})
}

// Whoever moves a group on gives up what it passes over.
func TestAResetPassesOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	list := facts(30, 3, 1)
	w.produce(list...)
	must(t, w.reset(10))
	if p := w.positions()[0]; p.Stored != 10 || p.Lag != 20 || p.Committed != 10 || p.Start != 0 || p.End != 30 {
		t.Errorf("%+v", p)
	}
	w.start(w.config(tally{name: "a"}))
	w.settled()
	w.check(list[10:], nil)
}

func TestPositionsOfATopicThatIsNotThereAreAnError(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	if _, err := group.Positions(t.Context(), w.pool, w.send, service, "nowhere"); err == nil {
		t.Error("no error")
	}
	unreachable, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:1"), kgo.RequestRetries(0))
	must(t, err)
	defer unreachable.Close()
	if _, err := group.Positions(t.Context(), w.pool, unreachable, service, topic); err == nil {
		t.Error("no error without Kafka")
	}
}
