package group

import (
	"time"

	"converge/consumers/event"
)

// ripening is the event that a partition waits for.
type ripening struct {
	offset int64
	until  time.Time
}

// ripeStep is how long a partition with a Delay is left alone at least, while its events ripen one by one.
const ripeStep = 50 * time.Millisecond

// ripe returns how many of a partition's events are old enough to be applied. When the next one is not, the
// partition is paused until it is, or a little longer. The pause is forgotten with the partition: who gets it next
// finds the same in the events.
func (g *Group) ripe(p partition, events []*event.Event) int {
	if g.cfg.Delay == 0 {
		return len(events)
	}
	now := time.Now()
	for i, e := range events {
		if until := g.ripeAt(p, e, now); until.After(now) {
			if step := now.Add(min(ripeStep, g.cfg.Delay)); until.Before(step) {
				until = step
			}
			g.pause(p, until)
			return i
		}
	}
	return len(events)
}

// ripeAt returns when an event may be applied, and remembers it: what comes from the future by its own clock would
// else be as far from it each time that it is read.
func (g *Group) ripeAt(p partition, e *event.Event, now time.Time) time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	if known, ok := g.ripens[p]; ok && known.offset == e.Offset {
		return known.until
	}
	until := ripe(e, now, g.cfg.Delay)
	if until.After(now) {
		g.ripens[p] = ripening{e.Offset, until}
	}
	return until
}

// ripe returns when an event that is seen now may be applied.
func ripe(e *event.Event, now time.Time, delay time.Duration) time.Time {
	at := e.CommittedAt
	if at.IsZero() {
		at = e.RecordedAt
	}
	if at.After(now) {
		at = now
	}
	return at.Add(delay)
}
