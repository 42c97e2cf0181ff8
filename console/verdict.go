package console

import "time"

// Verdict is the state of one group on one partition, after Burrow's rules. It is judged by what the
// committed offset does while there is something to read; a partition with nothing to read is OK however
// old its last commit is.
type Verdict string

const (
	// Unknown: there is no committed offset, no end offset, or no measurement.
	Unknown Verdict = "UNKNOWN"
	// OK: nothing to read, or what waits is young.
	OK Verdict = "OK"
	// Lagging: the group makes progress, and is behind by more than [Limits].Behind.
	Lagging Verdict = "LAGGING"
	// Stalled: a member owns the partition, records wait, and the commit does not move.
	Stalled Verdict = "STALLED"
	// Stopped: nobody owns the partition, records wait, and the commit does not move.
	Stopped Verdict = "STOPPED"
	// Rewound: the committed offset went backwards and is not yet back where it was.
	Rewound Verdict = "REWOUND"
)

// Verdicts lists every verdict, best first; Unknown stands apart, before them.
func Verdicts() []Verdict { return []Verdict{Unknown, OK, Lagging, Rewound, Stalled, Stopped} }

// worse reports whether v calls for attention before w.
func (v Verdict) worse(w Verdict) bool { return v.rank() > w.rank() }

func (v Verdict) rank() int {
	for i, known := range Verdicts() {
		if v == known {
			return i
		}
	}
	return 0
}

// Limits says when waiting becomes worth a word.
type Limits struct {
	// Behind is the age of the oldest unread record from which a moving group is LAGGING.
	Behind time.Duration
	// Patience is how long a commit may stand still before records that wait: past it the partition is
	// STALLED or STOPPED. It must exceed a rebalance and the interval between commits.
	Patience time.Duration
}

// limitsFor returns the limits of a topic. On a retry topic waiting is the point: its delay is added.
func limitsFor(delay time.Duration) Limits {
	return Limits{Behind: delay + 2*time.Second, Patience: delay + 10*time.Second}
}

// rewoundFor is how long a rewound partition whose commit stands still is called REWOUND before it is
// called STALLED or STOPPED like any other.
const rewoundFor = time.Minute

// observation is one look at one group on one partition.
type observation struct {
	at        time.Time
	committed int64   // offset of the next record to read; -1 when there is no commit
	lag       int64   // records not yet read; -1 when unknown
	seconds   float64 // age of the oldest unread record; negative when unknown
	owned     bool    // a member of the group is assigned the partition
}

// progress is what the observations of one partition add up to. The zero progress has seen nothing.
type progress struct {
	last    observation
	seen    bool
	movedAt time.Time // when the commit last moved, or when watching began
	clearAt time.Time // when there was last nothing to read; zero when never

	// high is the commit to be regained after a rewind. Invariant: high > last.committed while rewound.
	high      int64
	rewoundAt time.Time
	rewound   bool
}

// observe takes in the next look. Looks come in time order. Time in which nobody looked is not held
// against the group: after a gap longer than the patience, the wait begins anew.
func (p *progress) observe(o observation, limits Limits) {
	if !p.seen || o.at.Sub(p.last.at) > limits.Patience {
		p.movedAt = o.at
	}
	if p.seen && o.committed != p.last.committed {
		p.movedAt = o.at
		if o.committed < p.last.committed {
			p.high, p.rewoundAt, p.rewound = max(p.high, p.last.committed), o.at, true
		}
	}
	if o.lag == 0 {
		p.clearAt = o.at
	}
	// A commit that was deleted is no rewind: the group begins anew.
	if o.lag == 0 || o.committed < 0 || o.committed >= p.high {
		p.high, p.rewound = 0, false
	}
	p.last, p.seen = o, true
}

// verdict judges the partition as of the last observation.
func (p *progress) verdict(limits Limits) Verdict {
	o := p.last
	if !p.seen || o.lag < 0 {
		return Unknown
	}
	if o.lag == 0 {
		return OK
	}
	still := o.at.Sub(p.movedAt)
	if waiting := o.at.Sub(p.clearAt); waiting < still {
		still = waiting
	}
	patient := still < limits.Patience
	switch {
	case p.rewound && (patient || o.at.Sub(p.rewoundAt) < rewoundFor):
		return Rewound
	case !patient && o.owned:
		return Stalled
	case !patient:
		return Stopped
	case o.seconds >= limits.Behind.Seconds():
		return Lagging
	case o.seconds < 0 && o.at.Sub(p.clearAt) >= limits.Patience:
		return Lagging
	default:
		return OK
	}
}
