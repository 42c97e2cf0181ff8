package httpapi

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// group lets calls that come while others run share their next run, as a database's group commit does: the fuller
// the house, the fewer runs there are, and a call that comes alone waits for nobody.
//
// It has no goroutine of its own. At most lanes of the callers run, each for itself and for those that it finds
// waiting; who is done passes its lane on to the one that has waited longest. Its methods are safe for concurrent
// use.
type group[T any] struct {
	run   func(ctx context.Context, calls []T) error // its error is that of every call
	lanes int
	most  int // calls in a run

	mu      sync.Mutex
	running int
	waiting []*call[T] // longest first. Invariant: there are none while a lane is free
}

type call[T any] struct {
	of  T
	err error // once it is over
	// Of one place: what has become of who waits, true: a lane is its own, false: it is over.
	turn chan bool
}

// errNotRun is what the others hear of a run that panicked.
var errNotRun = errors.New("the request that ran this one's statements panicked")

// do runs the call, together with others or alone, and returns once it is over. A call whose ctx ends while it
// waits is not run; one that is in a run, or has a lane for it, is heard to its end.
func (g *group[T]) do(ctx context.Context, of T) error {
	me := &call[T]{of: of}
	if !g.enter(me) {
		select {
		case mine := <-me.turn:
			if !mine {
				return me.err
			}
		case <-ctx.Done():
			if g.withdraw(me) {
				return ctx.Err()
			}
			if mine := <-me.turn; !mine {
				return me.err
			}
		}
	}
	g.lead(ctx, me)
	return me.err
}

// enter takes a lane, or a place among those that wait.
func (g *group[T]) enter(me *call[T]) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running < g.lanes {
		g.running++
		return true
	}
	me.turn = make(chan bool, 1)
	g.waiting = append(g.waiting, me)
	return false
}

// withdraw reports whether the call was still waiting.
func (g *group[T]) withdraw(me *call[T]) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	at := slices.Index(g.waiting, me)
	if at >= 0 {
		g.waiting = slices.Delete(g.waiting, at, at+1)
	}
	return at >= 0
}

// lead runs the call and those that wait, and passes the lane on.
func (g *group[T]) lead(ctx context.Context, me *call[T]) {
	g.mu.Lock()
	all := append([]*call[T]{me}, g.waiting[:min(len(g.waiting), g.most-1)]...)
	g.waiting = slices.Delete(g.waiting, 0, len(all)-1)
	g.mu.Unlock()
	err := errNotRun
	defer func() {
		g.pass()
		for _, c := range all {
			if c.err = err; c != me {
				c.turn <- false
			}
		}
	}()
	calls := make([]T, len(all))
	for i, c := range all {
		calls[i] = c.of
	}
	err = g.run(ctx, calls)
}

func (g *group[T]) pass() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.waiting) == 0 {
		g.running--
		return
	}
	next := g.waiting[0]
	g.waiting = slices.Delete(g.waiting, 0, 1)
	next.turn <- true
}
