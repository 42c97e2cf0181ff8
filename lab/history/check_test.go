package history

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestPipelinesThatKeepTheirPromisesPass(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		report := Check(goodHistory(t))
		if report.Verdict != PASS {
			t.Fatalf("a good history was judged %s:\n%s", report.Verdict, report.Text())
		}
	})
}

// mutant plants one fault into a good history and says which event it befell.
type mutant struct {
	name     string
	property string
	cause    string // what the counterexample's words must contain
	plant    func(t *rapid.T, h *History) (planted Effect, ok bool)
}

func pick(t *rapid.T, h *History, from string, want func(Effect) bool) (int, bool) {
	var fitting []int
	for i, e := range h.Effects {
		if (from == "" || e.Service == from) && want(e) {
			fitting = append(fitting, i)
		}
	}
	if len(fitting) == 0 {
		return 0, false
	}
	return rapid.SampledFrom(fitting).Draw(t, "planted in"), true
}

func anyEffect(Effect) bool { return true }
func took(e Effect) bool    { return !e.Superseded }

func acked(h *History) func(Effect) bool {
	return func(e Effect) bool {
		return slices.ContainsFunc(h.Writes, func(w Write) bool {
			return w.UserID == e.UserID && w.Version == e.Version && w.Outcome == OK
		})
	}
}

func copies(h *History, id string) int {
	n := 0
	for _, r := range h.Records {
		if r.EventID == id {
			n++
		}
	}
	return n
}

var mutants = []mutant{
	{"commits the offset before it processes", PropertyLoss, "the offset was committed ahead of the effect",
		func(t *rapid.T, h *History) (Effect, bool) {
			// Not the last of its partition: what is read after it shows that the consumer went on.
			i, ok := pick(t, h, "", func(e Effect) bool {
				return acked(h)(e) && slices.ContainsFunc(h.Records, func(r Record) bool {
					return r.EventID == e.EventID && slices.ContainsFunc(h.Records, func(later Record) bool {
						return later.Partition == r.Partition && later.Offset > r.Offset && later.EventID != r.EventID && copies(h, later.EventID) == 1
					})
				})
			})
			if !ok {
				return Effect{}, false
			}
			lost := h.Effects[i]
			h.Effects = slices.Delete(h.Effects, i, i+1)
			return lost, true
		}},
	{"a relay that confirms ahead of the broker", PropertyLoss, "it never reached the topic",
		func(t *rapid.T, h *History) (Effect, bool) {
			i, ok := pick(t, h, "billing", acked(h))
			if !ok {
				return Effect{}, false
			}
			lost := h.Effects[i]
			h.Effects = slices.DeleteFunc(h.Effects, func(e Effect) bool { return e.EventID == lost.EventID })
			h.Records = slices.DeleteFunc(h.Records, func(r Record) bool { return r.EventID == lost.EventID })
			return Effect{UserID: lost.UserID, Version: lost.Version}, true // it is lost for both
		}},
	{"no inbox", PropertyDuplicate, "the inbox doesn't know the event",
		func(t *rapid.T, h *History) (Effect, bool) {
			i, ok := pick(t, h, "", func(e Effect) bool { return copies(h, e.EventID) > 1 })
			if !ok {
				return Effect{}, false
			}
			again := h.Effects[i]
			again.AppliedAt, again.Superseded = again.AppliedAt.Add(time.Hour), true
			h.Effects = append(h.Effects, again)
			return again, true
		}},
	{"effect and offset in two transactions", PropertyDuplicate, "effect and position don't commit together",
		func(t *rapid.T, h *History) (Effect, bool) {
			i, ok := pick(t, h, "", func(e Effect) bool { return copies(h, e.EventID) == 1 })
			if !ok {
				return Effect{}, false
			}
			again := h.Effects[i]
			again.AppliedAt, again.Superseded = again.AppliedAt.Add(time.Hour), true
			h.Effects = append(h.Effects, again)
			return again, true
		}},
	{"blind upsert", PropertyOrder, "an older event was applied over a newer one",
		func(t *rapid.T, h *History) (Effect, bool) {
			i, ok := pick(t, h, "", func(e Effect) bool { return e.Superseded })
			if !ok {
				return Effect{}, false
			}
			// In the transaction of the newer version nobody could have seen it.
			for _, e := range h.Effects {
				if e.Service == h.Effects[i].Service && e.UserID == h.Effects[i].UserID && e.Version > h.Effects[i].Version && e.AppliedAt.Before(h.Effects[i].AppliedAt) {
					h.Effects[i].Superseded = false
					return h.Effects[i], true
				}
			}
			return Effect{}, false
		}},
	{"gives up a change as superseded", PropertyOrder, "the consumer gives up changes that it should apply",
		func(t *rapid.T, h *History) (Effect, bool) {
			i, ok := pick(t, h, "", took)
			if !ok {
				return Effect{}, false
			}
			for _, e := range h.Effects {
				if e.Superseded && e.Service == h.Effects[i].Service && e.UserID == h.Effects[i].UserID {
					return Effect{}, false // it may be superseded by none other: then it is the smaller counterexample
				}
				if e.Service == h.Effects[i].Service && e.UserID == h.Effects[i].UserID && e.AppliedAt.Equal(h.Effects[i].AppliedAt) && e.Version > h.Effects[i].Version {
					return Effect{}, false // rightly superseded, in the same transaction
				}
			}
			h.Effects[i].Superseded = true
			return h.Effects[i], true
		}},
	{"a relay that swaps commits", PropertyOrder, "the relay didn't keep the order of commits",
		func(t *rapid.T, h *History) (Effect, bool) {
			i, ok := pick(t, h, "billing", func(e Effect) bool { return e.Version > 1 && acked(h)(e) })
			if !ok {
				return Effect{}, false
			}
			for j := range h.Records {
				if h.Records[j].EventID == h.Effects[i].EventID {
					h.Records[j].Offset -= 1000
				}
			}
			// Its predecessor is now the one that came too late.
			return Effect{UserID: h.Effects[i].UserID}, true
		}},
	{"an event for a write that was refused", PropertyInvented, "refused or rolled back",
		func(t *rapid.T, h *History) (Effect, bool) {
			i, ok := pick(t, h, "", anyEffect)
			if !ok {
				return Effect{}, false
			}
			ghost := Effect{Service: h.Effects[i].Service, UserID: h.Effects[i].UserID, Version: 10_000, EventID: "ghost", AppliedAt: h.Effects[i].AppliedAt.Add(time.Hour)}
			h.Effects = append(h.Effects, ghost)
			return ghost, true
		}},
	{"a consumer with ids of its own", PropertyInvented, "makes its own ids",
		func(t *rapid.T, h *History) (Effect, bool) {
			i, ok := pick(t, h, "", acked(h))
			if !ok {
				return Effect{}, false
			}
			h.Effects[i].EventID = "made up"
			return h.Effects[i], true
		}},
	{"a view that stayed behind", PropertyViews, "an event was lost, or an older one was applied over it",
		func(t *rapid.T, h *History) (Effect, bool) {
			i, ok := pick(t, h, "", acked(h))
			if !ok {
				return Effect{}, false
			}
			for j, v := range h.Views {
				if v.Service == h.Effects[i].Service && v.UserID == h.Effects[i].UserID {
					h.Views[j].Version--
				}
			}
			return Effect{UserID: h.Effects[i].UserID, Service: h.Effects[i].Service}, true
		}},
	{"a view with half of the content", PropertyViews, "took only part of it",
		func(t *rapid.T, h *History) (Effect, bool) {
			i, ok := pick(t, h, "", acked(h))
			if !ok {
				return Effect{}, false
			}
			for j, v := range h.Views {
				if v.Service == h.Effects[i].Service && v.UserID == h.Effects[i].UserID {
					h.Views[j].Content = "half"
				}
			}
			return Effect{UserID: h.Effects[i].UserID, Service: h.Effects[i].Service}, true
		}},
	{"acknowledged before it was durable", PropertyViews, "acknowledged before it was durable",
		func(t *rapid.T, h *History) (Effect, bool) {
			i, ok := pick(t, h, "billing", acked(h))
			if !ok {
				return Effect{}, false
			}
			user := h.Effects[i].UserID
			h.Writes = append(h.Writes, Write{UserID: user, Version: 10_000, Outcome: OK, SentAt: start, AckedAt: start.Add(time.Hour)})
			return Effect{UserID: user, Service: "identity"}, true
		}},
	{"a dead letter for an outage", PropertyDeadLetters, "an outage burned attempts",
		func(t *rapid.T, h *History) (Effect, bool) {
			i, ok := pick(t, h, "", anyEffect)
			if !ok {
				return Effect{}, false
			}
			e := h.Effects[i]
			h.DeadLetters = append(h.DeadLetters, DeadLetter{Service: e.Service, EventID: e.EventID, UserID: e.UserID, Error: "connection refused", At: e.AppliedAt})
			return Effect{Service: e.Service, UserID: e.UserID, EventID: e.EventID}, true
		}},
	{"a poison that is swallowed", PropertyDeadLetters, "it was dropped",
		func(t *rapid.T, h *History) (Effect, bool) {
			h.Plan.Poisons = []string{"poison"}
			return Effect{EventID: "poison"}, true
		}},
	{"billing waits for analytics", PropertyUnaffected, "billing waits for analytics",
		func(t *rapid.T, h *History) (Effect, bool) {
			down := h.Faults[0]
			i, ok := pick(t, h, "billing", func(e Effect) bool {
				return slices.ContainsFunc(h.Writes, func(w Write) bool {
					return w.UserID == e.UserID && w.Version == e.Version && w.Outcome == OK && w.AckedAt.After(down.From) && w.AckedAt.Add(h.Plan.Grace).Before(down.To)
				})
			})
			if !ok {
				return Effect{}, false
			}
			h.Effects[i].AppliedAt = down.To.Add(time.Millisecond)
			return h.Effects[i], true
		}},
	{"never catches up", PropertyConvergence, "stuck",
		func(t *rapid.T, h *History) (Effect, bool) {
			h.Faults[0].CaughtUp, h.Faults[0].Left = time.Time{}, 7
			return Effect{Service: "analytics"}, true
		}},
	{"catches up too late", PropertyConvergence, "slower than the events come",
		func(t *rapid.T, h *History) (Effect, bool) {
			h.Faults[0].CaughtUp = h.Faults[0].To.Add(h.Plan.CatchUpBound + time.Second)
			return Effect{Service: "analytics"}, true
		}},
}

// Each planted fault must be found, by the property it breaks, at the event that it befell, and with
// the likely cause.
func TestEveryMutantIsCaughtForTheRightReason(t *testing.T) {
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			tried, planted := 0, 0
			rapid.Check(t, func(t *rapid.T) {
				tried++
				h := goodHistory(t)
				wanted, ok := m.plant(t, h)
				if !ok {
					return // this history has no place for the fault
				}
				planted++
				report := Check(h)
				result := report.Result(m.property)
				if report.Verdict != FAIL || result.Verdict != FAIL {
					t.Fatalf("judged %s, %q %s:\n%s", report.Verdict, m.property, result.Verdict, report.Text())
				}
				x := result.Counterexample
				if text := x.What + " " + x.Cause; !strings.Contains(text, m.cause) {
					t.Errorf("the counterexample says %q, not %q", text, m.cause)
				}
				if wanted.UserID != "" && x.UserID != wanted.UserID || wanted.EventID != "" && wanted.EventID != "made up" && x.EventID != wanted.EventID ||
					wanted.Service != "" && x.Service != wanted.Service || wanted.Version != 0 && x.Version != wanted.Version {
					t.Errorf("the counterexample is %+v, planted was %+v", x, wanted)
				}
			})
			if planted < tried/4 {
				t.Errorf("the fault was planted %d times only, in %d histories", planted, tried)
			}
		})
	}
}

func TestWhatWasNotObservedIsUnknown(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tests := []struct {
			name, property string
			blind          func(h *History)
		}{
			{"no writes", PropertyLoss, func(h *History) { h.Writes = nil }},
			{"no effects anywhere", PropertyLoss, func(h *History) { h.Effects = nil }},
			{"no source", PropertyOrder, func(h *History) { h.Sources = nil }},
			{"journal unreadable", PropertyLoss, func(h *History) { h.Sources[1].Err = "connection refused" }},
			{"topic unreadable", PropertyDuplicate, func(h *History) { h.Sources[0].Err = "connection refused" }},
			{"views unreadable", PropertyViews, func(h *History) { h.Sources[4].Err = "connection refused" }},
			{"dead letters unreadable", PropertyDeadLetters, func(h *History) { h.Sources[6].Err = "connection refused" }},
			{"clocks that differ", PropertyUnaffected, func(h *History) { h.Plan.ClockError = h.Plan.Grace }},
			{"nobody was down", PropertyUnaffected, func(h *History) { h.Faults = nil }},
			{"nobody was down", PropertyConvergence, func(h *History) { h.Faults = nil }},
			{"nothing was delivered twice", PropertyDuplicate, func(h *History) {
				seen := map[string]bool{}
				h.Records = slices.DeleteFunc(h.Records, func(r Record) bool {
					again := seen[r.EventID]
					seen[r.EventID] = true
					return again
				})
			}},
		}
		test := rapid.SampledFrom(tests).Draw(t, "test")
		h := goodHistory(t)
		test.blind(h)
		report := Check(h)
		if got := report.Result(test.property); report.Verdict != UNKNOWN || got.Verdict != UNKNOWN || got.Detail == "" {
			t.Errorf("%s: judged %s, %q %s %q", test.name, report.Verdict, test.property, got.Verdict, got.Detail)
		}
	})
}

func TestSavedHistoriesAreJudgedTheSame(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		h := goodHistory(t)
		if err := h.Save(dir); err != nil {
			t.Fatal(err)
		}
		loaded, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(Check(h), Check(loaded), cmp.AllowUnexported(Counterexample{})); diff != "" {
			t.Errorf("saved and loaded, it is judged otherwise:\n%s", diff)
		}
	})
}

func TestPercentilesAreExact(t *testing.T) {
	var samples []time.Duration
	for i := 200; i > 0; i-- {
		samples = append(samples, time.Duration(i))
	}
	if got, want := latencyOf(samples), (Latency{200, 100, 190, 200}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := latencyOf([]time.Duration{7}), (Latency{1, 7, 7, 7}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestAVerdictIsAnExitCode(t *testing.T) {
	for verdict, want := range map[Verdict]int{PASS: 0, FAIL: 1, UNKNOWN: 2, "": 2} {
		if got := verdict.ExitCode(); got != want {
			t.Errorf("%q exits with %d, want %d", verdict, got, want)
		}
	}
}
