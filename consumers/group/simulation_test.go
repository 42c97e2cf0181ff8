//go:build synctests

// The tag is franz-go's: with it the client's mutexes are channels. A goroutine that waits for a plain mutex is not
// durably blocked, and a bubble's clock stands still while a commit waits for a join to end.

package group

import (
	"context"
	"flag"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"converge/consumers/prove"
)

var (
	simSeed  = flag.Uint64("sim.seed", 0, "the first seed of the simulations; 0 draws one")
	simRuns  = flag.Int("sim.runs", 12, "how many seeds to simulate, one after another")
	simTrace = flag.Bool("sim.trace", false, "print what the members say")
)

// Whole groups run through an hour and more of troubles in less than a second: Kafka is kfake on a virtual network,
// the database is the store in memory, the clock is the bubble's. A seed decides the plan: events, what their
// handlers do, troubles and their times. It does not decide who runs first: the Go scheduler, its maps and selects, and
// the jitter of the runtime and of the Kafka client are not its. A seed that fails may need several tries.
func TestSimulatedGroupsKeepTheirPromises(t *testing.T) {
	first := firstSeed()
	t.Logf("the seeds from %d on", first)
	var virtual time.Duration
	began := time.Now()
	sum := map[string]int{}
	for seed := first; seed < first+uint64(*simRuns); seed++ {
		var found []string
		var took time.Duration
		var hash uint64
		start := time.Now()
		synctest.Test(t, func(t *testing.T) {
			found, took, hash = simulate(t, drawPlan(seed), sum)
		})
		if virtual += took; *simTrace || *simRuns <= 5 || time.Since(start) > simSlow {
			t.Logf("seed %d: %v in %v, history %016x", seed, took, time.Since(start).Round(time.Millisecond), hash)
		}
		if len(found) > 0 {
			t.Errorf("seed %d: %d violations; again: go test -tags synctests ./consumers/group -run '^TestSimulatedGroupsKeepTheirPromises$' -sim.runs 1 -sim.seed %d\n%s",
				seed, len(found), seed, strings.Join(found[:min(len(found), 12)], "\n"))
			break
		}
	}
	t.Logf("%v were simulated in %v: %v", virtual.Round(time.Second), time.Since(began).Round(time.Millisecond), sum)
}

// simSlow is how long a seed takes that is worth a look.
const simSlow = 10 * time.Second

// firstSeed returns the seed that was asked for, else a new one: short enough to be typed.
func firstSeed() uint64 {
	if *simSeed > 0 {
		return *simSeed
	}
	return 1 + rand.Uint64N(1e9)
}

// simPatience is how long a group may take to catch up: an event climbs the ladder for an hour and a half, and
// another one of its key behind it. simStill is how long nothing may happen meanwhile: the longest rung is 10 minutes,
// and the rarest repeat of a wake-up.
const (
	simPatience = 24 * time.Hour
	simStill    = time.Hour
)

func simulate(t *testing.T, plan *simPlan, sum map[string]int) (found []string, took time.Duration, hash uint64) {
	out := io.Discard
	if *simTrace {
		out = os.Stderr
	}
	s, err := newSimulation(plan, slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	defer s.kafka.Close()
	defer s.relay.Close()
	ctx, cancel := context.WithCancel(context.Background())
	s.stopped.Go(func() { s.carry(ctx) })
	for range plan.members {
		s.members = append(s.members, s.newMember())
	}
	for _, strike := range plan.strikes {
		sleep(ctx, strike.at-time.Since(s.began))
		s.logger.Info("strike", "what", strike.what, "lasts", strike.lasts)
		sum[string(strike.what)]++
		s.strike(ctx, strike)
	}
	quiet := false
	for moved, last := time.Now(), int64(0); time.Since(s.began) < simPatience && time.Since(moved) < simStill && !quiet; {
		sleep(ctx, 10*time.Second)
		if step := s.step(); step > last {
			moved, last = time.Now(), step
		}
		if plan.policy.HoldDead && time.Since(s.began) > simTraffic { // somebody decides in the end
			s.decide(ctx, s.drawDecision())
		}
		if time.Since(moved) > simStill/2 {
			s.evictGhosts(ctx)
		}
		quiet = time.Since(s.began) > 2*simTraffic && s.behind() == ""
	}
	took = time.Since(s.began)
	if !quiet {
		s.violated("held: " + s.behind())
	}
	for _, m := range s.members {
		m.thaw()
		m.cancel()
		if <-m.done; m.err != nil {
			s.violated(fmt.Sprintf("%s gave up: %v", m.name, m.err))
		}
	}
	cancel()
	s.stopped.Wait()
	v, hash := s.judge()
	sum["facts"] += v.Facts
	sum["retried"] += v.Retried
	sum["letters"] += v.Letters
	sum["redriven"] += v.Redriven
	sum["echoes"] += v.Echoes
	return append(s.violations, v.Examples...), took, hash
}

// strike does one trouble; what lasts ends by itself.
func (s *simulation) strike(ctx context.Context, k strike) {
	i := k.who % len(s.members)
	m := s.members[i]
	after := func(end func()) {
		s.stopped.Go(func() { sleep(ctx, k.lasts); end() })
	}
	during := func(trouble *int) {
		add := func(n int) { s.mu.Lock(); *trouble += n; s.mu.Unlock() }
		add(1)
		after(func() { add(-1) })
	}
	switch k.what {
	case crash, powerCut, leave:
		switch k.what {
		case crash:
			m.die(0)
		case powerCut:
			m.die(20*time.Second + graceTime)
		default:
			m.thaw()
			m.cancel()
		}
		<-m.done
		s.members[i] = s.newMember()
	case freeze:
		m.stop()
		after(m.thaw)
	case zombie:
		m.mu.Lock()
		m.dozes = 14*time.Second + k.lasts%(5*time.Second)
		m.mu.Unlock()
	case noDatabase:
		s.setDown(true)
		after(func() { s.setDown(false) })
	case noKafka:
		during(&s.away)
		s.cutConnections(nil)
	case noRelay:
		during(&s.silent)
	case lostReplies:
		during(&s.lossy)
	case contention:
		during(&s.racy)
	case deadWakes:
		during(&s.forgetful)
	case redrive, discard:
		s.stopped.Go(func() { s.decide(ctx, k) })
	case grow:
		s.stopped.Go(func() { s.grow(ctx) })
	}
}

func (s *simulation) setDown(down bool) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	s.db.down = down
	for t := range s.db.open {
		if down && !t.store.cut {
			t.killed = true
			t.end(false)
		}
	}
}

// step rises with whatever the tables are told of held events and dead letters.
func (s *simulation) step() int64 {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	return s.db.sequence
}

func (s *simulation) drawDecision() strike {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strike{what: []trouble{redrive, redrive, discard}[s.random.IntN(3)], who: s.random.IntN(100)}
}

// decide is a person who looks through the dead letters.
func (s *simulation) decide(ctx context.Context, k strike) {
	s.db.mu.Lock()
	keys := map[string]bool{}
	var discarded []uuid.UUID
	s.mu.Lock()
	for _, f := range s.plan.facts {
		if l, ok := s.db.letters[f.ID]; ok && l.state == "dead" {
			keys[l.key] = true
			discarded = append(discarded, f.ID)
			if k.what == redrive && k.who%3 > 0 {
				s.mended[f.ID] = true
			}
		}
	}
	s.mu.Unlock()
	s.db.mu.Unlock()
	if k.what == discard {
		for _, id := range discarded[:min(1, len(discarded))] {
			_ = s.admin.discard(ctx, id) // the database may be away
		}
		return
	}
	for key := range keys {
		_, _ = s.admin.redrive(ctx, prove.Topic, key)
	}
}

// placed returns the effects in the order of their commits, but for those of redriven events: people redrove them
// between the others, some of them twice, and their place is where the judge looks for it, at the end, by sequence.
// What held its key has its place.
func (s *simulation) placed() []effect {
	if s.plan.policy.HoldDead {
		return s.db.effects
	}
	place := func(e effect) int {
		if l, ok := s.db.letters[e.id]; ok && l.state == "resolved" {
			return 1 + e.seq
		}
		return 0
	}
	return slices.SortedStableFunc(slices.Values(s.db.effects), func(a, b effect) int { return place(a) - place(b) })
}

// judge has the judge of the runs with processes judge this one.
func (s *simulation) judge() (*prove.Verdict, uint64) {
	h := &prove.History{MaxAttempts: 10, HoldDead: s.plan.policy.HoldDead, DeadRecords: map[uuid.UUID]int{}, Folds: map[string]prove.Fold{}}
	if err := s.published(h); err != nil {
		s.violated(fmt.Sprintf("reading the topics: %v", err))
	}
	hash := fnv.New64a()
	for _, f := range s.plan.facts {
		h.Facts = append(h.Facts, f.Fact)
	}
	for _, e := range s.placed() {
		h.Effects = append(h.Effects, prove.Effect{ID: e.id, Key: e.key, Seq: e.seq, Attempt: e.attempt, Member: e.by})
		h.Folds[e.key] = h.Folds[e.key].Add(s.fact(e.id).Value)
		fmt.Fprintln(hash, e.key, e.seq, e.attempt, e.by)
	}
	for id, l := range s.db.letters {
		h.Letters = append(h.Letters, prove.Letter{ID: id, State: l.state, Attempts: l.attempts, Deaths: l.deaths})
	}
	for _, waiting := range s.db.waiting {
		h.Held += len(waiting)
	}
	h.Held += len(s.db.held)
	v := prove.Check(h)
	if s.plan.policy.Unordered {
		delete(v.Counts, prove.Disorder)
		kept := v.Examples[:0]
		for _, e := range v.Examples {
			if !strings.HasPrefix(e, string(prove.Disorder)) && !strings.HasPrefix(e, string(prove.Folded)) {
				kept = append(kept, e)
			}
		}
		v.Examples = kept
	}
	return v, hash.Sum64()
}
