package history

import (
	"fmt"
	"slices"
	"time"
)

// Verdict is how a judgement ends.
type Verdict string

const (
	PASS    Verdict = "PASS"
	FAIL    Verdict = "FAIL"
	UNKNOWN Verdict = "UNKNOWN" // the evidence is missing, or nothing was put to the test
)

// ExitCode is what a command that ends in the verdict exits with: 0, 1, 2.
func (v Verdict) ExitCode() int {
	switch v {
	case PASS:
		return 0
	case FAIL:
		return 1
	default:
		return 2
	}
}

// NotPassed is the error of a command whose verdict is not PASS. The command has already told the user
// everything: whoever gets it exits with the code and prints nothing more.
type NotPassed struct {
	Verdict Verdict
	Report  string // the directory that holds the history
}

// Error says the verdict and where its history is.
func (e *NotPassed) Error() string {
	return fmt.Sprintf("verdict %s, history in %s", e.Verdict, e.Report)
}

// ExitCode is the verdict's.
func (e *NotPassed) ExitCode() int { return e.Verdict.ExitCode() }

// Result is the judgement of one property.
type Result struct {
	Property string  `json:"property"`
	Verdict  Verdict `json:"verdict"`
	// Detail says what was counted, or why it is unknown.
	Detail string `json:"detail"`
	// Violations is how many counterexamples there are; Counterexample is the smallest. FAIL only.
	Violations     int             `json:"violations,omitempty"`
	Counterexample *Counterexample `json:"counterexample,omitempty"`
}

// Counterexample is one event that breaks a property, with what is known of it. Members that do not
// apply are zero; Partition and Offset are -1 when the event was not found on the topic.
type Counterexample struct {
	Service   string    `json:"service"`
	UserID    string    `json:"user_id"`
	EventID   string    `json:"event_id,omitempty"`
	Version   int64     `json:"version"`
	Partition int32     `json:"partition"`
	Offset    int64     `json:"offset"`
	First     Moment    `json:"first,omitzero"`
	Second    Moment    `json:"second,omitzero"`
	What      string    `json:"what"`
	Cause     string    `json:"likely_cause"`
	During    string    `json:"during,omitempty"` // the fault that was on at that time
	at        time.Time // orders counterexamples
}

// Moment is a time with what happened then.
type Moment struct {
	What string    `json:"what"`
	At   time.Time `json:"at"`
}

// Latency is a distribution of times from the commit of an event to its effect.
type Latency struct {
	Count int           `json:"count"`
	P50   time.Duration `json:"p50_ns"`
	P95   time.Duration `json:"p95_ns"`
	Max   time.Duration `json:"max_ns"`
}

// latencyOf sorts the samples. Percentiles are exact: the smallest sample that is at least as large as
// that share of all (nearest rank).
func latencyOf(samples []time.Duration) Latency {
	if len(samples) == 0 {
		return Latency{}
	}
	slices.Sort(samples)
	rank := func(percent int) time.Duration { return samples[(len(samples)*percent+99)/100-1] }
	return Latency{len(samples), rank(50), rank(95), samples[len(samples)-1]}
}

// ServiceNumbers is what was measured of one consumer.
type ServiceNumbers struct {
	Service string `json:"service"`
	Effects int    `json:"effects"`
	// All counts every event's first effect; Up those committed and effected while the service was neither
	// down nor catching up; Outage those committed while it was down.
	All    Latency `json:"all"`
	Up     Latency `json:"up"`
	Outage Latency `json:"outage"`
}

// CatchUp is how one service came back from an outage.
type CatchUp struct {
	Service string        `json:"service"`
	Outage  time.Duration `json:"outage_ns"`
	Backlog int           `json:"backlog"` // events acknowledged meanwhile
	Took    time.Duration `json:"took_ns"` // from its start to lag 0; 0 when that never came about
}

// Numbers is what was counted and measured.
type Numbers struct {
	Acked          int `json:"acked"`
	UnknownWrites  int `json:"unknown_writes"`
	FailedWrites   int `json:"failed_writes"`
	Users          int `json:"users"`
	Records        int `json:"records"`
	DeliveredAgain int `json:"delivered_again"` // records whose event the topic already held

	Services []ServiceNumbers `json:"services"`
	CatchUps []CatchUp        `json:"catch_ups"`
	// Consistent is the time from the last acknowledged write to the last effect at any service, 0 when
	// everything had taken effect by then.
	Consistent time.Duration `json:"time_to_consistency_ns"`
}

// Report is the whole judgement.
type Report struct {
	Plan    Plan     `json:"plan"`
	Verdict Verdict  `json:"verdict"`
	Results []Result `json:"results"`
	Numbers Numbers  `json:"numbers"`
}

// Result returns the judgement of the property, the zero Result when it was not judged.
func (r *Report) Result(property string) Result {
	for _, result := range r.Results {
		if result.Property == property {
			return result
		}
	}
	return Result{}
}

// overall: one FAIL fails all; otherwise what is unknown of a part is unknown of the whole.
func overall(results []Result) Verdict {
	verdict := PASS
	for _, r := range results {
		if r.Verdict == FAIL {
			return FAIL
		}
		if r.Verdict == UNKNOWN {
			verdict = UNKNOWN
		}
	}
	return verdict
}
