package prove

import (
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"
)

// Property is a promise that a run is held against.
type Property string

// The promises.
const (
	Lost      Property = "lost"      // an event has neither effect nor dead letter
	Twice     Property = "twice"     // an event has more than one effect
	Forged    Property = "forged"    // an effect, a dead letter or an echo of an event that was none, or of another
	Disorder  Property = "disorder"  // an effect came in front of one of an earlier event of its key
	Blamed    Property = "blamed"    // an event was tried or buried for what was not its fault
	Regressed Property = "regressed" // a stored offset went back
	Ahead     Property = "ahead"     // Kafka was told an offset that the database had not reached
	Echoed    Property = "echoed"    // an applied event emitted nothing, or twice
	Folded    Property = "folded"    // the state is not that of a sequential fold
	Divided   Property = "divided"   // the dead letters' table and topic disagree
	Held      Property = "held"      // something waits that nobody wakes
)

// Properties are all of them.
var Properties = []Property{Lost, Twice, Forged, Disorder, Blamed, Regressed, Ahead, Echoed, Folded, Divided, Held}

// Verdict is what [Check] found.
type Verdict struct {
	Facts    int `json:"facts"`
	Effects  int `json:"effects"`
	Retried  int `json:"retried"` // facts with an effect that came after failed tries
	Letters  int `json:"dead_letters"`
	Redriven int `json:"redriven"` // of these, with an effect in the end
	Echoes   int `json:"echoes"`   // records, repeats included
	Samples  int `json:"samples"`
	// Counts has the violations of each property that has any, Examples the first few in words.
	Counts   map[Property]int `json:"violations"`
	Examples []string         `json:"-"`
}

// Passed reports whether every property held.
func (v *Verdict) Passed() bool { return len(v.Counts) == 0 }

const examplesOfEach = 3

type checker struct {
	h       *History
	verdict *Verdict
	facts   map[uuid.UUID]*Fact
	effects map[uuid.UUID]int
	letters map[uuid.UUID]*Letter
}

// Check judges a history. It neither keeps nor changes it.
func Check(h *History) *Verdict {
	c := &checker{h: h, facts: map[uuid.UUID]*Fact{}, effects: map[uuid.UUID]int{}, letters: map[uuid.UUID]*Letter{},
		verdict: &Verdict{Facts: len(h.Facts), Effects: len(h.Effects), Letters: len(h.Letters), Echoes: len(h.Echoes),
			Samples: len(h.Samples), Counts: map[Property]int{}}}
	for i := range h.Facts {
		c.facts[h.Facts[i].ID] = &h.Facts[i]
	}
	for i := range h.Letters {
		c.letters[h.Letters[i].ID] = &h.Letters[i]
	}
	c.inOrder()
	c.nothingLost()
	c.nobodyBlamed()
	c.offsets()
	c.echoes()
	c.folds()
	c.deadTopic()
	if h.Held > 0 {
		c.found(Held, "%d keys and events are held at the end", h.Held)
	}
	return c.verdict
}

func (c *checker) found(p Property, format string, args ...any) {
	c.verdict.Counts[p]++
	if c.verdict.Counts[p] <= examplesOfEach {
		c.verdict.Examples = append(c.verdict.Examples, string(p)+": "+fmt.Sprintf(format, args...))
	}
}

func (f *Fact) String() string {
	return fmt.Sprintf("%s/%d (%s, %s, offset %d)", f.Key, f.Seq, f.ID, partitionName(f.Partition), f.Offset)
}

// redriven reports whether the fact was a dead letter that has been sent again.
func (c *checker) redriven(id uuid.UUID) bool {
	l := c.letters[id]
	return l != nil && l.State == "resolved"
}

// inOrder looks at the effects one by one. Those of redriven events come behind all that were there by then, in
// an order of their own, unless they held their key meanwhile.
func (c *checker) inOrder() {
	last, lastRedriven := map[string]*Fact{}, map[string]*Fact{}
	for _, e := range c.h.Effects {
		f := c.facts[e.ID]
		if f == nil || f.Key != e.Key || f.Seq != e.Seq {
			c.found(Forged, "an effect of %s, %s/%d", e.ID, e.Key, e.Seq)
			continue
		}
		if c.effects[e.ID]++; c.effects[e.ID] > 1 {
			c.found(Twice, "%v has %d effects, the last by %s", f, c.effects[e.ID], e.Member)
			continue
		}
		if e.Attempt > 0 {
			c.verdict.Retried++
		}
		line := last
		if c.redriven(e.ID) {
			c.verdict.Redriven++
			if !c.h.HoldDead {
				line = lastRedriven
			}
		}
		if before := line[f.Key]; before != nil && before.Seq > f.Seq {
			c.found(Disorder, "%v was applied behind %v", f, before)
			continue
		}
		line[f.Key] = f
	}
}

func (c *checker) nothingLost() {
	for i := range c.h.Facts {
		f := &c.h.Facts[i]
		letter := c.letters[f.ID]
		switch n := c.effects[f.ID]; {
		case n == 0 && letter == nil:
			c.found(Lost, "%v", f)
		case n > 0 && letter != nil && letter.State != "resolved":
			c.found(Forged, "%v has an effect and is a dead letter, %s", f, letter.State)
		case n == 0 && letter != nil && letter.State == "resolved":
			c.found(Lost, "%v was redriven and has no effect", f)
		}
	}
}

// nobodyBlamed holds the tries of every event against those that its handler refused.
func (c *checker) nobodyBlamed() {
	for _, e := range c.h.Effects {
		f := c.facts[e.ID]
		if f == nil {
			continue
		}
		dies, _ := f.Dies(c.h.MaxAttempts)
		if want := f.Fails; !dies && e.Attempt != want {
			c.found(Blamed, "%v was applied after %d failed tries, and its handler refused %d", f, e.Attempt, want)
		}
	}
	for i := range c.h.Letters {
		l := &c.h.Letters[i]
		f := c.facts[l.ID]
		if f == nil {
			c.found(Forged, "a dead letter of %s", l.ID)
			continue
		}
		dies, attempts := f.Dies(c.h.MaxAttempts)
		if !dies {
			c.found(Blamed, "%v is a dead letter after %d tries, and its handler would have it after %d", f, l.Attempts, f.Fails)
		} else if l.Attempts != attempts*l.Deaths {
			c.found(Blamed, "%v died %d times after %d tries, want %d each", f, l.Deaths, l.Attempts, attempts)
		}
	}
}

func (c *checker) offsets() {
	last := map[int32]int64{}
	for _, s := range c.h.Samples {
		if s.Database < last[s.Partition] {
			c.found(Regressed, "%s: %d after %d", partitionName(s.Partition), s.Database, last[s.Partition])
		}
		if s.Kafka > s.Database {
			c.found(Ahead, "%s: Kafka was told %d, the database has %d", partitionName(s.Partition), s.Kafka, s.Database)
		}
		last[s.Partition] = s.Database
	}
}

func (c *checker) echoes() {
	of := map[uuid.UUID]map[uuid.UUID]bool{}
	for _, e := range c.h.Echoes {
		if of[e.Cause] == nil {
			of[e.Cause] = map[uuid.UUID]bool{}
		}
		of[e.Cause][e.ID] = true
		if c.effects[e.Cause] == 0 {
			c.found(Forged, "an echo of %s, which has no effect", e.Cause)
		}
	}
	for id, effects := range c.effects {
		if n := len(of[id]); n != 1 && effects == 1 {
			c.found(Echoed, "%v emitted %d events", c.facts[id], n)
		}
	}
}

// folds folds the facts in the order of their offsets, those that were redriven behind the others unless they held
// their key.
func (c *checker) folds() {
	want := map[string]Fold{}
	for _, again := range []bool{false, true} {
		for i := range c.h.Facts {
			f := &c.h.Facts[i]
			dies, _ := f.Dies(c.h.MaxAttempts)
			if again != (dies && !c.h.HoldDead) || dies && !c.redriven(f.ID) {
				continue
			}
			want[f.Key] = want[f.Key].Add(f.Value)
		}
	}
	keys := maps.Clone(want)
	maps.Copy(keys, c.h.Folds)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if got := c.h.Folds[key]; got != want[key] {
			c.found(Folded, "%s is %+v, a sequential fold is %+v", key, got, want[key])
		}
	}
}

func (c *checker) deadTopic() {
	for id := range c.letters {
		if c.h.DeadRecords[id] == 0 {
			c.found(Divided, "the dead letter of %s is not on the topic", id)
		}
	}
	for id := range c.h.DeadRecords {
		if c.letters[id] == nil {
			c.found(Divided, "the topic has a dead letter of %s, the table has none", id)
		}
	}
}
