package prove

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

var (
	left  = Place{"topic-0", 0}
	right = Place{"topic-0", 1}
	grave = Place{"dead", 0}
)

func event(n byte) uuid.UUID { return uuid.UUID{15: n} }

// record n of the small history is of row n at its place.
func record(place Place, offset int64, row *Row) Record {
	return Record{Event: row.Event, Place: place, Offset: offset, Key: row.Key, Content: row.Content}
}

func sample(at time.Duration, confirmed LSN, onLeft, onRight, onGrave int64) Sample {
	return Sample{At: at, Confirmed: confirmed, Ends: map[Place]int64{left: onLeft, right: onRight, grave: onGrave}}
}

// small is a run of three transactions, one that was rolled back and two of which the writers never heard,
// with a relay that was killed once and repeated two rows.
func small() *History {
	rows := []Row{
		{Event: event(1), Topic: "topic-0", Key: "a", Sequence: 0, Content: 11, End: 100},
		{Event: event(2), Topic: "topic-0", Key: "b", Sequence: 0, Content: 12, End: 100},
		{Event: event(3), Topic: "topic-0", Key: "a", Sequence: 1, Content: 13, Outcome: RolledBack},
		{Event: event(4), Topic: "topic-0", Key: "a", Sequence: 1, Content: 14, End: 200},
		{Event: event(5), Topic: "dead", Key: "a", Sequence: 2, Content: 15, End: 200},
		{Event: event(6), Topic: "topic-0", Key: "a", Sequence: 3, Content: 16, End: 300, Outcome: Unknown, Unanswered: true},
		{Event: event(7), Topic: "topic-0", Key: "a", Sequence: 4, Content: 17, Outcome: Unknown, Unanswered: true},
	}
	return &History{
		Rows: rows,
		Records: []Record{
			record(left, 0, &rows[0]), record(left, 1, &rows[3]), record(left, 2, &rows[0]), record(left, 3, &rows[3]), record(left, 4, &rows[5]),
			record(right, 0, &rows[1]), record(right, 1, &rows[1]),
			record(grave, 0, &rows[4]),
		},
		Samples: []Sample{
			sample(0, 50, 0, 0, 0),
			sample(time.Second, 50, 2, 1, 1),
			sample(2*time.Second, 200, 4, 2, 1),
			sample(3*time.Second, 300, 5, 2, 1),
		},
	}
}

func TestGoodRunPasses(t *testing.T) {
	v := Check(small(), "dead")
	if !v.Passed() {
		t.Fatalf("the judge says:\n%s", strings.Join(v.Examples, "\n"))
	}
	if v.Committed != 5 || v.RolledBack != 2 || v.Unknown != 2 || v.Delivered != 8 || v.Repeats != 3 || v.DeadLetters != 1 || v.Samples != 4 {
		t.Errorf("it counts %+v", v)
	}
}

// Each fault is one that breaks one promise, and the judge must find that one and no other.
func TestJudgeFindsEachFault(t *testing.T) {
	drop := func(h *History, event uuid.UUID) { // and close the gap
		h.Records = slices.DeleteFunc(h.Records, func(r Record) bool { return r.Event == event })
		next := map[Place]int64{}
		for i := range h.Records {
			r := &h.Records[i]
			r.Offset = next[r.Place]
			next[r.Place]++
		}
	}
	late := func(h *History, event byte, at time.Duration) { // the event comes once more at the end, after a sample at that time
		last := h.Samples[len(h.Samples)-1]
		last.At = at
		h.Samples = append(h.Samples, last)
		h.Records = slices.Insert(h.Records, 5, record(left, 5, &h.Rows[event-1]))
	}
	faults := map[string]struct {
		wants Property
		says  string
		plant func(h *History)
	}{
		"a committed row is on no topic": {Lost, "number 3 of key a", func(h *History) {
			drop(h, event(6))
			h.Samples = h.Samples[:3]
		}},
		"a row that turned out to be committed is on no topic": {Lost, "number 0 of key b", func(h *History) {
			drop(h, event(2))
			h.Samples = h.Samples[:2]
			h.Rows[1].Outcome = Unknown
		}},
		"a dead letter was never written": {Lost, "on dead never", func(h *History) {
			drop(h, event(5))
			h.Samples = h.Samples[:2]
		}},
		"a row that was rolled back is published": {Forged, "rolled back", func(h *History) {
			h.Records = append(h.Records, record(right, 2, &h.Rows[2]))
		}},
		"a row whose commit never happened is published": {Forged, "unknown", func(h *History) {
			h.Records = append(h.Records, record(right, 2, &h.Rows[6]))
		}},
		"a record is nobody's": {Forged, "nobody wrote", func(h *History) {
			h.Records = append(h.Records, Record{Event: event(99), Place: right, Offset: 2})
		}},
		"a key's rows change places": {Disorder, "number 3 first came at offset 1, before number 1 at 2", func(h *History) {
			h.Records = []Record{record(left, 0, &h.Rows[0]), record(left, 1, &h.Rows[5]), record(left, 2, &h.Rows[3]),
				record(right, 0, &h.Rows[1]), record(grave, 0, &h.Rows[4])}
			h.Samples = h.Samples[:1]
		}},
		"a key moves to another partition": {Disorder, "on partition 0 and on 1", func(h *History) {
			h.Records = slices.Delete(h.Records, 4, 5)
			h.Records = append(h.Records, record(right, 2, &h.Rows[5]))
			h.Samples = h.Samples[:3]
		}},
		"a value is another's": {Damaged, "content ff", func(h *History) { h.Records[1].Content = 0xff }},
		"a key is another's":   {Damaged, `key "c"`, func(h *History) { h.Records[1].Key = "c" }},
		"a record is on another topic": {Damaged, "for dead", func(h *History) {
			h.Records[7] = record(Place{"topic-1", 0}, 0, &h.Rows[4])
			h.Samples = h.Samples[:2]
		}},
		"a position is confirmed and Kafka does not have the row": {Ahead, "the slot was confirmed up to 0/C8", func(h *History) { h.Samples[1].Confirmed = 200; h.Samples[1].Ends[left] = 1 }},
		"a position is confirmed behind a row that comes later":   {Ahead, "it ended at 4", func(h *History) { h.Samples[2].Confirmed = 300 }},
		"a position is confirmed before its dead letter":          {Ahead, "was not on dead", func(h *History) { h.Samples[2].Ends[grave] = 0 }},
		"a row comes again long after it was confirmed": {Repeated, "came again at topic-0/0 offset 5", func(h *History) {
			late(h, 4, 3*time.Second+Grace)
		}},
		"a relay that ends leaves the last transaction that it sent": {Undrained, "and had confirmed 0/C8", func(h *History) {
			h.Samples[3].Since = map[Place]int64{left: 3, right: 2, grave: 1}
			h.Samples[3].Confirmed = 200
		}},
		"the log has what was rolled back":              {Untrusted, "its writer rolled back", func(h *History) { h.Rows[2].End = 150 }},
		"the log lacks what was committed":              {Untrusted, "the log has no commit", func(h *History) { h.Rows[1].End = 0 }},
		"the log has what nobody wrote":                 {Untrusted, "no writer wrote", func(h *History) { h.Strangers = append(h.Strangers, event(50)) }},
		"the order of a key is not that of its commits": {Untrusted, "stands in place 3", func(h *History) { h.Rows[5].End = 150; h.Samples = h.Samples[:2] }},
		"an offset was not read":                        {Untrusted, "offset 5 was read where 4 was due", func(h *History) { h.Records[4].Offset = 5; h.Samples = h.Samples[:3] }},
		"what was to come once came again":              {Repeated, "was to come once", func(h *History) { h.Once = true }},
		"an event was used twice":                       {Untrusted, "in the ledger twice", func(h *History) { h.Rows[6].Event = event(3) }},
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			h := small()
			fault.plant(h)
			v := Check(h, "dead")
			if v.Counts[fault.wants] == 0 || len(v.Counts) != 1 {
				t.Errorf("it counts %v, want %s alone", v.Counts, fault.wants)
			}
			if text := strings.Join(v.Examples, "\n"); !strings.Contains(text, fault.says) {
				t.Errorf("it does not say %q but:\n%s", fault.says, text)
			}
		})
	}
	for _, p := range Properties {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(faults)), func(name string) bool { return faults[name].wants == p }) {
			t.Errorf("no fault breaks %s", p)
		}
	}
}

// What no relay can help is not held against it.
func TestRepeatsThatHaveACauseAreNoFault(t *testing.T) {
	for name, change := range map[string]func(h *History){
		"what a killed relay had sent arrives late": func(h *History) {
			h.Samples = append(h.Samples, sample(2*time.Second+Grace/2, 300, 5, 2, 1))
			h.Records = slices.Insert(h.Records, 5, record(left, 5, &h.Rows[3]))
		},
		"an earlier relay had sent more than the one that was asked to end": func(h *History) {
			h.Samples[1].Since = map[Place]int64{left: 2, right: 1, grave: 1}
		},
		"a relay that was asked to end had sent a part of a transaction": func(h *History) {
			h.Samples[1].Since = map[Place]int64{left: 1, right: 1, grave: 1}
		},
		"the server forgot the confirmation in a crash": func(h *History) {
			s := sample(time.Minute, 50, 5, 2, 1)
			s.Epoch = 1
			h.Samples = append(h.Samples, s)
			h.Records = slices.Insert(h.Records, 5, record(left, 5, &h.Rows[3]))
		},
		"the server crashed after the last sample before it": func(h *History) {
			before, after := sample(time.Minute, 300, 5, 2, 1), sample(time.Minute+time.Second, 50, 6, 2, 1)
			after.Epoch = 1
			h.Samples = append(h.Samples, before, after)
			h.Records = slices.Insert(h.Records, 5, record(left, 5, &h.Rows[3]))
		},
	} {
		h := small()
		change(h)
		if v := Check(h, "dead"); !v.Passed() {
			t.Errorf("%s: the judge says:\n%s", name, strings.Join(v.Examples, "\n"))
		}
	}
}
