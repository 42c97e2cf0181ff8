package group_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/event"
	"converge/consumers/retry"
)

// early notes the events that are applied before they may be, and when each was.
type early struct {
	delay time.Duration

	mu    sync.Mutex
	at    map[uuid.UUID]time.Time
	early []string
}

func (s *early) verdict(_ context.Context, e *event.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.at[e.ID] = now
	if age := now.Sub(e.CommittedAt); age < s.delay {
		s.early = append(s.early, fmt.Sprintf("%s/%s %v after its commit", e.Key, e.Value, age))
	}
	return nil
}

// kept ends the test when an event was applied too early.
func (s *early) kept(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.early) > 0 {
		t.Fatalf("%d events were applied too early: %.10q", len(s.early), s.early)
	}
}

func committed(f fact, at time.Time) *kgo.Record {
	r := f.record()
	r.Headers = append(r.Headers, kgo.RecordHeader{Key: "committed_at", Value: []byte(at.UTC().Format(time.RFC3339Nano))})
	return r
}

// With a delay each event is applied that long after its commit and not before, whoever has its partition by then,
// and in the order of its key.
func TestADelayIsKeptAlsoByTheNextOwner(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	s := &early{delay: 700 * time.Millisecond, at: map[uuid.UUID]time.Time{}}
	cfg := w.config(tally{"a", s.verdict})
	cfg.Delay = s.delay
	first := w.start(cfg)
	list := facts(120, 6, 2)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for i, f := range list {
		<-tick.C
		w.produceRecords(committed(f, time.Now()))
		if i == len(list)/2 { // it has events that wait
			must(t, first.stop())
			w.start(cfg)
		}
	}
	w.settled()
	w.check(list, nil)
	s.kept(t)
}

// What a delayed partition holds does not keep another's from its turn, nor what is old enough; and a time that lies
// in the future is not waited for.
func TestADelayHoldsUpNothingThatIsOldEnough(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	s := &early{at: map[uuid.UUID]time.Time{}}
	cfg := w.config(tally{"a", s.verdict})
	cfg.Delay = time.Hour
	long := time.Now().Add(-2 * time.Hour)
	old, young, other := newFact("key-0", 0, eachKind, 0), newFact("key-0", 1, eachKind, 0), newFact("key-1", 0, batchKind, 1)
	w.produceRecords(committed(old, long), committed(young, time.Now()), committed(other, long))
	m := w.start(cfg)
	m.counts(t, 2, "converge_consumer_events_total", "outcome", "applied")
	must(t, m.stop())
	w.check([]fact{old, young, other}, map[uuid.UUID]bool{young.id: true})

	cfg.Delay = 500 * time.Millisecond // young is ripe soon, and future waits so long from when it is seen
	future := newFact("key-1", 1, eachKind, 1)
	w.produceRecords(committed(future, time.Now().Add(24*time.Hour)))
	began := time.Now()
	w.start(cfg)
	w.settled()
	w.check([]fact{old, young, other, future}, nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	if waited := s.at[future.id].Sub(began); waited < cfg.Delay {
		t.Errorf("an event from the future waited %v", waited)
	}
}

// An event that waits for another try has had its delay.
func TestADelayIsNotPaidAgainByATry(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.relay()
	script := newScript()
	list := facts(6, 2, 1)
	script.fail(list[0], 1, event.RetryAfter(fmt.Errorf("not yet"), 10*time.Millisecond))
	cfg := w.config(tally{"a", script.verdict})
	cfg.Delay, cfg.Retry = 300*time.Millisecond, retry.Policy{Rungs: quick.Rungs, MaxAttempts: 2}
	for _, f := range list {
		w.produceRecords(committed(f, time.Now()))
	}
	w.start(cfg)
	w.settled()
	w.check(list, nil)
}
