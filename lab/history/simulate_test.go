package history

import (
	"fmt"
	"slices"
	"time"

	"pgregory.net/rapid"
)

// The simulation below is a pipeline that keeps every promise, however its machines and its network
// behave: whatever it draws, Check must say PASS. It shares nothing with Check but the record types.

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const tick = 100 * time.Millisecond

type simulation struct {
	t     *rapid.T
	h     *History
	from  time.Time // analytics is down
	to    time.Time
	next  [2]int64 // offsets of the two partitions
	times map[string]time.Time
}

func goodHistory(t *rapid.T) *History {
	s := &simulation{t: t, times: map[string]time.Time{}, h: &History{Plan: Plan{
		Name: "simulated", Truth: "identity", Services: []string{"billing", "analytics"},
		Grace: 3 * tick, CatchUpBound: time.Minute,
	}}}
	writes := rapid.IntRange(20, 60).Draw(t, "writes")
	s.from = start.Add(time.Duration(rapid.IntRange(1, 8).Draw(t, "down after")) * tick)
	s.to = s.from.Add(time.Duration(rapid.IntRange(6, 10).Draw(t, "down for")) * tick)
	s.write(writes)
	s.publish()
	s.consume("billing", func(at time.Time) time.Time { return at })
	s.consume("analytics", func(at time.Time) time.Time {
		if at.After(s.from) && at.Before(s.to) {
			return s.to.Add(at.Sub(s.from)) // in order, after it came back
		}
		if !at.Before(s.to) {
			return at.Add(s.to.Sub(s.from))
		}
		return at
	})
	s.h.Faults = append(s.h.Faults,
		Fault{Kind: Down, Service: "analytics", What: "analytics down", From: s.from, To: s.to, CaughtUp: s.to.Add(20 * tick)},
		Fault{Kind: Resend, What: "records sent again", From: start, To: s.to})
	s.look()
	for _, name := range []string{SourceTopic, "journal billing", "journal analytics", "views identity", "views billing", "views analytics", "dead letters billing", "dead letters analytics"} {
		s.h.Sources = append(s.h.Sources, Source{Name: name})
	}
	return s.h
}

func (s *simulation) write(n int) {
	versions := map[string]int64{}
	users := rapid.IntRange(1, 5).Draw(s.t, "users")
	for i := range n {
		user := fmt.Sprintf("u-%d", rapid.IntRange(1, users).Draw(s.t, "user"))
		sent := start.Add(time.Duration(i) * tick)
		w := Write{UserID: user, Version: versions[user] + 1, SentAt: sent, Outcome: OK, AckedAt: sent.Add(3 * time.Millisecond)}
		happened := true
		outcome := 2
		if i%3 > 0 { // a third is well, so that every part of the run has something to judge
			outcome = rapid.IntRange(0, 9).Draw(s.t, "outcome")
		}
		switch outcome {
		case 0: // no answer; the next writer looks whether it happened
			w.Outcome, w.AckedAt = Unknown, time.Time{}
			happened = rapid.Bool().Draw(s.t, "happened")
		case 1: // refused
			w.Outcome, w.AckedAt, happened = Failed, time.Time{}, false
		}
		if happened {
			versions[user]++
			s.times[fmt.Sprint(user, w.Version)] = sent.Add(time.Millisecond)
		}
		s.h.Writes = append(s.h.Writes, w)
	}
}

// publish puts every write that happened on the topic, and some records again later, in batches as a
// relay that starts again does.
func (s *simulation) publish() {
	batch := 1 + rapid.IntRange(0, 5).Draw(s.t, "batch")
	for i, w := range s.h.Writes {
		committed, happened := s.times[fmt.Sprint(w.UserID, w.Version)]
		if happened && !slices.ContainsFunc(s.h.Records, func(r Record) bool { return r.UserID == w.UserID && r.Version == w.Version }) {
			s.produce(Record{EventID: fmt.Sprintf("e-%d", i), UserID: w.UserID, Version: w.Version, CommittedAt: committed, At: committed.Add(2 * time.Millisecond)})
		}
		if i%10 == 9 {
			for _, r := range slices.Clone(s.h.Records[max(0, len(s.h.Records)-batch):]) {
				r.At = w.SentAt.Add(5 * time.Millisecond)
				s.produce(r)
			}
		}
	}
}

func (s *simulation) produce(r Record) {
	r.Partition = int32(r.UserID[2]) % 2
	r.Offset = s.next[r.Partition]
	s.next[r.Partition] += 1 + int64(rapid.IntRange(0, 1).Draw(s.t, "gap")) // transactions leave gaps
	s.h.Records = append(s.h.Records, r)
}

// consume applies each event once. Some events are tried later than their successors, as a ladder
// without held keys does: then they find a newer version and are superseded.
func (s *simulation) consume(service string, when func(time.Time) time.Time) {
	type delivery struct {
		Record
		at time.Time
	}
	var deliveries []delivery
	for _, r := range s.h.Records {
		d := delivery{r, when(r.At)}
		if rapid.IntRange(0, 7).Draw(s.t, "retried") == 0 {
			d.at = d.at.Add(2 * tick)
		}
		if rapid.IntRange(0, 3).Draw(s.t, "batched") == 0 {
			d.at = d.at.Truncate(tick).Add(tick) // several take effect in one transaction
		}
		deliveries = append(deliveries, d)
	}
	slices.SortStableFunc(deliveries, func(a, b delivery) int { return a.at.Compare(b.at) })
	seen, version := map[string]bool{}, map[string]int64{}
	for _, d := range deliveries {
		if seen[d.EventID] {
			continue
		}
		seen[d.EventID] = true
		s.h.Effects = append(s.h.Effects, Effect{Service: service, EventID: d.EventID, UserID: d.UserID,
			Version: d.Version, Superseded: d.Version < version[d.UserID], AppliedAt: d.at})
		version[d.UserID] = max(version[d.UserID], d.Version)
	}
}

func (s *simulation) look() {
	last := map[string]int64{}
	for _, r := range s.h.Records {
		last[r.UserID] = max(last[r.UserID], r.Version)
	}
	for user, version := range last {
		for _, service := range []string{"identity", "billing", "analytics"} {
			s.h.Views = append(s.h.Views, View{Service: service, UserID: user, Version: version, Content: fmt.Sprintf("content %d", version)})
		}
	}
	slices.SortFunc(s.h.Views, func(a, b View) int {
		return slices.Compare([]string{a.UserID, a.Service}, []string{b.UserID, b.Service})
	})
}
