package load

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// Latency is a distribution. Percentiles are exact (nearest rank), of the last 100,000 samples.
type Latency struct {
	Count int           `json:"count"`
	P50   time.Duration `json:"p50_ns"`
	P95   time.Duration `json:"p95_ns"`
	P99   time.Duration `json:"p99_ns"`
	Max   time.Duration `json:"max_ns"`
}

// Summary is what a run found.
type Summary struct {
	Target     string         `json:"target"`
	Kind       string         `json:"kind"`
	Rate       float64        `json:"rate"`
	Seed       uint64         `json:"seed"`
	Elapsed    time.Duration  `json:"elapsed_ns"`
	Sent       int            `json:"sent"`
	Accepted   int            `json:"accepted"`
	Duplicates int            `json:"duplicates"` // sent a second time
	Errors     map[string]int `json:"errors"`     // by HTTP status, or "no reply"
	Reply      Latency        `json:"reply"`      // due → reply of those accepted
	End        Latency        `json:"end"`        // due → terminal state, or visible in every view
	Final      map[string]int `json:"final"`      // how they ended
	Unfinished int            `json:"unfinished"` // accepted, and not at an end when Run stopped looking
	Behind     time.Duration  `json:"behind_ns"`  // how late the generator sent at worst
	// Broken lists promises that did not hold, the first twenty of BrokenCount.
	Broken      []string `json:"broken"`
	BrokenCount int      `json:"broken_count"`
}

const (
	keptSamples = 100_000
	keptBroken  = 20
)

// samples keeps the last keptSamples durations, and the largest of all.
type samples struct {
	kept  []time.Duration
	count int
	max   time.Duration
}

func (s *samples) add(d time.Duration) {
	s.max = max(s.max, d)
	if len(s.kept) < keptSamples {
		s.kept = append(s.kept, d)
	} else {
		s.kept[s.count%keptSamples] = d
	}
	s.count++
}

func (s *samples) latency() Latency {
	if s.count == 0 {
		return Latency{}
	}
	sorted := slices.Sorted(slices.Values(s.kept))
	rank := func(percent int) time.Duration { return sorted[(len(sorted)*percent+99)/100-1] }
	return Latency{s.count, rank(50), rank(95), rank(99), s.max}
}

// tally counts what happens. Its methods are safe for concurrent use.
type tally struct {
	mu         sync.Mutex
	counts     Summary
	reply, end samples
	errors     int
	ended      int
	unended    []string
}

func (t *tally) sent(behind time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts.Sent++
	t.counts.Behind = max(t.counts.Behind, behind)
}

func (t *tally) accepted(took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts.Accepted++
	t.reply.add(took)
}

func (t *tally) duplicate() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts.Duplicates++
}

func (t *tally) failed(reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counts.Errors == nil {
		t.counts.Errors = map[string]int{}
	}
	t.counts.Errors[reason]++
	t.errors++
}

func (t *tally) finished(final string, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counts.Final == nil {
		t.counts.Final = map[string]int{}
	}
	t.counts.Final[final]++
	t.ended++
	t.end.add(took)
}

func (t *tally) unfinished(what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts.Unfinished++
	t.unended = append(t.unended, what)
}

func (t *tally) broke(promise string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts.broke(promise)
}

func (s *Summary) broke(promise string) {
	if s.BrokenCount++; len(s.Broken) < keptBroken {
		s.Broken = append(s.Broken, promise)
	}
}

func (t *tally) progress(elapsed time.Duration) Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Progress{Elapsed: elapsed, Sent: t.counts.Sent, Accepted: t.counts.Accepted, Finished: t.ended,
		Open: t.counts.Sent - t.errors - t.ended, Errors: t.errors}
}

// summary ends the count. Whoever stopped the run early also stopped what had not ended: only in a run
// that was left alone does an accepted arrival without an end break the promise.
func (r *runner) summary(stopped bool) Summary {
	t := &r.tally
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.counts
	s.Target, s.Kind, s.Rate, s.Seed, s.Elapsed = r.cfg.Target, r.cfg.Kind, r.cfg.Rate, r.cfg.Seed, time.Since(r.start)
	s.Reply, s.End = t.reply.latency(), t.end.latency()
	if !stopped {
		for _, what := range t.unended {
			s.broke(fmt.Sprintf("accepted, and not at an end %v after the last was sent: %s", r.cfg.Settle, what))
		}
	}
	return s
}

// Text writes the summary for people.
func (s *Summary) Text(w io.Writer) {
	fmt.Fprintf(w, "\n%s to %s, %g/s for %s, seed %d\n", s.Kind, s.Target, s.Rate, s.Elapsed.Round(100*time.Millisecond), s.Seed)
	fmt.Fprintf(w, "sent %d, accepted %d, sent twice %d, errors %s\n", s.Sent, s.Accepted, s.Duplicates, counts(s.Errors))
	fmt.Fprintf(w, "ended %s; unfinished %d\n", counts(s.Final), s.Unfinished)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(table, "from the due time to\tcount\tp50\tp95\tp99\tmax\t\n")
	s.Reply.row(table, "reply")
	s.End.row(table, s.endName())
	table.Flush()
	fmt.Fprintf(w, "times to the end are at most 20 ms or a quarter too long, never too short\n")
	if s.Behind > 20*time.Millisecond {
		fmt.Fprintf(w, "the generator itself was up to %s late: its machine is busy, or too many requests were in flight\n", round(s.Behind))
	}
	for _, promise := range s.Broken {
		fmt.Fprintf(w, "BROKEN: %s\n", promise)
	}
	if more := s.BrokenCount - len(s.Broken); more > 0 {
		fmt.Fprintf(w, "BROKEN: %d more\n", more)
	}
}

func (s *Summary) endName() string {
	switch s.Kind {
	case Orders:
		return "COMPLETED or FAILED"
	case Profiles:
		return "visible in every view"
	default:
		return "the end"
	}
}

func (l Latency) row(w io.Writer, name string) {
	fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\t\n", name, l.Count, round(l.P50), round(l.P95), round(l.P99), round(l.Max))
}

func counts(m map[string]int) string {
	if len(m) == 0 {
		return "none"
	}
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%s %d", key, m[key]))
	}
	return strings.Join(parts, ", ")
}

func round(d time.Duration) time.Duration {
	if d >= time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(100 * time.Microsecond)
}
