package group

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"converge/consumers/retry"
)

// Guard tells a bad deploy from bad events. When the events of many keys fail within a short time, and more
// than are applied, the handler is at fault, or whoever emits: the group stops in front of them and says so
// ([Group.Ready], converge_consumer_guard_tripped), instead of sending every event it meets to the dead
// letters. No attempt is counted. It looks again every few seconds, and goes on when most events are applied,
// or when so few keep failing that they can be bad events.
//
// The zero Guard is the default.
type Guard struct {
	// Keys is how many keys must fail. 0 means 50; less than 0 means that there is no guard.
	Keys int
	// Window is how long a failure counts. 0 means 1 min.
	Window time.Duration
}

const (
	guardKeys   = 50
	guardWindow = time.Minute
	// guardSlots divide the window for counting what was applied.
	guardSlots = 12
)

// ErrGuard is why a group is not ready that its [Guard] has stopped.
var ErrGuard = errors.New("the events of many keys fail: is it a bad deploy?")

// guardError stops a transaction that would blame events. It counts as an outage.
type guardError struct {
	keys, applied int
	window        time.Duration
	last          error
}

func (e *guardError) Error() string {
	return fmt.Sprintf("%v %d keys failed and %d events were applied within %v; last: %v", ErrGuard, e.keys, e.applied, e.window, e.last)
}
func (e *guardError) Unwrap() error      { return ErrGuard }
func (*guardError) Infrastructure() bool { return true }

// guard is a Guard at work. It is safe for concurrent use.
type guard struct {
	keys   int
	window time.Duration

	mu      sync.Mutex
	failed  map[string]time.Time // key → when an event of it failed last
	applied [guardSlots]slot
}

// slot counts the events applied in one part of the window.
type slot struct {
	turn   int64
	events int
}

func newGuard(cfg Guard) *guard {
	g := &guard{keys: cfg.Keys, window: cfg.Window, failed: map[string]time.Time{}}
	if g.keys == 0 {
		g.keys = guardKeys
	}
	if g.window == 0 {
		g.window = guardWindow
	}
	return g
}

// admit notes what a transaction did, before it is committed. An error means that it must not be: it would
// blame events of which there are too many.
func (g *guard) admit(now time.Time, applied int, keyOf func(retry.Failure) string, failures ...retry.Failure) error {
	if g.keys < 0 {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	turn := now.UnixNano() / int64(g.window/guardSlots)
	var last error
	for _, f := range failures {
		if errors.Is(f.Err, errNoType) || errors.Is(f.Err, errForgotten) {
			continue // no handler was asked
		}
		g.failed[keyOf(f)] = now
		last = f.Err
	}
	if last != nil && len(g.failed) >= g.keys {
		before := 0
		for _, s := range g.applied {
			if turn-s.turn < guardSlots {
				before += s.events
			}
		}
		for key, at := range g.failed {
			if now.Sub(at) > g.window {
				delete(g.failed, key)
			}
		}
		if len(g.failed) >= g.keys && len(g.failed) > before+applied {
			return &guardError{len(g.failed), before + applied, g.window, last}
		}
	}
	s := &g.applied[turn%guardSlots]
	if s.turn != turn {
		*s = slot{turn: turn}
	}
	s.events += applied
	return nil
}
