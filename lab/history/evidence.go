package history

import (
	"cmp"
	"slices"
	"time"
)

// change names one version of one user's profile.
type change struct {
	user    string
	version int64
}

// evidence is a history, indexed for the checks.
type evidence struct {
	*History
	acked   []Write // sorted by AckedAt
	written map[change]Write
	topic   map[change][]Record // in order of offset
	events  map[string][]Record // by event id, in order of offset
	// journal holds each service's effects in the order in which they were applied. Effects of one
	// instant come from one transaction, inside which nobody can see an order: they stand by version.
	journal map[string][]Effect
	effects map[string]map[change][]Effect
	dead    map[string]map[string]DeadLetter // service, event id
	highest map[string]int64                 // acknowledged, by user
}

func index(h *History) *evidence {
	e := &evidence{
		History: h,
		written: map[change]Write{},
		topic:   map[change][]Record{},
		events:  map[string][]Record{},
		journal: map[string][]Effect{},
		effects: map[string]map[change][]Effect{},
		dead:    map[string]map[string]DeadLetter{},
		highest: map[string]int64{},
	}
	e.indexWrites()
	records := slices.SortedFunc(slices.Values(h.Records), func(a, b Record) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
	})
	for _, r := range records {
		c := change{r.UserID, r.Version}
		e.topic[c] = append(e.topic[c], r)
		e.events[r.EventID] = append(e.events[r.EventID], r)
	}
	effects := slices.SortedStableFunc(slices.Values(h.Effects), func(a, b Effect) int {
		return cmp.Or(a.AppliedAt.Compare(b.AppliedAt), cmp.Compare(a.Version, b.Version))
	})
	for _, effect := range effects {
		if e.effects[effect.Service] == nil {
			e.effects[effect.Service] = map[change][]Effect{}
		}
		c := change{effect.UserID, effect.Version}
		e.journal[effect.Service] = append(e.journal[effect.Service], effect)
		e.effects[effect.Service][c] = append(e.effects[effect.Service][c], effect)
	}
	for _, d := range h.DeadLetters {
		if e.dead[d.Service] == nil {
			e.dead[d.Service] = map[string]DeadLetter{}
		}
		e.dead[d.Service][d.EventID] = d
	}
	return e
}

func (e *evidence) indexWrites() {
	for _, w := range e.Writes {
		c := change{w.UserID, w.Version}
		// An acknowledgement outweighs what an earlier try for the same version learned, and an
		// unknown outcome a refusal: it may have happened.
		if old, ok := e.written[c]; !ok || weight(w.Outcome) > weight(old.Outcome) {
			e.written[c] = w
		}
		if w.Outcome == OK {
			e.highest[w.UserID] = max(e.highest[w.UserID], w.Version)
		}
	}
	for _, w := range e.written {
		if w.Outcome == OK {
			e.acked = append(e.acked, w)
		}
	}
	slices.SortFunc(e.acked, func(a, b Write) int {
		return cmp.Or(a.AckedAt.Compare(b.AckedAt), cmp.Compare(a.UserID, b.UserID), cmp.Compare(a.Version, b.Version))
	})
}

func weight(o Outcome) int {
	switch o {
	case OK:
		return 2
	case Unknown:
		return 1
	default:
		return 0
	}
}

// missing says why the evidence from the sources named cannot be used, "" when it can.
func (e *evidence) missing(names ...string) string {
	for _, name := range names {
		i := slices.IndexFunc(e.Sources, func(s Source) bool { return s.Name == name })
		if i < 0 {
			return "the " + name + " was never read"
		}
		if e.Sources[i].Err != "" {
			return "the " + name + " could not be read: " + e.Sources[i].Err
		}
	}
	return ""
}

// journals returns the names of every consumer's journal source.
func (e *evidence) each(source func(service string) string) []string {
	var names []string
	for _, service := range e.Plan.Services {
		names = append(names, source(service))
	}
	return names
}

// vacuous says why no property about effects can be judged, "" when they can.
func (e *evidence) vacuous() string {
	switch {
	case len(e.Plan.Services) == 0:
		return "no consumer was to be checked"
	case len(e.acked) == 0:
		return "no write was acknowledged"
	case len(e.Effects) == 0:
		return "no effect was read at any service"
	}
	return ""
}

// at starts a counterexample for the change, with its place on the topic.
func (e *evidence) at(service string, c change, eventID string) Counterexample {
	found := Counterexample{Service: service, UserID: c.user, Version: c.version, EventID: eventID, Partition: -1, Offset: -1}
	records := e.events[eventID]
	if eventID == "" {
		records = e.topic[c]
	}
	if len(records) > 0 {
		found.EventID, found.Partition, found.Offset = records[0].EventID, records[0].Partition, records[0].Offset
	}
	return found
}

// during names the fault that was on at the time, for the service or for everybody.
func (e *evidence) during(service string, t time.Time) string {
	for _, f := range e.Faults {
		end := f.To
		if f.CaughtUp.After(end) {
			end = f.CaughtUp
		}
		if f.Kind != Resend && (f.Service == service || !slices.Contains(e.Plan.Services, f.Service)) && !t.Before(f.From) && !t.After(end) {
			return f.What
		}
	}
	return ""
}

// committed returns when the change was committed: what the relay says, which cannot be later than the
// acknowledgement; the acknowledgement when the relay says nothing.
func (e *evidence) committed(c change) (time.Time, bool) {
	w, known := e.written[c]
	for _, r := range e.topic[c] {
		if !r.CommittedAt.IsZero() && (!known || w.Outcome != OK || r.CommittedAt.Before(w.AckedAt)) {
			return r.CommittedAt, true
		}
	}
	return w.AckedAt, known && w.Outcome == OK
}

// violations collects counterexamples of one property and keeps the smallest.
type violations struct {
	count    int
	smallest *Counterexample
}

func (v *violations) add(c Counterexample) {
	v.count++
	if v.smallest == nil || smaller(&c, v.smallest) {
		v.smallest = &c
	}
}

// smaller orders counterexamples: the shortest story (fewest versions of the user before it) first,
// then the earliest.
func smaller(a, b *Counterexample) bool {
	return cmp.Or(cmp.Compare(a.Version, b.Version), a.at.Compare(b.at),
		cmp.Compare(a.UserID, b.UserID), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Offset, b.Offset)) < 0
}

func (v *violations) result(property, detail string) Result {
	if v.count > 0 {
		return Result{Property: property, Verdict: FAIL, Detail: detail, Violations: v.count, Counterexample: v.smallest}
	}
	return Result{Property: property, Verdict: PASS, Detail: detail}
}

func unknown(property, why string) Result {
	return Result{Property: property, Verdict: UNKNOWN, Detail: why}
}
