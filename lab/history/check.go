package history

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// The properties, as results name them.
const (
	PropertyLoss        = "zero loss"
	PropertyDuplicate   = "no duplicate effect"
	PropertyOrder       = "order"
	PropertyInvented    = "nothing invented"
	PropertyViews       = "final views equal"
	PropertyDeadLetters = "dead letters"
	PropertyUnaffected  = "others unaffected"
	PropertyConvergence = "convergence"
)

// Check judges the history. It is a pure function of it.
func Check(h *History) Report {
	e := index(h)
	results := []Result{
		e.checkLoss(), e.checkDuplicates(), e.checkOrder(), e.checkInvented(),
		e.checkViews(), e.checkDeadLetters(), e.checkUnaffected(), e.checkConvergence(),
	}
	return Report{Plan: h.Plan, Verdict: overall(results), Results: results, Numbers: e.numbers()}
}

// checkLoss: every acknowledged change is in every consumer's journal, applied or superseded, or is a
// planted poison in its dead letters.
func (e *evidence) checkLoss() Result {
	if why := cmp.Or(e.vacuous(), e.missing(e.each(SourceJournal)...), e.missing(SourceTopic)); why != "" {
		return unknown(PropertyLoss, why)
	}
	var found violations
	for _, service := range e.Plan.Services {
		for _, w := range e.acked {
			c := change{w.UserID, w.Version}
			if len(e.effects[service][c]) > 0 || e.poisoned(service, c) {
				continue
			}
			x := e.at(service, c, "")
			x.First, x.at = Moment{"acknowledged", w.AckedAt}, w.AckedAt
			x.What = fmt.Sprintf("version %d of %s was acknowledged and never took effect at %s", w.Version, w.UserID, service)
			x.Cause, x.Second = e.whyLost(service, c)
			x.During = e.during(service, w.AckedAt)
			found.add(x)
		}
	}
	return found.result(PropertyLoss, fmt.Sprintf("%d acknowledged changes × %d consumers", len(e.acked), len(e.Plan.Services)))
}

func (e *evidence) poisoned(service string, c change) bool {
	return slices.ContainsFunc(e.topic[c], func(r Record) bool {
		_, dead := e.dead[service][r.EventID]
		return dead && slices.Contains(e.Plan.Poisons, r.EventID)
	})
}

func (e *evidence) whyLost(service string, c change) (cause string, second Moment) {
	records := e.topic[c]
	if len(records) == 0 {
		return "it never reached the topic: no outbox row in the write's transaction, or the relay confirmed a position ahead of the broker's acknowledgement", Moment{}
	}
	second = Moment{"on the topic", records[0].At}
	if d, ok := e.dead[service][records[0].EventID]; ok {
		return "it was sent to the dead letters: " + d.Error, second
	}
	partition, offset := records[0].Partition, records[0].Offset
	for i := len(e.journal[service]) - 1; i >= 0; i-- {
		for _, r := range e.events[e.journal[service][i].EventID] {
			if r.Partition == partition && r.Offset > offset {
				return fmt.Sprintf("the consumer went past it (offset %d of the partition took effect): the offset was committed ahead of the effect, or the event was taken for a duplicate", r.Offset), second
			}
		}
	}
	return "the consumer had not read that far: it is stuck, or the observation ended too early", second
}

// checkDuplicates: one journal row per event and consumer, and no version that took effect twice under
// two ids. It is unknown when the topic holds no event twice, for then nothing was put to the test.
func (e *evidence) checkDuplicates() Result {
	if why := cmp.Or(e.vacuous(), e.missing(e.each(SourceJournal)...), e.missing(SourceTopic)); why != "" {
		return unknown(PropertyDuplicate, why)
	}
	var found violations
	for _, service := range e.Plan.Services {
		byEvent := map[string]Effect{}
		took := map[change]Effect{}
		for _, effect := range e.journal[service] {
			c := change{effect.UserID, effect.Version}
			if first, again := byEvent[effect.EventID]; again {
				found.add(e.twice(first, effect))
				continue
			}
			byEvent[effect.EventID] = effect
			if effect.Superseded {
				continue
			}
			if first, again := took[c]; again {
				x := e.twice(first, effect)
				x.Cause = "the same change was emitted under two event ids, " + first.EventID + " and " + effect.EventID + ", and each was applied: the consumer doesn't compare versions"
				found.add(x)
				continue
			}
			took[c] = effect
		}
	}
	again := e.deliveredAgain()
	if found.count == 0 && again == 0 {
		return unknown(PropertyDuplicate, "the topic holds no event twice: nothing was put to the test")
	}
	return found.result(PropertyDuplicate, fmt.Sprintf("%d effects of %d events, %d of which were delivered again", len(e.Effects), len(e.events), again))
}

func (e *evidence) twice(first, second Effect) Counterexample {
	x := e.at(second.Service, change{second.UserID, second.Version}, second.EventID)
	x.First, x.Second, x.at = Moment{"took effect", first.AppliedAt}, Moment{"took effect again", second.AppliedAt}, second.AppliedAt
	x.What = fmt.Sprintf("version %d of %s took effect twice at %s", second.Version, second.UserID, second.Service)
	x.During = e.during(second.Service, second.AppliedAt)
	records := e.events[second.EventID]
	if len(records) > 1 {
		x.Cause = fmt.Sprintf("the topic holds the event at offsets %d and %d, and each was applied: the inbox doesn't know the event, or isn't asked", records[0].Offset, records[1].Offset)
	} else {
		x.Cause = "the topic holds the event once, so it was read again: effect and position don't commit together, and the inbox doesn't know the event"
	}
	return x
}

func (e *evidence) deliveredAgain() int {
	again := 0
	for _, records := range e.events {
		again += len(records) - 1
	}
	return again
}

// checkOrder: per user, versions first appear on the topic in ascending order, and take effect in
// ascending order at each consumer; a row may be marked superseded only when a newer version had taken
// effect. With zero loss it follows that what took effect last is the highest acknowledged version.
func (e *evidence) checkOrder() Result {
	if why := cmp.Or(e.vacuous(), e.missing(e.each(SourceJournal)...), e.missing(SourceTopic)); why != "" {
		return unknown(PropertyOrder, why)
	}
	var found violations
	e.checkTopicOrder(&found)
	for _, service := range e.Plan.Services {
		newest := map[string]Effect{}
		journal := e.journal[service]
		for start := 0; start < len(journal); {
			end := start + 1
			for end < len(journal) && journal[end].AppliedAt.Equal(journal[start].AppliedAt) {
				end++
			}
			e.checkInstant(journal[start:end], newest, &found)
			start = end
		}
	}
	return found.result(PropertyOrder, fmt.Sprintf("%d users at %d consumers and on the topic", len(e.highest), len(e.Plan.Services)))
}

// checkInstant judges effects that became visible at once, and then counts them as seen.
func (e *evidence) checkInstant(effects []Effect, newest map[string]Effect, found *violations) {
	before := map[string]Effect{}
	for _, effect := range effects {
		before[effect.UserID] = newest[effect.UserID]
	}
	for _, effect := range effects {
		if old := before[effect.UserID]; !effect.Superseded && effect.Version < old.Version {
			x := e.at(effect.Service, change{effect.UserID, effect.Version}, effect.EventID)
			x.First, x.Second = Moment{fmt.Sprintf("version %d took effect", old.Version), old.AppliedAt}, Moment{fmt.Sprintf("version %d took effect", effect.Version), effect.AppliedAt}
			x.at, x.During = effect.AppliedAt, e.during(effect.Service, effect.AppliedAt)
			x.What = fmt.Sprintf("%s went back from version %d to %d at %s", effect.UserID, old.Version, effect.Version, effect.Service)
			x.Cause = "an older event was applied over a newer one: the update doesn't compare versions (… WHERE version < $1), or two workers share a key"
			found.add(x)
		}
		if !effect.Superseded && effect.Version > newest[effect.UserID].Version {
			newest[effect.UserID] = effect
		}
	}
	for _, effect := range effects {
		if effect.Superseded && newest[effect.UserID].Version < effect.Version {
			x := e.at(effect.Service, change{effect.UserID, effect.Version}, effect.EventID)
			x.First, x.at = Moment{"marked superseded", effect.AppliedAt}, effect.AppliedAt
			x.What = fmt.Sprintf("version %d of %s was marked superseded at %s, where nothing newer than version %d had taken effect", effect.Version, effect.UserID, effect.Service, newest[effect.UserID].Version)
			x.Cause = "the consumer gives up changes that it should apply"
			found.add(x)
		}
	}
}

func (e *evidence) checkTopicOrder(found *violations) {
	var firsts []Record
	for _, records := range e.topic {
		firsts = append(firsts, records[0])
	}
	slices.SortFunc(firsts, func(a, b Record) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
	})
	highest := map[string]Record{}
	for _, r := range firsts {
		old, ok := highest[r.UserID]
		switch {
		case ok && old.Partition != r.Partition:
			x := e.at(SourceTopic, change{r.UserID, r.Version}, r.EventID)
			x.What = fmt.Sprintf("%s has events in partitions %d and %d", r.UserID, old.Partition, r.Partition)
			x.Cause = "the record's key is not the user's id, or the topic's partitions were changed"
			x.at = r.At
			found.add(x)
		case ok && r.Version < old.Version:
			x := e.at(SourceTopic, change{r.UserID, r.Version}, r.EventID)
			x.First, x.Second, x.at = Moment{fmt.Sprintf("version %d on the topic", old.Version), old.At}, Moment{fmt.Sprintf("version %d on the topic", r.Version), r.At}, r.At
			x.What = fmt.Sprintf("version %d of %s came to the topic before version %d (offsets %d, %d)", old.Version, r.UserID, r.Version, old.Offset, r.Offset)
			x.Cause = "the relay didn't keep the order of commits"
			found.add(x)
		default:
			highest[r.UserID] = r
		}
	}
}

// checkInvented: what took effect was written, and its event is on the topic.
func (e *evidence) checkInvented() Result {
	if why := cmp.Or(e.vacuous(), e.missing(e.each(SourceJournal)...), e.missing(SourceTopic)); why != "" {
		return unknown(PropertyInvented, why)
	}
	var found violations
	for _, service := range e.Plan.Services {
		for _, effect := range e.journal[service] {
			c := change{effect.UserID, effect.Version}
			w, written := e.written[c]
			x := e.at(service, c, effect.EventID)
			x.First, x.at = Moment{"took effect", effect.AppliedAt}, effect.AppliedAt
			switch {
			case !written || w.Outcome == Failed:
				x.What = fmt.Sprintf("version %d of %s took effect at %s, and nobody wrote it", effect.Version, effect.UserID, service)
				x.Cause = "an event was emitted for a write that was refused or rolled back"
				found.add(x)
			case !slices.ContainsFunc(e.topic[c], func(r Record) bool { return r.EventID == effect.EventID }):
				x.What = fmt.Sprintf("version %d of %s took effect at %s under an event id that the topic doesn't have for it", effect.Version, effect.UserID, service)
				x.Cause = "the consumer mixes up events, or makes its own ids"
				found.add(x)
			}
		}
	}
	return found.result(PropertyInvented, fmt.Sprintf("%d effects, each with its write and its event", len(e.Effects)))
}

// checkViews: the source of truth and every consumer hold the same version and content of every user,
// which is at least the highest acknowledged version, and each consumer's is what its journal says.
func (e *evidence) checkViews() Result {
	services := append([]string{e.Plan.Truth}, e.Plan.Services...)
	var names []string
	for _, service := range services {
		names = append(names, SourceViews(service))
	}
	if why := cmp.Or(e.vacuous(), e.missing(names...)); why != "" {
		return unknown(PropertyViews, why)
	}
	views := map[string]map[string]View{}
	for _, v := range e.Views {
		if views[v.Service] == nil {
			views[v.Service] = map[string]View{}
		}
		views[v.Service][v.UserID] = v
	}
	var found violations
	for user, highest := range e.highest {
		truth := views[e.Plan.Truth][user]
		if truth.Version < highest {
			x := e.at(e.Plan.Truth, change{user, highest}, "")
			x.What = fmt.Sprintf("%s holds version %d of %s, and version %d was acknowledged", e.Plan.Truth, truth.Version, user, highest)
			x.Cause = "a write was acknowledged before it was durable"
			found.add(x)
		}
		for _, service := range e.Plan.Services {
			e.compareViews(truth, views[service][user], service, user, &found)
		}
	}
	return found.result(PropertyViews, fmt.Sprintf("%d users in %d services", len(e.highest), len(services)))
}

func (e *evidence) compareViews(truth, view View, service, user string, found *violations) {
	x := e.at(service, change{user, truth.Version}, "")
	switch {
	case view.Version != truth.Version:
		x.What = fmt.Sprintf("%s holds version %d of %s, %s version %d", service, view.Version, user, e.Plan.Truth, truth.Version)
		x.Cause = "an event was lost, or an older one was applied over it"
	case view.Content != truth.Content:
		x.What = fmt.Sprintf("%s and %s hold version %d of %s with different content", service, e.Plan.Truth, truth.Version, user)
		x.Cause = "the event doesn't carry what was written, or the consumer took only part of it"
	default:
		return
	}
	found.add(x)
}

// checkDeadLetters: exactly the planted poisons became dead letters, once each.
func (e *evidence) checkDeadLetters() Result {
	if why := cmp.Or(e.vacuous(), e.missing(e.each(SourceDeadLetters)...)); why != "" {
		return unknown(PropertyDeadLetters, why)
	}
	var found violations
	seen := map[string]map[string]DeadLetter{}
	for _, d := range e.DeadLetters {
		if seen[d.Service] == nil {
			seen[d.Service] = map[string]DeadLetter{}
		}
		first, again := seen[d.Service][d.EventID]
		seen[d.Service][d.EventID] = d
		x := e.at(d.Service, change{d.UserID, 0}, d.EventID)
		x.First, x.at, x.During = Moment{"dead letter", d.At}, d.At, e.during(d.Service, d.At)
		switch {
		case !slices.Contains(e.Plan.Poisons, d.EventID):
			x.What = fmt.Sprintf("a good event of %s became a dead letter of %s", d.UserID, d.Service)
			x.Cause = "an outage burned attempts, or a transient error was taken for a permanent one: " + d.Error
			found.add(x)
		case again:
			x.First = Moment{"dead letter", first.At}
			x.Second = Moment{"dead letter again", d.At}
			x.What = fmt.Sprintf("one event became a dead letter of %s twice", d.Service)
			x.Cause = "the dead letter and the position don't commit together"
			found.add(x)
		}
	}
	for _, service := range e.Plan.Services {
		for _, id := range e.Plan.Poisons {
			if _, dead := seen[service][id]; !dead {
				x := e.at(service, change{}, id)
				x.What = "a poison event didn't become a dead letter of " + service
				x.Cause = "it was dropped, or it is still tried"
				found.add(x)
			}
		}
	}
	return found.result(PropertyDeadLetters, fmt.Sprintf("%d dead letters, %d planted poisons", len(e.DeadLetters), len(e.Plan.Poisons)))
}

// checkUnaffected: while one consumer was down, every other one went on. An event that was
// acknowledged during the outage must have taken effect at each of the others before the outage ended,
// or within the plan's grace of its acknowledgement when that is later. Whoever waits for the consumer
// that is down cannot do that; a slow machine can.
func (e *evidence) checkUnaffected() Result {
	if why := cmp.Or(e.vacuous(), e.missing(e.each(SourceJournal)...)); why != "" {
		return unknown(PropertyUnaffected, why)
	}
	if e.Plan.ClockError > e.Plan.Grace/2 {
		return unknown(PropertyUnaffected, fmt.Sprintf("the clocks may differ by %v: times don't tell who waited for whom", e.Plan.ClockError))
	}
	var found violations
	tested := 0
	for _, fault := range e.Faults {
		if fault.Kind != Down {
			continue
		}
		for _, w := range e.acked {
			if w.AckedAt.Before(fault.From) || w.AckedAt.After(fault.To) {
				continue
			}
			deadline := fault.To
			if graced := w.AckedAt.Add(e.Plan.Grace); graced.After(deadline) {
				deadline = graced
			} else {
				tested++
			}
			e.checkWentOn(fault, w, deadline, &found)
		}
	}
	if tested == 0 && found.count == 0 {
		return unknown(PropertyUnaffected, fmt.Sprintf("no change was acknowledged during an outage, %v or more before its end", e.Plan.Grace))
	}
	return found.result(PropertyUnaffected, fmt.Sprintf("%d changes acknowledged during the outage had to take effect before its end", tested))
}

// checkWentOn leaves changes that never took effect to the check for loss.
func (e *evidence) checkWentOn(fault Fault, w Write, deadline time.Time, found *violations) {
	c := change{w.UserID, w.Version}
	for _, service := range e.Plan.Services {
		effects := e.effects[service][c]
		if service == fault.Service || len(effects) == 0 || !effects[0].AppliedAt.After(deadline) {
			continue
		}
		x := e.at(service, c, effects[0].EventID)
		x.First, x.Second = Moment{"acknowledged", w.AckedAt}, Moment{"took effect", effects[0].AppliedAt}
		x.at, x.During = w.AckedAt, fault.What
		x.What = fmt.Sprintf("version %d of %s reached %s only after the outage of %s", w.Version, w.UserID, service, fault.Service)
		x.Cause = fmt.Sprintf("%s waits for %s: they share a consumer group, a connection pool or a lock, or the relay waited", service, fault.Service)
		found.add(x)
	}
}

// checkConvergence: whoever was down had nothing left to read within the plan's bound of its start.
func (e *evidence) checkConvergence() Result {
	if why := e.vacuous(); why != "" {
		return unknown(PropertyConvergence, why)
	}
	var found violations
	outages := 0
	for _, fault := range e.Faults {
		if fault.Kind != Down {
			continue
		}
		outages++
		took := fault.CaughtUp.Sub(fault.To)
		if !fault.CaughtUp.IsZero() && took <= e.Plan.CatchUpBound {
			continue
		}
		x := Counterexample{Service: fault.Service, Partition: -1, Offset: -1, First: Moment{"started again", fault.To}, at: fault.To, During: fault.What}
		x.What = fmt.Sprintf("%s still had %d events to read %v after its start", fault.Service, fault.Left, e.Plan.CatchUpBound)
		if !fault.CaughtUp.IsZero() {
			x.Second = Moment{"caught up", fault.CaughtUp}
			x.What = fmt.Sprintf("%s needed %v to catch up; the bound is %v", fault.Service, took.Round(time.Millisecond), e.Plan.CatchUpBound)
		}
		x.Cause = "it is stuck on an event or not assigned to a partition, or it is slower than the events come"
		found.add(x)
	}
	if outages == 0 {
		return unknown(PropertyConvergence, "no consumer was down: nothing was put to the test")
	}
	return found.result(PropertyConvergence, fmt.Sprintf("lag 0 within %v of the start", e.Plan.CatchUpBound))
}
