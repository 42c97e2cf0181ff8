package prove

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"converge/internal/mutants"
	"converge/internal/nettest"
)

// faults are those that relays have had, each behind its switch, in one build.
var faults = []mutants.Fault{
	// Without the lock that the checkpoint is: it keeps some of the faults from doing harm, and finds others when
	// the relay starts again.
	{File: "relay/checkpoint.go", Old: "topic: r.cfg.Slot + checkpointSuffix, fail: fail,",
		New: "topic: r.cfg.Slot + checkpointSuffix, fail: fail, off: true, loaded: true,"},
	{File: "relay/tracker.go", Old: "x != nil && x.pending.Load() == 0; x = t.head {",
		New: `x != nil && (x.pending.Load() == 0 || planted("confirms what it has received") && x.end != 0 ||
			planted("a later success passes a failed record") && x.end != 0 && x.next != nil && x.next.pending.Load() == 0); x = t.head {`},
	{File: "relay/tracker.go", Old: "t.confirmed = max(t.confirmed, x.end)",
		New: `t.confirmed = max(t.confirmed, x.end)
		if planted("an acknowledgement confirms the latest transaction") && t.tail != nil {
			t.confirmed = max(t.confirmed, t.tail.end)
		}`},
	{File: "relay/tracker.go", Old: "if t.head == nil {\n\t\t// A keepalive",
		New: "if t.head == nil || planted(\"confirms a keepalive while transactions wait\") && !t.open {\n\t\t// A keepalive"},
	{File: "relay/session.go", Old: "if s.tracker.commit(commit.EndLSN) && sent > 0 {",
		New: `end := commit.EndLSN
		if planted("confirms a commit's start") {
			end = commit.CommitLSN
		}
		if s.tracker.commit(end) && sent > 0 {`},
	{File: "relay/publisher.go", Old: "if err != nil {\n\t\tif p.life.Err() == nil {",
		New: `if err != nil && (planted("counts an error as an acknowledgement") || planted("drops a batch that takes too long")) {
		err = nil
	}
	if err != nil && planted("a later success passes a failed record") {
		return
	}
	if err != nil {
		if p.life.Err() == nil {`},
	{File: "relay/publisher.go", Old: "x.sent++\n",
		New: `if r.dead && planted("drops a dead letter") {
		in.used--
		return nil
	}
	x.sent++
`},
	{File: "relay/kafka.go", Old: "options = append(options, cfg.KafkaOptions...)",
		New: `if planted("drops a batch that takes too long") {
		options = append(options, kgo.RecordDeliveryTimeout(time.Second))
	}
	options = append(options, cfg.KafkaOptions...)`},
	{File: "relay/kafka.go", Old: "kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)),",
		New: `kgo.RecordPartitioner(func() kgo.Partitioner {
			if planted("spreads a key over the partitions") {
				return kgo.RoundRobinPartitioner()
			}
			return kgo.StickyKeyPartitioner(nil)
		}()),`},
	{File: "relay/boot.go", Old: `case s.walStatus == "lost":`, New: `case s.walStatus == "lost" && !planted("takes a lost slot for an outage"):`},
	{File: "relay/arena.go", Old: "if a.pending.Add(int64(a.used)-unsettled) == 0 {",
		New: `if a.pending.Add(int64(a.used)-unsettled) == 0 || planted("reuses memory that records point to") {`},
}

// Each fault breaks a promise, and the run must say which. Only the trouble that brings it out is made, so that
// few kills do.
func TestJudgeFindsPlantedFaults(t *testing.T) {
	t.Parallel()
	binary := buildRelay(t, faults...)
	const (
		refused     = "Kafka: rights withdrawn"
		unreachable = "Kafka: unreachable"
		slow        = "Kafka: latency"
	)
	for fault, wants := range map[string]struct {
		property Property
		only     []string
	}{
		"none":                          {"", []string{unreachable, refused, slow}},
		"confirms what it has received": {Ahead, []string{unreachable}},
		"confirms a keepalive while transactions wait": {Ahead, []string{unreachable}},
		"counts an error as an acknowledgement":        {Lost, []string{refused}},
		"drops a batch that takes too long":            {Lost, []string{unreachable}},
		"a later success passes a failed record":       {Ahead, []string{refused}},
		"drops a dead letter":                          {Lost, []string{"none"}},
		"spreads a key over the partitions":            {Disorder, []string{"none"}},
		"reuses memory that records point to":          {Damaged, []string{slow}},
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			p := plan{Kills: 4, Seed: newSeed(), Rate: 600, Hold: 2500 * time.Millisecond, Only: wants.only, NoPoints: true, Patience: 20 * time.Second}
			r := prove(t, binary, fault, p)
			// A look at the slot must come at the wrong moment, which 4 kills do not promise.
			for more := 0; more < 2 && r.Verdict.Counts[wants.property] == 0 && fault != "none"; more++ {
				p.Seed++
				r = prove(t, binary, fault, p)
			}
			t.Logf("\n%s", r.table())
			if fault == "none" {
				if r.Failure != nil || !r.Verdict.Passed() {
					t.Fatalf("without a fault it says %v, %v", r.Failure, r.Verdict.Counts)
				}
				return
			}
			r.mustFind(t, wants.property)
		})
	}
	t.Run("confirms a commit's start", func(t *testing.T) {
		t.Parallel()
		r := drained(t, binary, "confirms a commit's start")
		r.mustFind(t, Undrained)
	})
	t.Run("an acknowledgement confirms the latest transaction", func(t *testing.T) {
		t.Parallel()
		p := plan{Seed: newSeed(), Rate: 600, Patience: 20 * time.Second}
		r := begin(t, binary, "an acknowledgement confirms the latest transaction", p)
		write := func(d time.Duration) {
			writing, stop := context.WithTimeout(t.Context(), d)
			defer stop()
			r.failed(r.ledger.write(writing, p.Seed))
		}
		write(3 * time.Second)                                                           // the relay gets to know the topics
		r.cluster.Leg.Poison(nettest.Toxic{Latency: 500 * time.Millisecond}, nettest.Up) // and now there are always transactions on their way
		write(5 * time.Second)
		r.cluster.Leg.Mend()
		result := r.end(r.first)
		result.mustFind(t, Ahead)
	})
	t.Run("takes a lost slot for an outage", func(t *testing.T) {
		t.Parallel()
		if err := loseSlot(t, binary, "takes a lost slot for an outage", 10*time.Second); err == nil {
			t.Error("nothing was found wrong")
		} else {
			t.Logf("caught: %v", err)
		}
	})
}

// mustFind fails the test unless the judge found the property broken and says how.
func (r *result) mustFind(t *testing.T, p Property) {
	t.Helper()
	i := slices.IndexFunc(r.Verdict.Examples, func(e string) bool { return strings.HasPrefix(e, string(p)) })
	if r.Verdict.Counts[p] == 0 || i < 0 {
		t.Fatalf("the judge says %v, want %s (%v)", r.Verdict.Counts, p, r.Failure)
	}
	t.Logf("caught: %v, as in %s", r.Verdict.Counts, r.Verdict.Examples[i])
}
