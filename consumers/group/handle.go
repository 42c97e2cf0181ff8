package group

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"converge/consumers/event"
	"converge/consumers/retry"
	"converge/internal/pipeline"
	"converge/producers/outbox"
)

// handle gives the events to their handlers, in order. Events of held keys wait instead. Without care a
// refused event is errRefused and the transaction is lost; with care each event has a savepoint, and a
// refusal is that event's alone. Errors of the database's are returned either way.
func (g *Group) handle(ctx context.Context, tx pgx.Tx, events []*event.Event, forgotten map[uuid.UUID]bool, held map[string]bool, careful bool) (outcome, error) {
	if held == nil {
		held = map[string]bool{}
	}
	if careful {
		return g.handleCarefully(ctx, tx, events, forgotten, held)
	}
	var r outcome
	ready := make([]*event.Event, 0, len(events))
	for _, e := range events {
		if no := unfit(e, forgotten); no != nil {
			if g.cfg.Retry.HoldDead {
				return outcome{}, errRefused // what becomes of the events in front of it comes first
			}
			g.bury(&r, held, retry.Failure{Event: e, Err: no, Attempts: 1, FirstAt: time.Now()})
		} else if held[g.ladder.KeyOf(e)] {
			r.waiting = append(r.waiting, e)
		} else {
			ready = append(ready, e)
		}
	}
	if err := g.handleTogether(ctx, tx, ready); err != nil {
		return outcome{}, err
	}
	if len(r.dead)+len(r.waiting) > 0 { // what is written of these is none of the handlers' doing
		if err := flush(ctx, tx); err != nil {
			return outcome{}, err
		}
	}
	r.applied = ready
	return r, nil
}

// unfit returns why no handler is asked about an event, nil when one is.
func unfit(e *event.Event, forgotten map[uuid.UUID]bool) error {
	switch {
	case e.Type == "":
		return errNoType
	case forgotten[e.ID]:
		return errForgotten
	default:
		return nil
	}
}

func (g *Group) handleCarefully(ctx context.Context, tx pgx.Tx, events []*event.Event, forgotten map[uuid.UUID]bool, held map[string]bool) (outcome, error) {
	var r outcome
	for _, e := range events {
		key := g.ladder.KeyOf(e)
		refusal := unfit(e, forgotten)
		if refusal == nil && held[key] { // since an event before it in this batch, or for longer
			r.waiting = append(r.waiting, e)
			continue
		}
		if refusal == nil {
			var err error
			if refusal, err = g.handleAlone(ctx, tx, e); err != nil {
				return outcome{}, err
			}
		}
		if refusal == nil {
			r.applied = append(r.applied, e)
			continue
		}
		failure := retry.Failure{Event: e, Err: refusal, Attempts: 1, FirstAt: time.Now()}
		if g.final(failure) {
			g.bury(&r, held, failure)
			continue
		}
		held[key] = true
		r.heads = append(r.heads, failure)
		r.waiting = append(r.waiting, e)
	}
	return r, nil
}

// bury notes a dead event. It may hold its key, unless somebody does already.
func (g *Group) bury(r *outcome, held map[string]bool, f retry.Failure) {
	key := g.ladder.KeyOf(f.Event)
	f.Blocks = g.cfg.Retry.HoldDead && !held[key]
	r.dead = append(r.dead, f)
	if f.Blocks {
		held[key] = true
		r.heads = append(r.heads, f)
		r.waiting = append(r.waiting, f.Event)
	}
}

// final reports whether the event is not tried again.
func (g *Group) final(f retry.Failure) bool {
	return event.Classify(f.Err) == event.ClassPermanent || g.cfg.Retry.Exhausted(f.Attempts, f.FirstAt, time.Now())
}

// handleTogether gives the events to their handlers without savepoints: runs of a type with a Batch
// handler at once, the others one by one.
func (g *Group) handleTogether(ctx context.Context, tx pgx.Tx, events []*event.Event) error {
	for len(events) > 0 {
		run := 1
		if _, ok := g.cfg.Handler.Batch[events[0].Type]; ok {
			for run < len(events) && events[run].Type == events[0].Type {
				run++
			}
		}
		if err := g.call(ctx, tx, events[:run]); err != nil {
			if ofTheDatabase(err) {
				return err
			}
			return errRefused
		}
		events = events[run:]
	}
	return nil
}

// lateSQL checks the constraints that COMMIT would check, while it still can be told whose doing it is. Rolling it
// back leaves them to COMMIT: a handler may be after a state that another one completes.
const lateSQL = "SAVEPOINT late; SET CONSTRAINTS ALL IMMEDIATE; ROLLBACK TO late; RELEASE late"

// handleAlone gives one event to its handler inside a savepoint. refusal is the event's own trouble, whose
// effects are undone; err is the database's.
func (g *Group) handleAlone(ctx context.Context, tx pgx.Tx, e *event.Event) (refusal, err error) {
	savepoint, err := tx.Begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("setting a savepoint: %w", err)
	}
	if refusal = g.call(ctx, savepoint, []*event.Event{e}); refusal == nil {
		refusal = pipeline.Flush(ctx, savepoint)
	}
	if refusal == nil {
		_, refusal = savepoint.Exec(ctx, lateSQL, pgx.QueryExecModeSimpleProtocol)
	}
	if refusal == nil {
		if err := savepoint.Commit(ctx); err != nil {
			return nil, fmt.Errorf("releasing a savepoint: %w", err)
		}
		return nil, nil
	}
	if ofTheDatabase(refusal) {
		return nil, refusal
	}
	if err := savepoint.Rollback(ctx); err != nil {
		return nil, fmt.Errorf("rolling back to a savepoint: %w", err)
	}
	return refusal, nil
}

// flush runs what handlers have put off. Without care nobody can tell whose it was.
func flush(ctx context.Context, tx pgx.Tx) error {
	if err := pipeline.Flush(ctx, tx); err != nil {
		if ofTheDatabase(err) {
			return fmt.Errorf("applying a batch: %w", err)
		}
		return errRefused
	}
	return nil
}

func ofTheDatabase(err error) bool {
	class := event.Classify(err)
	return class == event.ClassInfrastructure || class == event.ClassContention || retry.LostRace(err)
}

// call gives events of one type to their handler. What the handler emits for a single event names that
// event as its cause. A panic is the event's trouble, like an error.
func (g *Group) call(ctx context.Context, tx pgx.Tx, events []*event.Event) (err error) {
	first := events[0]
	defer func() {
		if r := recover(); r != nil {
			g.cfg.Logger.Error("a handler panicked", "group", g.cfg.Name, "event_id", first.ID, "event_type", first.Type, "stack", string(debug.Stack()))
			err = fmt.Errorf("the handler of %s panicked: %v", first.Type, r)
		}
	}()
	if each, ok := g.cfg.Handler.Each[first.Type]; ok && len(events) == 1 {
		ctx = outbox.WithCause(ctx, outbox.Cause{CorrelationID: first.CorrelationID, CausationID: first.ID.String(), Traceparent: first.Traceparent})
		return each(ctx, tx, first)
	}
	if batch, ok := g.cfg.Handler.Batch[first.Type]; ok {
		return batch(ctx, tx, events)
	}
	return event.Permanentf("nobody here handles events of type %q", first.Type) // redriven, or held by an older build
}
