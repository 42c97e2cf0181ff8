package history

import (
	"time"
)

// numbers counts and measures; it judges nothing.
func (e *evidence) numbers() Numbers {
	n := Numbers{Acked: len(e.acked), Users: len(e.highest), Records: len(e.Records), DeliveredAgain: e.deliveredAgain()}
	for _, w := range e.written {
		switch w.Outcome {
		case Unknown:
			n.UnknownWrites++
		case Failed:
			n.FailedWrites++
		}
	}
	for _, service := range e.Plan.Services {
		n.Services = append(n.Services, e.measure(service))
	}
	for _, fault := range e.Faults {
		if fault.Kind == Down {
			n.CatchUps = append(n.CatchUps, e.catchUp(fault))
		}
	}
	if len(e.acked) > 0 {
		var last time.Time
		for _, effect := range e.Effects {
			if !effect.Superseded && effect.AppliedAt.After(last) {
				last = effect.AppliedAt
			}
		}
		n.Consistent = max(0, last.Sub(e.acked[len(e.acked)-1].AckedAt))
	}
	return n
}

func (e *evidence) measure(service string) ServiceNumbers {
	var all, up, outage []time.Duration
	for c, effects := range e.effects[service] {
		committed, ok := e.committed(c)
		if !ok {
			continue
		}
		took := max(0, effects[0].AppliedAt.Sub(committed))
		all = append(all, took)
		switch before, after := e.phase(service, committed), e.phase(service, effects[0].AppliedAt); {
		case before == Down:
			outage = append(outage, took)
		case before == "" && after == "": // not one that the outage caught on its way
			up = append(up, took)
		}
	}
	return ServiceNumbers{Service: service, Effects: len(e.journal[service]),
		All: latencyOf(all), Up: latencyOf(up), Outage: latencyOf(outage)}
}

// phase says what the service was going through: Down, Crash (somebody restarted, or it was catching
// up), or "" for ordinary life.
func (e *evidence) phase(service string, t time.Time) FaultKind {
	for _, f := range e.Faults {
		if f.Kind != Down || f.Service != service || t.Before(f.From) {
			continue
		}
		if !t.After(f.To) {
			return Down
		}
		if f.CaughtUp.IsZero() || !t.After(f.CaughtUp) {
			return Crash
		}
	}
	return ""
}

func (e *evidence) catchUp(fault Fault) CatchUp {
	c := CatchUp{Service: fault.Service, Outage: fault.To.Sub(fault.From)}
	if !fault.CaughtUp.IsZero() {
		c.Took = fault.CaughtUp.Sub(fault.To)
	}
	for _, w := range e.acked {
		if !w.AckedAt.Before(fault.From) && !w.AckedAt.After(fault.To) {
			c.Backlog++
		}
	}
	return c
}
