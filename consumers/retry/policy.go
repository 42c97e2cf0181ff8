package retry

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"
)

// Policy says how often and how late a failed event is tried again. The zero Policy is the default one.
type Policy struct {
	// Rungs are the delays of the retry topics, rising: after the n-th failure an event waits on rung n,
	// later on the last one. nil means 1s, 10s, 1m, 10m.
	Rungs []time.Duration
	// MaxAttempts is how many tries an event gets, the first included, before it is dead; 0 means 10.
	MaxAttempts int
	// MaxAge bounds the time from the first failure to the last try; 0 means 24 h.
	MaxAge time.Duration
	// Unordered lets later events of a key overtake one that waits. The default holds them back.
	Unordered bool
	// HoldDead has a dead letter hold its key until it is redriven or discarded: its followers wait. The default
	// lets them go on. An Unordered policy has no followers.
	HoldDead bool
}

var defaultRungs = []time.Duration{time.Second, 10 * time.Second, time.Minute, 10 * time.Minute}

func (p Policy) rungs() []time.Duration {
	if len(p.Rungs) == 0 {
		return defaultRungs
	}
	return p.Rungs
}

// Validate returns why the policy cannot be followed.
func (p Policy) Validate() error {
	for i, rung := range p.Rungs {
		if rung <= 0 || (i > 0 && rung <= p.Rungs[i-1]) {
			return errors.New("retry rungs must be positive and rise")
		}
	}
	if p.MaxAttempts < 0 || p.MaxAge < 0 {
		return errors.New("retry bounds must not be negative")
	}
	if p.Unordered && p.HoldDead {
		return errors.New("without order a dead letter has no followers to hold")
	}
	return nil
}

// Exhausted reports whether an event that has failed attempts times, first at firstFailure, is dead.
func (p Policy) Exhausted(attempts int, firstFailure, now time.Time) bool {
	limit := p.MaxAttempts
	if limit == 0 {
		limit = 10
	}
	return attempts >= limit || now.Sub(firstFailure) > p.Age()
}

// Age returns how long after its first failure an event is tried again.
func (p Policy) Age() time.Duration {
	if p.MaxAge == 0 {
		return 24 * time.Hour
	}
	return p.MaxAge
}

// rung returns the rung of an event that has failed attempts times: 1 is the first.
func (p Policy) rung(attempts int) time.Duration {
	rungs := p.rungs()
	return rungs[min(max(attempts, 1), len(rungs))-1]
}

// delay returns how long an event waits on the rung: full jitter, so that what failed together does not
// come back together, and never less than least.
func (p Policy) delay(attempts int, least time.Duration) time.Duration {
	return max(least, time.Duration(rand.Int64N(int64(p.rung(attempts))))+time.Millisecond)
}

// Topics returns the topics that a group needs beside topic: the rungs', and the dead letters' last.
func Topics(topic, group string, p Policy) []string {
	var names []string
	for _, rung := range p.rungs() {
		names = append(names, rungTopic(topic, group, rung))
	}
	return append(names, deadTopic(topic, group))
}

// WakeTopics returns the retry topics alone.
func WakeTopics(topic, group string, p Policy) []string {
	names := Topics(topic, group, p)
	return names[:len(names)-1]
}

func rungTopic(topic, group string, rung time.Duration) string {
	return fmt.Sprintf("%s.%s.retry.%s", topic, group, rungName(rung))
}

func deadTopic(topic, group string) string { return fmt.Sprintf("%s.%s.dlq", topic, group) }

// rungName writes a delay in the largest unit that holds it whole: 1s, 10m, 250ms.
func rungName(d time.Duration) string {
	for _, unit := range []struct {
		size time.Duration
		name string
	}{{time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}, {time.Millisecond, "ms"}} {
		if d%unit.size == 0 {
			return strconv.FormatInt(int64(d/unit.size), 10) + unit.name
		}
	}
	return d.String()
}

// RungName returns the name of the rung on which an event waits that has failed attempts times.
func (p Policy) RungName(attempts int) string { return rungName(p.rung(attempts)) }

// RungNames returns the names of the rungs, the shortest delay first.
func (p Policy) RungNames() []string {
	var names []string
	for _, rung := range p.rungs() {
		names = append(names, rungName(rung))
	}
	return names
}
