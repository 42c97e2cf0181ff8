package group

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/retry"
)

// ErrOffsetBeyondEnd means that the stored offset of a partition is beyond the end of its log: the topic
// was recreated or restored, and no offset is right by itself. It stops the group; resetting the stored
// offset is for a person to decide.
var ErrOffsetBeyondEnd = errors.New("the stored offset is beyond the end of the log")

// ErrTopicReplaced means that a topic was deleted, or deleted and made anew, while the group read it. The
// stored offsets speak of the topic that was: it stops the group, for a person to decide.
var ErrTopicReplaced = errors.New("the topic was deleted or made anew")

// Group consumes topics. Create it with [New]; Run may be called once.
type Group struct {
	cfg     Config
	ladder  retry.Ladder
	store   store
	guard   *guard
	metrics *metrics
	wakes   map[string]bool // the retry topics
	client  *kgo.Client     // set by OnNewClient

	// reason is why the group is not ready; nil when it is.
	reason atomic.Pointer[string]
	// outside says that Kafka does not count this member in, though it was asked to.
	outside atomic.Bool
	// chunk is how many held events one transaction takes: fewer since one took longer than its time.
	chunk atomic.Int32

	mu     sync.Mutex
	owned  map[partition]position
	paused map[partition]time.Time // partitions that wait for a wake-up or an event to be due
	ripens map[partition]ripening  // the event that a partition waits for, with a Delay
	hints  map[partition]int64     // offsets that Kafka is yet to be told
	back   map[partition]int64     // stored offsets that somebody has moved back
	toldAt time.Time               // when Kafka was told last
	fatal  error
}

type partition struct {
	topic string
	id    int32
}

// position is how far a partition of an event topic is.
type position struct {
	// stored is the offset in the database as this process last saw it.
	stored int64
	// passed counts records since then that the handler does not want: they cost no transaction.
	passed int
	// most bounds a batch, in events, since one took longer than its time; 0 is no bound.
	most int
}

// New returns a group that Run will run, or why the configuration does not do. It connects to nothing.
func New(cfg Config) (*Group, error) {
	if cfg.Pool == nil {
		return nil, fmt.Errorf("the consumer group %s needs a pool", cfg.Name)
	}
	return newGroup(cfg, newTables)
}

// newGroup returns a group whose database is the store that open returns.
func newGroup(cfg Config, open func(Config, retry.Ladder) store) (*Group, error) {
	filled, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	ladder := retry.Ladder{Consumer: filled.Name, Policy: filled.Retry}
	g := &Group{cfg: filled, ladder: ladder, store: open(filled, ladder), guard: newGuard(filled.Guard),
		wakes: map[string]bool{}, owned: map[partition]position{}, paused: map[partition]time.Time{}, ripens: map[partition]ripening{}, hints: map[partition]int64{}}
	g.chunk.Store(mostHeld)
	for _, topic := range filled.Topics {
		for _, name := range retry.WakeTopics(topic, filled.Name, filled.Retry) {
			g.wakes[name] = true
		}
	}
	if g.metrics, err = newMetrics(&g.cfg); err != nil {
		return nil, err
	}
	g.notReady("has not joined its group yet")
	return g, nil
}

func (g *Group) notReady(reason string) { g.reason.Store(&reason) }

// Ready returns why the group is not at work, nil when it is. It is safe for concurrent use.
func (g *Group) Ready() error {
	if reason := g.reason.Load(); reason != nil {
		return fmt.Errorf("consumer group %s: %s", g.cfg.Name, *reason)
	}
	return nil
}

// Run consumes until ctx ends; then it finishes the batch at hand, tells Kafka where it is, leaves the
// group and returns nil. An outage of Kafka or PostgreSQL does not end it. It returns an error for what
// time does not mend: [ErrOffsetBeyondEnd], [ErrTopicReplaced].
func (g *Group) Run(ctx context.Context) error {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	if _, err := kgo.NewClient(append(g.options(life), g.cfg.Client...)...); err != nil {
		return fmt.Errorf("configuring the Kafka client of group %s: %w", g.cfg.Name, err)
	}
	var wait sync.WaitGroup
	housekeeping, stop := context.WithCancel(ctx)
	wait.Go(func() { g.keepHouse(housekeeping) })
	err := g.poll(ctx)
	stop()
	wait.Wait()
	g.tellKafka(context.WithoutCancel(ctx))
	g.leave(end)
	return err
}

// leaveTime bounds the goodbye to a Kafka that does not answer.
const leaveTime = 3 * time.Second

// leave leaves the group and closes the client; end ends the client's context, and with it what waits for Kafka.
//
// LeaveGroupContext ahead of it would bound the goodbye as well, but Close leaves once more, in a goroutine that it
// does not wait for when the group is left already. The last poll of Close counts as one that nobody allows to
// rebalance behind, if it returns anything (the notice of a lost session is enough): a goroutine that comes to
// wait only then waits for ever. A group that is left once, by Close, is left by a goroutine that Close waits for.
func (g *Group) leave(end context.CancelFunc) {
	defer time.AfterFunc(leaveTime, end).Stop()
	g.client.CloseAllowingRebalance()
}

func (g *Group) options(life context.Context) []kgo.Opt {
	topics := append([]string{}, g.cfg.Topics...)
	for topic := range g.wakes {
		topics = append(topics, topic)
	}
	return []kgo.Opt{
		kgo.WithContext(life),
		kgo.SeedBrokers(g.cfg.Brokers...),
		kgo.ClientID("converge-" + g.cfg.Name),
		kgo.ConsumerGroup(g.cfg.Name),
		kgo.ConsumeTopics(topics...),
		kgo.DisableAutoCommit(),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), // an emitter may publish in transactions
		kgo.BlockRebalanceOnPoll(),
		kgo.AdjustFetchOffsetsFn(g.adjust),
		kgo.OnPartitionsAssigned(g.assigned),
		kgo.OnPartitionsRevoked(g.revoked),
		kgo.OnPartitionsLost(g.lost),
		kgo.WithHooks(membership{g}),
		kgo.SessionTimeout(10 * time.Second),
		kgo.HeartbeatInterval(2 * time.Second),
		kgo.RebalanceTimeout(rebalanceTime),
		kgo.FetchMaxBytes(g.cfg.MaxBytes),
		kgo.FetchMaxPartitionBytes(g.cfg.MaxBytes / 4), // so that a backlog comes of several partitions, which work side by side
		// A fetch that is under way does not ask for a partition that is resumed meanwhile, and later ones
		// queue up behind it: so long, at worst, is a retry late.
		kgo.FetchMaxWait(250 * time.Millisecond),
		kgo.MetadataMaxAge(time.Minute),
		// Below the log's start there is nothing else to read; beyond its end a person must decide, and
		// adjust has looked.
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	}
}

// assigned, revoked and lost never run while a batch is at work: BlockRebalanceOnPoll.

func (g *Group) assigned(context.Context, *kgo.Client, map[string][]int32) {
	g.metrics.rebalances.Inc()
	g.reason.Store(nil)
	if g.outside.Swap(false) {
		g.cfg.Logger.Info("consumer has joined its group again", "group", g.cfg.Name)
	}
}

// membership hears why the group was left against its will: Kafka does not answer, or counts this member
// out. The client calls it in turn with the callbacks above, so that the assignment that mends it comes
// later.
type membership struct{ *Group }

// OnNewClient takes the client before its goroutines begin: they call back before NewClient has returned.
func (m membership) OnNewClient(client *kgo.Client) { m.client = client }

func (m membership) OnGroupManageError(err error) {
	m.notReady("waits for Kafka: " + err.Error())
	if !m.outside.Swap(true) {
		m.cfg.Logger.Warn("consumer waits for Kafka: it is not in its group", "group", m.cfg.Name, "error", err)
	}
}

func (g *Group) revoked(ctx context.Context, _ *kgo.Client, gone map[string][]int32) {
	g.tellKafka(ctx)
	g.forget(gone)
}

func (g *Group) lost(_ context.Context, _ *kgo.Client, gone map[string][]int32) { g.forget(gone) }

func (g *Group) forget(gone map[string][]int32) {
	g.client.ResumeFetchPartitions(gone) // a pause would outlive the partition's return
	g.mu.Lock()
	defer g.mu.Unlock()
	for topic, ids := range gone {
		for _, id := range ids {
			p := partition{topic, id}
			delete(g.owned, p)
			delete(g.paused, p)
			delete(g.ripens, p)
			delete(g.hints, p)
		}
	}
}

// pollTime bounds a poll, so that hints are told and pauses end when nothing arrives.
const pollTime = 250 * time.Millisecond

func (g *Group) poll(ctx context.Context) error {
	var outage backoff
	for ctx.Err() == nil {
		g.resume()
		g.goBack()
		polling, cancel := context.WithTimeout(ctx, g.untilDue())
		fetches := g.client.PollFetches(polling)
		cancel()
		g.reportFetchErrors(fetches)
		trouble := g.work(ctx, fetches)
		if trouble == nil {
			g.tellKafkaNowAndThen(ctx)
		}
		g.client.AllowRebalance()
		if err := g.stopped(); err != nil {
			return err
		}
		switch {
		case ctx.Err() != nil:
		case trouble != nil:
			g.inTrouble(trouble, outage.begins())
			outage.wait(ctx)
		case fetches.NumRecords() > 0 && outage.ends():
			g.cfg.Logger.Info("consumer resumed", "group", g.cfg.Name)
			g.metrics.guard.Set(0)
			g.reason.Store(nil)
		}
	}
	return nil
}

// inTrouble says why the group waits; begins that it has only begun to.
func (g *Group) inTrouble(trouble error, begins bool) {
	if errors.Is(trouble, ErrGuard) {
		g.notReady(trouble.Error())
		if g.metrics.guard.Set(1); begins {
			g.cfg.Logger.Error("consumer stopped by its guard; no attempt is counted", "group", g.cfg.Name, "error", trouble)
		}
		return
	}
	g.notReady("waits for its database: " + trouble.Error())
	if begins {
		g.cfg.Logger.Warn("consumer paused: its database is in trouble; no attempt is counted", "group", g.cfg.Name, "error", trouble)
	}
}

func (g *Group) stopped() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.fatal
}

func (g *Group) reportFetchErrors(fetches kgo.Fetches) {
	for _, e := range fetches.Errors() {
		if errors.Is(e.Err, context.DeadlineExceeded) || errors.Is(e.Err, context.Canceled) {
			continue
		}
		if errors.Is(e.Err, kerr.UnknownTopicID) { // the client gives it to us when it has ceased to hope
			g.stop(fmt.Errorf("group %s, topic %s: %w: delete its rows in consumer_offsets if it is to be read from its start", g.cfg.Name, e.Topic, ErrTopicReplaced))
			continue
		}
		var unreachable *kgo.ErrFirstReadEOF
		var left *kgo.ErrGroupSession // membership has heard
		level := g.cfg.Logger.Warn
		if errors.As(e.Err, &unreachable) || errors.As(e.Err, &left) || kerr.IsRetriable(e.Err) {
			level = g.cfg.Logger.Debug // the client tries again by itself
		}
		level("fetching records", "group", g.cfg.Name, "topic", e.Topic, "partition", e.Partition, "error", e.Err)
	}
}

// work applies what a poll brought, partitions side by side, and returns the first trouble with the
// database. Partitions in trouble are put back to where they were.
func (g *Group) work(ctx context.Context, fetches kgo.Fetches) error {
	var wait sync.WaitGroup
	var mu sync.Mutex
	var first error
	rewind := map[string]map[int32]kgo.EpochOffset{}
	fetches.EachPartition(func(f kgo.FetchTopicPartition) {
		if len(f.Records) == 0 {
			return
		}
		wait.Go(func() {
			p := partition{f.Topic, f.Partition}
			to, err := g.applyAll(ctx, p, f.Records)
			mu.Lock()
			defer mu.Unlock()
			if to >= 0 {
				if rewind[p.topic] == nil {
					rewind[p.topic] = map[int32]kgo.EpochOffset{}
				}
				rewind[p.topic][p.id] = kgo.EpochOffset{Epoch: -1, Offset: to}
			}
			if first == nil {
				first = err
			}
		})
	})
	wait.Wait()
	if len(rewind) > 0 {
		g.client.SetOffsets(rewind)
	}
	return first
}

// pollTurn is how long a partition goes on with what a poll brought: a rebalance waits for it.
const pollTurn = time.Second

// applyAll applies the records of one partition, a transaction after the other. rewind is the offset to read from
// next, -1 for the one that follows the records.
func (g *Group) applyAll(ctx context.Context, p partition, records []*kgo.Record) (rewind int64, err error) {
	for began := time.Now(); ; {
		n := min(g.cfg.MaxEvents, len(records))
		rewind, err = g.applySome(ctx, p, records[:n])
		if records = records[n:]; rewind >= 0 || err != nil || len(records) == 0 {
			return rewind, err
		}
		if ctx.Err() != nil || time.Since(began) > pollTurn {
			return records[0].Offset, nil
		}
	}
}

// applySome applies records of one partition in one transaction, or as few as their trouble allows.
func (g *Group) applySome(ctx context.Context, p partition, records []*kgo.Record) (rewind int64, err error) {
	if g.wakes[p.topic] {
		return g.answerWakes(ctx, p, records)
	}
	return g.applyEvents(ctx, p, records)
}

// hintEvery is how often Kafka is told the offsets, for whoever watches the lag.
const hintEvery = 100 * time.Millisecond

func (g *Group) hint(p partition, offset int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hints[p] = offset
}

func (g *Group) tellKafkaNowAndThen(ctx context.Context) {
	g.mu.Lock()
	due := len(g.hints) > 0 && time.Since(g.toldAt) >= hintEvery
	g.mu.Unlock()
	if due {
		g.tellKafka(ctx)
	}
}

// tellKafka commits the offsets reached. For event topics that is a hint: the database decides. For retry
// topics it is the position, at least once.
func (g *Group) tellKafka(ctx context.Context) {
	g.mu.Lock()
	offsets := map[string]map[int32]kgo.EpochOffset{}
	for p, offset := range g.hints {
		if offsets[p.topic] == nil {
			offsets[p.topic] = map[int32]kgo.EpochOffset{}
		}
		offsets[p.topic][p.id] = kgo.EpochOffset{Epoch: -1, Offset: offset}
	}
	g.hints = map[partition]int64{}
	g.toldAt = time.Now()
	g.mu.Unlock()
	if len(offsets) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := commit(ctx, g.client, offsets); err != nil {
		g.cfg.Logger.Debug("telling Kafka the offsets", "group", g.cfg.Name, "error", err)
		g.tellAgain(offsets)
	}
}

// tellAgain keeps offsets that Kafka did not take for the next time. Nothing is reached meanwhile: Kafka is
// told by whoever polls, and by callbacks that wait for it.
func (g *Group) tellAgain(offsets map[string]map[int32]kgo.EpochOffset) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for topic, ids := range offsets {
		for id, offset := range ids {
			g.hints[partition{topic, id}] = offset.Offset
		}
	}
}

// keepHouse repeats lost wake-ups, makes and drops partitions of the inbox, and samples the gauges.
func (g *Group) keepHouse(ctx context.Context) {
	quick, slow := time.NewTicker(3*time.Second), time.NewTicker(10*time.Minute)
	defer quick.Stop()
	defer slow.Stop()
	for {
		g.chore(ctx, "repeating late wake-ups", func() error { return g.sweep(ctx) })
		g.chore(ctx, "looking for partitions that were moved back", func() error { return g.lookBack(ctx) })
		g.chore(ctx, "sampling gauges", func() error { return g.sample(ctx) })
		select {
		case <-ctx.Done():
			return
		case <-quick.C:
		case <-slow.C:
			g.makeDays(ctx)
			// Not at the start: what has waited since the last one is taken on before its days are forgotten.
			g.forgetDays(ctx)
		}
	}
}

func (g *Group) makeDays(ctx context.Context) {
	g.chore(ctx, "making partitions for the inbox", func() error { return g.store.makeDays(ctx, time.Now()) })
}

func (g *Group) forgetDays(ctx context.Context) {
	dropped, err := g.store.forgetDays(ctx, time.Now())
	switch {
	case ctx.Err() != nil:
	case err != nil:
		g.cfg.Logger.Warn("old inbox days are kept for now", "group", g.cfg.Name, "error", err)
	case len(dropped) > 0:
		g.cfg.Logger.Info("inbox days are forgotten: events of theirs go to the dead letters, for review", "group", g.cfg.Name, "days", dropped)
	}
}

func (g *Group) chore(ctx context.Context, what string, do func() error) {
	if err := do(); err != nil && ctx.Err() == nil {
		g.cfg.Logger.Debug("consumer chore put off", "group", g.cfg.Name, "chore", what, "error", err)
	}
}

// backoff is the wait between tries in an outage: doubling, jittered, bounded.
type backoff struct{ tries int }

func (b *backoff) begins() bool { return b.tries == 0 }

func (b *backoff) ends() bool {
	ended := b.tries > 0
	b.tries = 0
	return ended
}

func (b *backoff) wait(ctx context.Context) {
	limit := min(5*time.Second, 50*time.Millisecond<<min(b.tries, 7))
	b.tries++
	sleep(ctx, limit/2+rand.N(limit/2))
}

// sleep returns when d has passed or ctx has ended.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
