package challenge

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"converge/lab/history"
)

// play sets the stage, does everything that is to be done to the pipeline, and collects the evidence.
func (r *run) play(ctx context.Context) error {
	if err := r.set(ctx); err != nil {
		return err
	}
	background, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { r.broker.read(background) })
	wg.Go(func() { r.progress(background) })
	err := r.story(ctx)
	if err == nil {
		err = r.settle(ctx)
	}
	stop()
	wg.Wait()
	if err != nil {
		return err
	}
	for name, c := range r.processes {
		if c.ended() {
			r.timeline.say("%s has ended of itself (%v); see %s", name, c.err(), c.log)
		}
	}
	r.timeline.enter("reading the topic, the journals and the views", 0)
	r.collect(ctx)
	return ctx.Err()
}

// set starts the engines and the processes of the pipeline.
func (r *run) set(ctx context.Context) (err error) {
	r.timeline.say("seed %d, report in %s", r.cfg.Seed, r.cfg.Report)
	r.timeline.enter("starting Kafka, the schema registry and PostgreSQL", 0)
	if r.engines, err = startEngines(ctx, r.cfg, func(text string) { r.timeline.say("%s", text) }); err != nil {
		return err
	}
	r.timeline.enter("starting relay, identity, billing and analytics as processes", 0)
	common := []string{"--database", r.engines.database, "--brokers", strings.Join(r.engines.brokers, ",")}
	if err := once(ctx, r.cfg.Binary, r.cfg.Report, "migrate", r.cfg.Kafka.Environment(), append([]string{"migrate"}, common...)...); err != nil {
		return err
	}
	if r.db, err = pgx.Connect(ctx, r.engines.database); err != nil {
		return fmt.Errorf("connecting to the database: %w", err)
	}
	if r.clock, err = readClock(ctx, r.db); err != nil {
		return err
	}
	r.history.Plan.ClockError = r.clock.err
	options, err := r.cfg.Kafka.Options()
	if err != nil {
		return err
	}
	if r.broker, err = openBroker(ctx, r.engines.brokers, r.id, options...); err != nil {
		return err
	}
	relay := append([]string{"relay", "--slot", r.slot(), "--on-missing-slot", "create"}, common...)
	if err := r.launch("relay", relay); err != nil {
		return err
	}
	for _, service := range append([]string{r.history.Plan.Truth}, consumers...) {
		args := append([]string{"serve", service}, common...)
		if r.engines.registry != "" {
			args = append(args, "--registry", r.engines.registry)
		} else {
			args = append(args, "--format", "json")
		}
		if err := r.launch(service, args); err != nil {
			return err
		}
	}
	for _, c := range r.processes {
		if err := c.ready(ctx); err != nil {
			return err
		}
	}
	r.population = newPopulation(r.processes[r.history.Plan.Truth].base(), r.id, r.cfg.Users, r.cfg.Seed, r.clock,
		func(w history.Write) { r.history.Writes = append(r.history.Writes, w) })
	return nil
}

// slot is the run's own, so that no slot of anybody else's is touched.
func (r *run) slot() string { return "challenge_" + r.id }

func (r *run) launch(name string, args []string) error {
	address, err := freeAddress()
	if err != nil {
		return err
	}
	c := &child{name: name, binary: r.cfg.Binary, args: append(args, "--http", address), env: r.cfg.Kafka.Environment(), http: address,
		log: filepath.Join(r.cfg.Report, name+".log")}
	r.processes[name] = c
	return c.start()
}

// story is what is done to the pipeline.
func (r *run) story(ctx context.Context) error {
	ordinaryTime := min(ordinaryMost, r.cfg.Outage/5)
	ordinary := max(1, int(float64(r.cfg.Backlog)*ordinaryTime.Seconds()/r.cfg.Outage.Seconds()))
	r.timeline.enter("ordinary life", ordinaryTime)
	r.population.send(ctx, ordinary, ordinaryTime)

	analytics := r.processes["analytics"]
	r.timeline.enter("SIGKILL analytics; changes go on", r.cfg.Outage)
	analytics.kill()
	down := history.Fault{Kind: history.Down, Service: "analytics", What: "analytics is down", From: r.clock.now()}
	if err := r.outage(ctx); err != nil {
		return err
	}

	down.To = r.clock.now()
	r.timeline.enter("analytics comes back; changes go on", ordinaryTime)
	if err := analytics.start(); err != nil {
		return err
	}
	var wg sync.WaitGroup
	var watched, resent error
	wg.Go(func() { watched = r.watchCatchUp(ctx, &down) })
	wg.Go(func() { resent = r.resend(ctx) })
	r.population.send(ctx, ordinary, ordinaryTime)
	wg.Wait()
	r.fault(down)
	return errors.Join(watched, resent, ctx.Err())
}

// outage sends the backlog, and meanwhile kills the relay and sends records again.
func (r *run) outage(ctx context.Context) error {
	var wg sync.WaitGroup
	var mischief error
	wg.Go(func() {
		start := time.Now()
		if !wait(ctx, time.Until(start.Add(part(r.cfg.Outage, relayDies)))) {
			return
		}
		if mischief = r.crash(ctx, r.processes["relay"]); mischief != nil {
			return
		}
		if wait(ctx, time.Until(start.Add(part(r.cfg.Outage, resendAt)))) {
			mischief = r.resend(ctx)
		}
	})
	r.population.send(ctx, r.cfg.Backlog, r.cfg.Outage)
	wg.Wait()
	return errors.Join(mischief, ctx.Err())
}

func part(d time.Duration, share float64) time.Duration { return time.Duration(float64(d) * share) }

// wait returns false when ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (r *run) fault(f history.Fault) { r.history.Faults = append(r.history.Faults, f) }

// crash kills the process and starts it again at once.
func (r *run) crash(ctx context.Context, c *child) error {
	f := history.Fault{Kind: history.Crash, Service: c.name, What: c.name + " was killed", From: r.clock.now()}
	r.timeline.say("SIGKILL %s, and start it again", c.name)
	c.kill()
	if err := c.start(); err != nil {
		return err
	}
	err := c.ready(ctx)
	f.To = r.clock.now()
	r.fault(f)
	return err
}

// resend is an upstream that delivers twice.
func (r *run) resend(ctx context.Context) error {
	f := history.Fault{Kind: history.Resend, From: r.clock.now()}
	n, err := r.broker.resend(ctx, r.rng, resendShare)
	f.To, f.What = r.clock.now(), fmt.Sprintf("%d records were put on the topic again, byte for byte", n)
	r.timeline.say("%s", f.What)
	r.fault(f)
	return err
}

// watchCatchUp looks how far the service has come until it has read everything that was on the topic
// one look before.
func (r *run) watchCatchUp(ctx context.Context, down *history.Fault) error {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	deadline := time.Now().Add(catchUpBound)
	var before map[int32]int64
	for {
		p, err := r.broker.positions(ctx, down.Service)
		if err == nil {
			down.Left = p.behind(p.ends)
			if before != nil && p.behind(before) == 0 {
				down.CaughtUp, down.Left = r.clock.now(), 0
				r.timeline.say("%s has caught up, %v after its start", down.Service, down.CaughtUp.Sub(down.To).Round(time.Millisecond))
				return nil
			}
			before = p.ends
		}
		if time.Now().After(deadline) {
			r.timeline.say("%s has not caught up within %v: %d records left", down.Service, catchUpBound, down.Left)
			return nil // the judge says what that means
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// settle waits until nothing moves any more: every acknowledged change is on the topic, every group has
// read to its end, and every journal is complete. What doesn't happen is left to the judge.
func (r *run) settle(ctx context.Context) error {
	r.timeline.enter("waiting for everything to settle", 0)
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	before, moved := "", time.Now()
	for {
		left := r.unsettled(ctx)
		switch {
		case left == "":
			r.timeline.say("settled")
			return nil
		case left != before:
			before, moved = left, time.Now()
		case time.Since(moved) > quietTime:
			r.timeline.say("nothing has moved for %v: %s", quietTime, left)
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// unsettled says what is still to come, "" when nothing is. As a side effect it remembers the topic's end.
func (r *run) unsettled(ctx context.Context) string {
	if n := r.broker.missing(r.history.Writes); n > 0 {
		return fmt.Sprintf("%d changes are not on the topic", n)
	}
	for _, service := range consumers {
		p, err := r.broker.positions(ctx, service)
		if err != nil {
			return err.Error()
		}
		if n := p.behind(p.ends); n > 0 {
			return fmt.Sprintf("%s has %d records to read", service, n)
		}
		if r.ends = p.ends; r.broker.failure(p.ends) != nil {
			return "the challenge itself has records to read"
		}
		n, err := countJournal(ctx, r.db, service, r.id)
		if err != nil {
			return err.Error()
		}
		if want := r.changes(); n < want {
			return fmt.Sprintf("the journal of %s has %d changes of %d", service, n, want)
		}
	}
	return ""
}

// changes counts the acknowledged changes.
func (r *run) changes() int {
	type change struct {
		user    string
		version int64
	}
	seen := map[change]bool{}
	for _, w := range r.history.Writes {
		if w.Outcome == history.OK {
			seen[change{w.UserID, w.Version}] = true
		}
	}
	return len(seen)
}

// progress prints once a second where things stand.
func (r *run) progress(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		sent, acked := r.population.counts()
		text := fmt.Sprintf("sent %d  acknowledged %d  on the topic %d  to read:", sent, acked, r.broker.count())
		for _, service := range consumers {
			if p, err := r.broker.positions(ctx, service); err == nil {
				text += fmt.Sprintf("  %s %d", service, p.behind(p.ends))
			}
		}
		r.timeline.progress(text)
	}
}

// cleanUp ends everything that was started, also when ctx has ended. keep leaves the engines' directory.
func (r *run) cleanUp(ctx context.Context, keep bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
	defer cancel()
	for _, name := range []string{"analytics", "billing", "identity", "relay"} {
		if c := r.processes[name]; c != nil {
			if err := c.stop(); err != nil {
				r.timeline.say("%v; see %s", err, c.log)
			}
		}
	}
	if r.broker != nil {
		r.broker.client.Close()
	}
	if r.db != nil {
		if r.cfg.Database != "" {
			// A slot that nobody reads keeps the WAL for ever.
			if _, err := r.db.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1", r.slot()); err != nil {
				r.timeline.say("dropping the slot %s, which now keeps WAL: %v", r.slot(), err)
			}
		}
		if err := r.db.Close(ctx); err != nil {
			r.timeline.say("closing the connection to the database: %v", err)
		}
	}
	if r.engines != nil {
		if err := r.engines.stop(ctx, keep); err != nil {
			r.timeline.say("stopping the engines: %v", err)
		}
		if keep && r.engines.dir != "" {
			r.timeline.say("database and topics of the failed run are kept in %s", r.engines.dir)
		}
	}
}
