package group_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"converge/consumers/event"
)

// seed returns the seed of a random run: GROUP_SEED, or one from the clock.
func seed(t *testing.T) uint64 {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if text := os.Getenv("GROUP_SEED"); text != "" {
		var err error
		n, err = strconv.ParseUint(text, 10, 64)
		must(t, err)
	}
	t.Logf("again with GROUP_SEED=%d", n)
	return n
}

// plan is a random stream: facts in the order of their keys, what becomes of each, and how they are sent.
type plan struct {
	facts     []fact
	sent      []fact // with duplicates
	failures  map[uuid.UUID]int
	permanent map[uuid.UUID]bool
	exhausted map[uuid.UUID]bool
	blips     map[uuid.UUID]int // outages that the event's tries meet first
}

func newPlan(rng *rand.Rand, partitions int32) *plan {
	p := &plan{failures: map[uuid.UUID]int{}, permanent: map[uuid.UUID]bool{}, exhausted: map[uuid.UUID]bool{}, blips: map[uuid.UUID]int{}}
	keys := 3 + rng.IntN(12)
	sequence := make([]int, keys)
	for range 100 + rng.IntN(200) {
		k := rng.IntN(keys)
		kind := eachKind
		if rng.IntN(2) == 0 {
			kind = batchKind
		}
		f := newFact(fmt.Sprintf("key-%d", k), sequence[k], kind, int32(k)%partitions)
		sequence[k]++
		p.facts = append(p.facts, f)
		switch rng.IntN(40) {
		case 0, 1, 2:
			p.failures[f.id] = 1 + rng.IntN(quick.MaxAttempts-1)
		case 3:
			p.permanent[f.id] = true
		case 4:
			p.failures[f.id], p.exhausted[f.id] = forever, true
		}
		if rng.IntN(150) == 0 {
			p.blips[f.id] = 1 + rng.IntN(2)
		}
	}
	for i, f := range p.facts {
		p.sent = append(p.sent, f)
		if rng.IntN(6) == 0 { // a duplicate of this one or of an earlier one
			p.sent = append(p.sent, p.facts[rng.IntN(i+1)])
		}
	}
	return p
}

func (p *plan) dead() map[uuid.UUID]bool {
	dead := map[uuid.UUID]bool{}
	for _, set := range []map[uuid.UUID]bool{p.permanent, p.exhausted} {
		for id := range set {
			dead[id] = true
		}
	}
	return dead
}

// witness carries the plan out as the service's verdicts, and watches that no event is tried while an
// earlier one of its key is neither applied nor dead.
type witness struct {
	*plan
	mu       sync.Mutex // guards all below
	bySeq    map[string][]fact
	attempts map[uuid.UUID]int
	early    []string
}

func newWitness(p *plan) *witness {
	w := &witness{plan: p, bySeq: map[string][]fact{}, attempts: map[uuid.UUID]int{}}
	for _, f := range p.facts {
		w.bySeq[f.key] = append(w.bySeq[f.key], f)
	}
	return w
}

func (w *witness) verdict(_ context.Context, e *event.Event) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e.Attempt > 0 || w.failures[e.ID] > 0 {
		w.attempts[e.ID] = max(w.attempts[e.ID], e.Attempt)
	}
	seq, _ := strconv.Atoi(string(e.Value))
	for _, before := range w.bySeq[string(e.Key)][:seq] {
		// One that fails for a while must have had its tries, or else this one overtakes it.
		if n := w.failures[before.id]; n > 0 && n != forever && w.attempts[before.id] < n {
			w.early = append(w.early, fmt.Sprintf("%s/%d was tried while %d waits", e.Key, seq, before.seq))
		}
	}
	if w.blips[e.ID] > 0 {
		w.blips[e.ID]--
		return away{}
	}
	switch {
	case w.permanent[e.ID]:
		return event.Permanentf("never")
	case e.Attempt < w.failures[e.ID]:
		return errors.New("not yet")
	}
	return nil
}

// Whatever fails, for a while or for good, whatever is sent twice, and whoever joins and leaves: the
// effects of a key come in its order, once each, and the dead are those that fail for good.
func TestEffectsOfAKeyComeInOrderWhateverFails(t *testing.T) {
	t.Parallel()
	n := seed(t)
	for run := range uint64(3) {
		t.Run(strconv.FormatUint(run, 10), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(n, run))
			const partitions = 3
			w := newWorld(t, partitions)
			w.relay()
			p := newPlan(rng, partitions)
			watch := newWitness(p)
			start := func(name string) *member {
				cfg := w.config(tally{name, watch.verdict})
				cfg.MaxEvents, cfg.Client = 1+rng.IntN(100), impatient()
				return w.start(cfg)
			}
			leaver := start("a")
			third := len(p.sent) / 3
			w.produce(p.sent[:third]...)
			start("b")
			w.produce(p.sent[third : 2*third]...)
			if rng.IntN(2) == 0 {
				must(t, leaver.stop())
				start("c")
			}
			w.produce(p.sent[2*third:]...)
			w.settled()
			w.check(p.facts, p.dead())
			watch.mu.Lock()
			defer watch.mu.Unlock()
			if len(watch.early) > 0 {
				t.Errorf("%d overtook a held head, as in: %s", len(watch.early), watch.early[0])
			}
			letters := w.letters()
			for id := range p.dead() {
				if want := map[bool]string{true: "permanent", false: "retriable"}[p.permanent[id]]; letters[id] != want {
					t.Errorf("the letter of %s is %q, want %q", id, letters[id], want)
				}
			}
			if len(letters) != len(p.dead()) {
				t.Errorf("%d dead letters, want %d", len(letters), len(p.dead()))
			}
			t.Logf("%d events, %d sent, %d fail for a while, %d dead", len(p.facts), len(p.sent), len(p.failures)-len(p.exhausted), len(letters))
		})
	}
}
