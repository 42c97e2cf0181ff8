package group

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/event"
	"converge/consumers/retry"
)

// mostHeld is how many held events one transaction applies, at most.
const mostHeld = 50

// answerWakes runs the held keys that the records call for, each when it is due. A partition whose first
// call is not due yet is paused until it is; its heartbeats go on. What takes long is put off to the next poll.
func (g *Group) answerWakes(ctx context.Context, p partition, records []*kgo.Record) (rewind int64, err error) {
	until := time.Now().Add(drainTime)
	for _, r := range records {
		if ctx.Err() != nil || time.Now().After(until) {
			return r.Offset, nil
		}
		wake, ok := readWake(r)
		if !ok {
			g.cfg.Logger.Error("a record of a retry topic is no wake-up and is passed over", "group", g.cfg.Name,
				"topic", r.Topic, "partition", r.Partition, "offset", r.Offset)
			g.hint(p, r.Offset+1)
			continue
		}
		if time.Until(wake.NotBefore) > 0 {
			g.pause(p, wake.NotBefore)
			return r.Offset, nil
		}
		if answered, err := g.drain(ctx, wake, until); err != nil || !answered {
			return r.Offset, err
		}
		g.hint(p, r.Offset+1)
	}
	return -1, nil
}

func readWake(r *kgo.Record) (w retry.Wake, ok bool) {
	var token, due string
	for _, h := range r.Headers {
		switch h.Key {
		case "origin_topic":
			w.Topic = string(h.Value)
		case "hold_key":
			w.Key = string(h.Value)
		case "token":
			token = string(h.Value)
		case "not_before":
			due = string(h.Value)
		}
	}
	var err, dueErr error
	w.Token, err = strconv.ParseInt(token, 10, 64)
	w.NotBefore, dueErr = time.Parse(time.RFC3339Nano, due)
	return w, err == nil && dueErr == nil && w.Topic != ""
}

// drain runs a held key until nothing waits for it any more, an event of it fails again, or the call
// turns out to be stale. Then the call is answered; it is not when the time is up. Like a crash anywhere that
// leaves it to come again, and the token still fits.
func (g *Group) drain(ctx context.Context, wake retry.Wake, until time.Time) (answered bool, err error) {
	var after int64
	for races := 0; ; {
		more, err := g.drainChunk(ctx, wake, &after)
		if err == nil && !more {
			return true, nil
		}
		if err != nil && !retry.LostRace(err) && event.Classify(err) != event.ClassContention {
			return false, err
		}
		if ctx.Err() != nil || time.Now().After(until) {
			return false, nil
		}
		if err == nil {
			continue
		}
		if races++; races > maxRaces {
			return false, fmt.Errorf("a held key lost %d races in a row: %w", races, err)
		}
		sleep(ctx, time.Millisecond+rand.N(time.Duration(min(races, 10))*10*time.Millisecond))
	}
}

// drainChunk runs one chunk, and releases the key behind the last. more says that another is due.
func (g *Group) drainChunk(ctx context.Context, wake retry.Wake, after *int64) (more bool, err error) {
	limit := g.chunk.Load()
	err = g.inTime(ctx, func(ctx context.Context) error {
		state, err := g.drainOnce(ctx, wake, after, int(limit), false)
		if errors.Is(err, errRefused) {
			state, err = g.drainOnce(ctx, wake, after, int(limit), true)
		}
		if err != nil || state != drained {
			more = state == full
			return err
		}
		released, err := g.store.release(ctx, wake)
		more = !released
		return err
	})
	switch {
	case errors.Is(err, errOverdue):
		g.chunk.Store(max(1, limit/2))
	case err == nil:
		g.chunk.Store(min(mostHeld, limit+1+limit/8))
	}
	return more, err
}

type drainState int

const (
	over    drainState = iota // the call is stale, or the head waits for another try
	full                      // the chunk was full
	drained                   // nothing was left
)

func (g *Group) drainOnce(ctx context.Context, wake retry.Wake, after *int64, limit int, careful bool) (drainState, error) {
	began := time.Now()
	tx, err := g.store.begin(ctx)
	if err != nil {
		return over, fmt.Errorf("beginning a retry: %w", err)
	}
	defer rollback(tx)
	turn, ok, err := g.store.Claim(ctx, tx, wake)
	if err != nil || !ok {
		return over, err
	}
	waiting, err := g.store.Waiting(ctx, tx, wake, *after, limit)
	if err != nil {
		return over, err
	}
	if len(waiting) == 0 {
		return drained, nil
	}
	waiting[0].Event.Attempt = turn.Attempt
	result, err := g.handleHeld(ctx, tx, turn, waiting, careful)
	if err != nil {
		return over, err
	}
	blamed := result.Dead
	if result.Again != nil {
		blamed = append(blamed[:len(blamed):len(blamed)], *result.Again)
	}
	if err := g.admit(len(result.Done), blamed...); err != nil {
		return over, err
	}
	if err := g.store.Bury(ctx, tx, result.Dead); err != nil {
		return over, err
	}
	if err := g.store.Settle(ctx, tx, turn, result); err != nil {
		return over, err
	}
	// A lost reply needs no care here: the call is served again, and finds what is left.
	if err := tx.Commit(ctx); err != nil {
		if !careful && rolledBack(err) && !ofTheDatabase(err) {
			return over, errRefused
		}
		return over, fmt.Errorf("committing a retry: %w", err)
	}
	g.countHeld(wake, turn, result, time.Since(began))
	switch {
	case result.Again != nil || result.Blocked != nil:
		return over, nil
	case len(waiting) == limit:
		*after = waiting[len(waiting)-1].Seq
		return full, nil
	default:
		return drained, nil
	}
}

// handleHeld gives held events to their handlers, in order, up to the first that must be tried again.
func (g *Group) handleHeld(ctx context.Context, tx pgx.Tx, turn retry.Turn, waiting []retry.Waiting, careful bool) (retry.Result, error) {
	var r retry.Result
	if !careful {
		events := make([]*event.Event, len(waiting))
		for i, w := range waiting {
			events[i] = w.Event
		}
		if err := g.handleTogether(ctx, tx, events); err != nil {
			return r, err
		}
		if err := flush(ctx, tx); err != nil {
			return r, err
		}
		r.Done = waiting
		return r, nil
	}
	for _, w := range waiting {
		refusal, err := g.handleAlone(ctx, tx, w.Event)
		if err != nil {
			return r, err
		}
		if refusal == nil {
			r.Done = append(r.Done, w)
			continue
		}
		failure := retry.Failure{Event: w.Event, Err: refusal, Attempts: w.Event.Attempt + 1, FirstAt: time.Now(), Redriven: w.Redriven}
		if w.Event.Attempt > 0 {
			failure.FirstAt = turn.FirstAt
		}
		if !g.final(failure) {
			r.Again = &failure
			return r, nil
		}
		r.Dead = append(r.Dead, failure)
		if g.cfg.Retry.HoldDead {
			r.Blocked = &failure
			return r, nil
		}
		r.DeadSeq = append(r.DeadSeq, w.Seq)
	}
	return r, nil
}

func (g *Group) countHeld(wake retry.Wake, turn retry.Turn, r retry.Result, took time.Duration) {
	done := make([]*event.Event, len(r.Done))
	for i, w := range r.Done {
		done[i] = w.Event
		if w.Redriven {
			g.metrics.redrives.WithLabelValues(applied).Inc()
		}
		if w.Event.Attempt > 0 {
			g.metrics.attempts.Observe(float64(turn.Attempt))
		}
	}
	var again []retry.Failure
	if r.Again != nil {
		again = append(again, *r.Again)
	}
	for outcome, failures := range map[string][]retry.Failure{retried: again, dead: r.Dead} {
		for _, f := range failures {
			if f.Redriven {
				g.metrics.redrives.WithLabelValues(outcome).Inc()
			}
		}
	}
	g.count(batch{partition: partition{topic: wake.Topic}, events: done}, outcome{applied: done, heads: again, dead: r.Dead}, took)
}

// pause stops fetching a partition until what comes next in it is due; heartbeats go on.
func (g *Group) pause(p partition, until time.Time) {
	g.client.PauseFetchPartitions(map[string][]int32{p.topic: {p.id}})
	g.mu.Lock()
	defer g.mu.Unlock()
	g.paused[p] = until
}

// resume fetches again from the partitions that need wait no longer.
func (g *Group) resume() {
	g.mu.Lock()
	due := map[string][]int32{}
	for p, until := range g.paused {
		if time.Until(until) <= 0 {
			due[p.topic] = append(due[p.topic], p.id)
			delete(g.paused, p)
		}
	}
	g.mu.Unlock()
	if len(due) > 0 {
		g.client.ResumeFetchPartitions(due)
	}
}

// untilDue returns how long a poll may last.
func (g *Group) untilDue() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	wait := pollTime
	for _, until := range g.paused {
		wait = min(wait, max(time.Until(until), time.Millisecond))
	}
	return wait
}

// sweep repeats the wake-ups that are late.
func (g *Group) sweep(ctx context.Context) error {
	repeated, err := g.store.sweep(ctx)
	if err == nil && repeated > 0 {
		g.cfg.Logger.Debug("repeated late wake-ups", "group", g.cfg.Name, "count", repeated)
	}
	return err
}
