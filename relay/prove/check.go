package prove

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Property is a promise that a run is held against.
type Property string

const (
	Lost      Property = "lost"      // a committed row is on no topic
	Forged    Property = "forged"    // a record of a row that was rolled back or that nobody wrote
	Disorder  Property = "disorder"  // a key's rows first came in another order than their commits, or on two partitions
	Damaged   Property = "damaged"   // a record's topic, key, headers or value are not the row's
	Ahead     Property = "ahead"     // a position was confirmed behind a row that Kafka did not have
	Repeated  Property = "repeated"  // a row came again although it had been confirmed, or was to come once
	Undrained Property = "undrained" // a relay that ended when it was asked left what it had sent unconfirmed
	Untrusted Property = "untrusted" // the evidence contradicts itself: no verdict
)

// Properties are all of them.
var Properties = []Property{Lost, Forged, Disorder, Damaged, Ahead, Repeated, Undrained, Untrusted}

// Grace is how long what a killed relay had sent may still be on its way to Kafka: a repeat of a row that was
// confirmed for less than that is no fault.
const Grace = 15 * time.Second

// Verdict is what [Check] found.
type Verdict struct {
	Committed   int `json:"committed"`   // rows, as it turned out
	RolledBack  int `json:"rolled_back"` // so did these
	Unknown     int `json:"unknown"`     // rows whose writer never got the answer; they are in one of the above too
	DeadLetters int `json:"dead_letters"`
	Delivered   int `json:"delivered"` // records, repeats included
	Repeats     int `json:"repeats"`
	Samples     int `json:"samples"`
	// Counts has the violations of each property that has any, Examples the first few in words, each with the
	// history around it.
	Counts   map[Property]int `json:"violations"`
	Examples []string         `json:"-"`
}

// Passed reports whether every property held.
func (v *Verdict) Passed() bool { return len(v.Counts) == 0 }

const examplesOfEach = 3

// checker is one judgement.
type checker struct {
	h       *History
	verdict *Verdict
	rows    map[uuid.UUID]int // index in h.Rows
	first   []int             // of each row: the index of its first record, or -1
	again   map[int][]int     // of some rows: the indices of its repeats
	keys    map[string][]int  // rows that happened, by sequence
}

// Check judges a history. It neither keeps nor changes it. A row for one of the topics in dead counts as a dead
// letter.
func Check(h *History, dead ...string) *Verdict {
	c := &checker{h: h, verdict: &Verdict{Counts: map[Property]int{}, Samples: len(h.Samples), Delivered: len(h.Records)},
		rows: make(map[uuid.UUID]int, len(h.Rows)), first: make([]int, len(h.Rows)), again: map[int][]int{}, keys: map[string][]int{}}
	c.readLedger(dead)
	c.readTopics()
	c.nothingLost()
	c.inOrder()
	c.notAhead()
	c.notRepeated()
	c.drained()
	return c.verdict
}

func (c *checker) found(p Property, row int, format string, args ...any) {
	c.verdict.Counts[p]++
	if c.verdict.Counts[p] > examplesOfEach {
		return
	}
	text := string(p) + ": " + fmt.Sprintf(format, args...)
	if row >= 0 {
		text += c.around(row)
	}
	c.verdict.Examples = append(c.verdict.Examples, text)
}

// readLedger counts the rows and looks for contradictions between the writers and the log.
func (c *checker) readLedger(dead []string) {
	for i := range c.h.Rows {
		r := &c.h.Rows[i]
		c.first[i] = -1
		if _, twice := c.rows[r.Event]; twice {
			c.found(Untrusted, -1, "event %s is in the ledger twice", r.Event)
		}
		c.rows[r.Event] = i
		if r.Unanswered {
			c.verdict.Unknown++
		}
		if !r.happened() {
			c.verdict.RolledBack++
			if r.End != 0 {
				c.found(Untrusted, i, "the log has a commit of event %s, which its writer rolled back", r.Event)
			}
			continue
		}
		c.verdict.Committed++
		if slices.Contains(dead, r.Topic) {
			c.verdict.DeadLetters++
		}
		if r.End == 0 {
			c.found(Untrusted, i, "the log has no commit of event %s, which its writer committed", r.Event)
		}
		c.keys[r.Key] = append(c.keys[r.Key], i)
	}
	for key, rows := range c.keys {
		slices.SortStableFunc(rows, func(a, b int) int { return cmp.Compare(c.h.Rows[a].Sequence, c.h.Rows[b].Sequence) })
		for n, i := range rows {
			if r := &c.h.Rows[i]; r.Sequence != int64(n) || n > 0 && r.End < c.h.Rows[rows[n-1]].End {
				c.found(Untrusted, i, "key %s: number %d stands in place %d of the order of commits", key, r.Sequence, n)
				break
			}
		}
	}
	for _, event := range c.h.Strangers {
		c.found(Untrusted, -1, "the log has a commit of event %s, which no writer wrote", event)
	}
}

// readTopics matches the records with the rows.
func (c *checker) readTopics() {
	next := map[Place]int64{}
	for n := range c.h.Records {
		r := &c.h.Records[n]
		if r.Offset < next[r.Place] || r.Offset > next[r.Place] && !c.h.Once {
			c.found(Untrusted, -1, "%s/%d: offset %d was read where %d was due", r.Place.Topic, r.Place.Partition, r.Offset, next[r.Place])
		}
		next[r.Place] = r.Offset + 1
		i, known := c.rows[r.Event]
		switch {
		case !known:
			c.found(Forged, -1, "%s/%d offset %d holds event %s, which nobody wrote", r.Place.Topic, r.Place.Partition, r.Offset, r.Event)
			continue
		case c.first[i] >= 0:
			c.verdict.Repeats++
			c.again[i] = append(c.again[i], n)
		default:
			c.first[i] = n
		}
		row := &c.h.Rows[i]
		if !row.happened() {
			c.found(Forged, i, "%s/%d offset %d holds event %s, which was rolled back", r.Place.Topic, r.Place.Partition, r.Offset, r.Event)
		}
		if r.Place.Topic != row.Topic || r.Key != row.Key || r.Content != row.Content {
			c.found(Damaged, i, "%s/%d offset %d: event %s has key %q and content %x, the row %q and %x for %s",
				r.Place.Topic, r.Place.Partition, r.Offset, r.Event, r.Key, r.Content, row.Key, row.Content, row.Topic)
		}
	}
}

// nothingLost holds: committed ⊆ delivered.
func (c *checker) nothingLost() {
	for i := range c.h.Rows {
		if r := &c.h.Rows[i]; r.happened() && c.first[i] < 0 {
			c.found(Lost, i, "event %s, number %d of key %s, is on no topic", r.Event, r.Sequence, r.Key)
		}
	}
}

// inOrder holds: per key and topic, the order of first appearances is the order of commits.
func (c *checker) inOrder() {
	type line struct{ key, topic string }
	type last struct {
		offset int64
		place  Place
		row    int
	}
	for key, rows := range c.keys {
		before := map[line]last{}
		for _, i := range rows {
			if c.first[i] < 0 {
				continue
			}
			now := &c.h.Records[c.first[i]]
			l := line{key, now.Place.Topic}
			if b, ok := before[l]; ok {
				switch {
				case b.place != now.Place:
					c.found(Disorder, i, "key %s is on partition %d and on %d of %s", key, b.place.Partition, now.Place.Partition, now.Place.Topic)
				case b.offset > now.Offset:
					c.found(Disorder, i, "key %s: number %d first came at offset %d, before number %d at %d",
						key, c.h.Rows[i].Sequence, now.Offset, c.h.Rows[b.row].Sequence, b.offset)
				}
			}
			before[l] = last{now.Offset, now.Place, i}
		}
	}
}

// notAhead holds: what was confirmed at any sample, Kafka had.
func (c *checker) notAhead() {
	var byEnd []int
	for i := range c.h.Rows {
		if c.h.Rows[i].happened() && c.h.Rows[i].End != 0 {
			byEnd = append(byEnd, i)
		}
	}
	slices.SortFunc(byEnd, func(a, b int) int { return cmp.Compare(c.h.Rows[a].End, c.h.Rows[b].End) })
	samples := slices.Clone(c.h.Samples)
	slices.SortFunc(samples, func(a, b Sample) int { return cmp.Compare(a.Confirmed, b.Confirmed) })
	type latest struct {
		offset int64
		row    int
	}
	needed := map[Place]latest{} // up to which offset each place must be filled
	for _, s := range samples {
		for len(byEnd) > 0 && c.h.Rows[byEnd[0]].End <= s.Confirmed {
			i := byEnd[0]
			byEnd = byEnd[1:]
			place, offset := Place{Topic: c.h.Rows[i].Topic, Partition: -1}, int64(math.MaxInt64)
			if c.first[i] >= 0 {
				place, offset = c.h.Records[c.first[i]].Place, c.h.Records[c.first[i]].Offset
			}
			if n, ok := needed[place]; !ok || offset > n.offset {
				needed[place] = latest{offset, i}
			}
		}
		for place, n := range needed {
			if n.offset >= s.Ends[place] {
				row := &c.h.Rows[n.row]
				c.found(Ahead, n.row, "at %s the slot was confirmed up to %s, and event %s, committed at %s, was not on %s: it ended at %d",
					s.At.Round(time.Millisecond), s.Confirmed, row.Event, row.End, row.Topic, s.Ends[place])
			}
		}
	}
}

// notRepeated holds: what was confirmed does not come again, but for what a killed relay had sent, and for what
// the server forgot in a crash. What is published exactly once never does.
func (c *checker) notRepeated() {
	for i, repeats := range c.again {
		row := &c.h.Rows[i]
		for _, n := range repeats {
			r := &c.h.Records[n]
			if c.h.Once {
				c.found(Repeated, i, "event %s came again at %s/%d offset %d, and was to come once", r.Event, r.Place.Topic, r.Place.Partition, r.Offset)
				continue
			}
			// The record came after sample number last and before the next one.
			last := sort.Search(len(c.h.Samples), func(s int) bool { return c.h.Samples[s].Ends[r.Place] > r.Offset }) - 1
			if last < 0 {
				continue
			}
			epoch := c.h.Samples[last].Epoch
			if last+1 < len(c.h.Samples) && c.h.Samples[last+1].Epoch != epoch {
				continue
			}
			if s := c.sampleBefore(last); s != nil && s.Confirmed >= row.End {
				c.found(Repeated, i, "event %s came again at %s/%d offset %d, after %s, but was confirmed at %s",
					r.Event, r.Place.Topic, r.Place.Partition, r.Offset, c.h.Samples[last].At.Round(time.Millisecond), s.At.Round(time.Millisecond))
			}
		}
	}
}

// sampleBefore returns the latest sample of the same epoch that is older by the grace, nil if there is none.
func (c *checker) sampleBefore(last int) *Sample {
	for s := last; s >= 0 && c.h.Samples[s].Epoch == c.h.Samples[last].Epoch; s-- {
		if c.h.Samples[last].At-c.h.Samples[s].At >= Grace {
			return &c.h.Samples[s]
		}
	}
	return nil
}

// drained holds: a relay that was asked to end confirmed every transaction that it had sent. One of which it had
// sent a part it could not confirm.
func (c *checker) drained() {
	size := map[LSN]int{} // rows of each transaction
	for i := range c.h.Rows {
		if c.h.Rows[i].happened() {
			size[c.h.Rows[i].End]++
		}
	}
	for _, s := range c.h.Samples {
		if s.Since == nil {
			continue
		}
		sent := map[LSN]map[int]bool{}
		for n := range c.h.Records {
			r := &c.h.Records[n]
			i, known := c.rows[r.Event]
			if !known || r.Offset < s.Since[r.Place] || r.Offset >= s.Ends[r.Place] || c.h.Rows[i].End <= s.Confirmed {
				continue
			}
			end := c.h.Rows[i].End
			if sent[end] == nil {
				sent[end] = map[int]bool{}
			}
			sent[end][i] = true
			if len(sent[end]) == size[end] {
				c.found(Undrained, i, "at %s a relay had ended that sent event %s, the last of the transaction committed at %s, and had confirmed %s",
					s.At.Round(time.Millisecond), r.Event, end, s.Confirmed)
			}
		}
	}
}

// around tells the story of the row's key near it.
func (c *checker) around(row int) string {
	const near = 3
	r := &c.h.Rows[row]
	var b strings.Builder
	for i := range c.h.Rows {
		o := &c.h.Rows[i]
		if o.Key != r.Key || o.Sequence < r.Sequence-near || o.Sequence > r.Sequence+near ||
			!o.happened() && c.first[i] < 0 && i != row {
			continue
		}
		mark := " "
		if i == row {
			mark = ">"
		}
		fmt.Fprintf(&b, "\n  %s key %s number %d: event %s, %s, commit ends at %s, on %s", mark, o.Key, o.Sequence, o.Event, o.Outcome, o.End, o.Topic)
		if c.first[i] < 0 {
			b.WriteString(" never")
			continue
		}
		for _, n := range append([]int{c.first[i]}, c.again[i]...) {
			fmt.Fprintf(&b, " %d:%d", c.h.Records[n].Place.Partition, c.h.Records[n].Offset)
		}
	}
	return b.String()
}
