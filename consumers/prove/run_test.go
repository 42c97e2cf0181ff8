package prove

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"converge/consumers/retry"
	"converge/internal/nettest"
	"converge/internal/proof"
)

// plan is what a run is to do.
type plan struct {
	Blows   int           `json:"blows"` // to members: kills, stops, drains, storms
	Seed    uint64        `json:"seed"`
	Rate    float64       `json:"facts_per_second"`
	Members int           `json:"members"`
	Hold    time.Duration `json:"-"` // of a trouble, at most
	// Only are the troubles and blows to choose from, by name; nil is all.
	Only []string `json:"-"`
}

// run is one run of the proof.
type run struct {
	*world
	plan    plan
	rng     *rand.Rand
	ledger  *ledger
	members []*member
	result  result

	mu      sync.Mutex // guards the rest
	samples []Sample
	missed  int
	broken  []error
}

// result is what a run did and what came of it.
type result struct {
	Plan      plan           `json:"plan"`
	Verdict   *Verdict       `json:"verdict"`
	Seconds   float64        `json:"seconds"`
	Blows     map[string]int `json:"blows"`
	Troubles  map[string]int `json:"troubles"`
	Upstream  int            `json:"upstream_duplicates"`
	Cuts      int            `json:"commits_cut"`
	Redrives  int            `json:"redrives"` // under load, of keys whose letters die once more
	Discarded int            `json:"discarded"`
	Missed    int            `json:"missed_samples"` // because a side was away
	// Failure is why the run itself went wrong: a member gave up, or they never caught up.
	Failure error `json:"-"`
}

// failed notes what the run cannot go on with, or must not pass with.
func (r *run) failed(err error) {
	if err == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = append(r.broken, err)
}

func (r *run) failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(r.broken...)
}

// begin starts everything but the ledger's writer.
func begin(t testing.TB, binary, plant string, p plan) *run {
	t.Helper()
	t.Logf("seed %d", p.Seed)
	r := &run{world: newWorld(t, binary, plant), plan: p, rng: rand.New(rand.NewPCG(p.Seed, 0))}
	r.ledger = &ledger{kafka: r.kafka, rng: rand.New(rand.NewPCG(p.Seed, 1)), rate: p.Rate}
	r.result = result{Plan: p, Blows: map[string]int{}, Troubles: map[string]int{}}
	for range p.Members {
		r.members = append(r.members, r.start())
	}
	return r
}

// prove runs the plan against a member's binary.
func prove(t testing.TB, binary, plant string, p plan) result {
	t.Helper()
	r := begin(t, binary, plant, p)
	began := time.Now()
	life, stop := context.WithCancel(context.Background())
	var parts, pen sync.WaitGroup
	parts.Go(func() { r.watch(life) })
	writing, stopWriting := context.WithCancel(context.Background())
	pen.Go(func() { r.failed(r.ledger.write(writing)) })
	defer func() { stopWriting(); pen.Wait(); stop(); parts.Wait() }()
	r.torment()
	stopWriting()
	pen.Wait()
	h := &History{MaxAttempts: Policy().MaxAttempts, Facts: r.ledger.facts}
	if r.failure() == nil {
		r.failed(r.finish(context.Background()))
	}
	stop()
	parts.Wait()
	for _, m := range r.members { // what a run leaves behind that went wrong is to stand still
		m.kill()
	}
	h.Samples, r.result.Missed = r.samples, r.missed
	r.failed(r.collect(context.Background(), h))
	r.result.Verdict = Check(h)
	r.result.Upstream, r.result.Cuts = r.ledger.upstreams, r.server.Leg.Cuts()
	r.result.Seconds = time.Since(began).Seconds()
	r.result.Failure = r.failure()
	return r.result
}

// watch samples the offsets until ctx ends.
func (r *run) watch(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		samples, err := r.sample(ctx)
		r.mu.Lock()
		r.samples = append(r.samples, samples...)
		if err != nil {
			r.missed++
		}
		r.mu.Unlock()
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// finish waits for the members, mends what fails forever, discards a part of what died and redrives the rest.
func (r *run) finish(ctx context.Context) error {
	if err := r.settled(ctx); err != nil {
		return fmt.Errorf("%w\n%s", err, r.members[0].tail())
	}
	if _, err := r.pool.Exec(ctx, "UPDATE switches SET mended = true"); err != nil {
		return err
	}
	letters, err := retry.List(ctx, r.pool, retry.Filter{Consumer: Service, Limit: 1 << 20})
	if err != nil {
		return err
	}
	ladder := retry.Ladder{Consumer: Service, Policy: Policy()}
	keys := map[string]bool{}
	facts := map[uuid.UUID]How{}
	for i := range r.ledger.facts {
		facts[r.ledger.facts[i].ID] = r.ledger.facts[i].How
	}
	for _, l := range letters {
		if facts[l.EventID].Permanent() || r.rng.IntN(4) == 0 {
			if err := ladder.Discard(ctx, r.pool, l.EventID, retry.Decision{By: "the proof"}); err != nil {
				return err
			}
			r.result.Discarded++
			continue
		}
		keys[l.Key] = true
	}
	for key := range keys {
		if _, err := ladder.Redrive(ctx, r.pool, Topic, key, retry.Decision{By: "the proof"}); err != nil {
			return err
		}
	}
	if err := r.settled(ctx); err != nil {
		return fmt.Errorf("after the redrive: %w\n%s", err, r.members[0].tail())
	}
	return nil
}

// blow is what is done to a member.
type blow struct {
	name   string
	strike func(r *run) error
}

var blows = []blow{
	{"killed (SIGKILL)", func(r *run) error {
		i := r.rng.IntN(len(r.members))
		if r.members[i].ended() {
			return fmt.Errorf("a member gave up (%s):\n%s", r.members[i].command.ProcessState, r.members[i].tail())
		}
		r.members[i].kill()
		r.members[i] = r.start()
		return nil
	}},
	{"all killed", func(r *run) error {
		for i, m := range r.members {
			m.kill()
			r.members[i] = r.start()
		}
		return nil
	}},
	// Kafka gives it up and its partitions away. Then it wakes up, in the middle of what it was at.
	{"stopped (SIGSTOP) past its session", func(r *run) error {
		i := r.rng.IntN(len(r.members))
		zombie := r.members[i].command.Process
		if err := zombie.Signal(syscall.SIGSTOP); err != nil {
			return err
		}
		r.pause(SessionTime + r.upTo(1500))
		return zombie.Signal(syscall.SIGCONT)
	}},
	{"drained (SIGTERM)", func(r *run) error {
		i := r.rng.IntN(len(r.members))
		err := r.members[i].drain()
		r.members[i] = r.start()
		return err
	}},
	{"rebalance storm", func(r *run) error {
		for range 3 {
			extra := r.start()
			r.pause(r.upTo(500))
			if r.rng.IntN(2) == 0 {
				extra.kill()
			} else if err := extra.drain(); err != nil {
				return err
			}
		}
		return nil
	}},
}

func (r *run) upTo(milliseconds int) time.Duration {
	return time.Duration(r.rng.IntN(milliseconds+1)) * time.Millisecond
}

func (r *run) pause(d time.Duration) { <-time.After(d) }

// troubles are all kinds, besides blows.
func (r *run) troubles() []proof.Trouble {
	all := proof.Troubles(r.server, r.cluster, []string{Topic}, partitions, r.failed)
	for name, how := range map[string]nettest.Cut{"before the server has it": nettest.CutBefore, "while the server works": nettest.CutDuring, "after it happened": nettest.CutAfter} {
		all = append(all, proof.Trouble{Name: "COMMIT cut " + name, Begin: func(*rand.Rand) func() {
			for range 5 {
				r.server.Leg.CutNext(how)
				for before, waited := r.server.Leg.Cuts(), 0; r.server.Leg.Cuts() == before && waited < 20; waited++ {
					r.pause(50 * time.Millisecond)
				}
			}
			return func() { r.server.Leg.CutNext(nettest.CutNothing) }
		}})
	}
	all = append(all,
		proof.Trouble{Name: "PostgreSQL: backends terminated", Begin: func(*rand.Rand) func() {
			r.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'converge " + Service + "'")
			return func() {}
		}},
		proof.Trouble{Name: "handler: what it needs is away", Begin: func(*rand.Rand) func() {
			r.execute("UPDATE " + Service + ".switches SET away = true")
			return func() { r.execute("UPDATE " + Service + ".switches SET away = false") }
		}},
		proof.Trouble{Name: "dead letters redriven under load", Begin: func(*rand.Rand) func() {
			r.failed(r.redriveSome())
			return func() {}
		}})
	slices.SortFunc(all, func(a, b proof.Trouble) int { // a map gave some of them
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return all
}

// execute runs a statement as the superuser. It may have to wait for a server that has just come back.
func (r *run) execute(sql string) {
	r.failed(await("running "+sql, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		conn, err := pgx.Connect(ctx, r.server.URL())
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		_, err = conn.Exec(ctx, sql)
		return err
	}))
}

// redriveSome redrives the dead letters of a key: whatever killed them does so once more.
func (r *run) redriveSome() error {
	letters, err := retry.List(context.Background(), r.pool, retry.Filter{Consumer: Service, State: "dead", Limit: 1000})
	if err != nil || len(letters) == 0 {
		return err
	}
	ids, err := retry.Ladder{Consumer: Service, Policy: Policy()}.Redrive(context.Background(), r.pool, Topic, letters[r.rng.IntN(len(letters))].Key, retry.Decision{By: "the proof"})
	r.result.Redrives += len(ids)
	return err
}

// torment strikes members again and again, in trouble or behind it.
func (r *run) torment() {
	all, strikes := append(r.troubles(), proof.None), blows
	if r.plan.Only != nil {
		all = proof.Choose(all, r.plan.Only)
		strikes = slices.DeleteFunc(slices.Clone(blows), func(b blow) bool { return !slices.Contains(r.plan.Only, b.name) })
	} else {
		for _, t := range all {
			r.result.Troubles[t.Name] = 0
		}
		all = append(all, slices.Repeat([]proof.Trouble{proof.None}, 3)...)
	}
	trouble, strike := proof.Deck(r.rng, all), proof.Deck(r.rng, strikes)
	began, shown := time.Now(), 0
	for n := 0; n < r.plan.Blows && r.failure() == nil; n++ {
		if n >= shown+50 {
			shown = n
			r.t.Logf("%d blows after %s", n, time.Since(began).Round(time.Second))
		}
		r.pause(r.upTo(400))
		now, b := trouble(), strike()
		r.result.Troubles[now.Name]++
		r.result.Blows[b.name]++
		end := now.Begin(r.rng)
		r.pause(r.upTo(int(r.plan.Hold.Milliseconds())))
		within := r.rng.IntN(2) == 0
		if !within {
			end()
			r.pause(r.upTo(500))
		}
		r.failed(b.strike(r))
		if within {
			end()
		}
		if r.rng.IntN(3) == 0 { // some time in good health, so that there is work to interrupt
			r.working()
		}
	}
}

// working waits a while for the members to be at work.
func (r *run) working() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	at := func() (sum int64) {
		samples, _ := r.sample(ctx) // the server may be away
		for _, s := range samples {
			sum += s.Database
		}
		return sum
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for before := at(); at() <= before; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
