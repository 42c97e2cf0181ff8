package console

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestHistoryKeepsTheGreatestOfEachSlotAndShowsGaps(t *testing.T) {
	h := newHistory()
	key := seriesKey{name: "x", partition: allPartitions}
	for _, p := range []struct {
		at    time.Duration
		value float64
	}{{0, 3}, {time.Second, 9}, {4 * time.Second, 1}, {15 * time.Second, 0}} {
		h.add(key, noon.Add(p.at), &p.value)
	}
	got := h.read(key, noon.Add(20*time.Second), 6)
	want := []*float64{nil, new(9.0), nil, nil, new(0.0), nil}
	for i := range want {
		if (want[i] == nil) != (got[i] == nil) || want[i] != nil && *want[i] != *got[i] {
			t.Errorf("slot %d: %v, want %v", i, show(got[i]), show(want[i]))
		}
	}
}

func show(f *float64) any {
	if f == nil {
		return "nothing"
	}
	return *f
}

// The ring against a map that forgets nothing.
func TestHistoryAgreesWithAMapOfTheLastHour(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s series
		model := map[int64]float64{}
		slot := noon.Unix() / 5
		for range rapid.IntRange(1, 60).Draw(t, "adds") {
			slot += int64(rapid.SampledFrom([]int{0, 0, 1, 1, 2, 700, 719, 720, 721, 3000}).Draw(t, "skip"))
			value := float64(rapid.IntRange(0, 9).Draw(t, "value"))
			s.add(time.Unix(slot*5, 0), value)
			if old, ok := model[slot]; !ok || value > old {
				model[slot] = value
			}
			ahead := int64(rapid.IntRange(0, 800).Draw(t, "ahead"))
			now := slot + ahead
			for i, got := range s.read(time.Unix(now*5, 0), historySlots) {
				at := now - int64(historySlots-1-i)
				want, ok := model[at]
				ok = ok && at > slot-historySlots
				if ok != (got != nil) || ok && want != *got {
					t.Fatalf("slot %d of now %d: %v, want %v (%v)", at, now, show(got), want, ok)
				}
			}
		}
	})
}

func TestHistoryIsBounded(t *testing.T) {
	h := newHistory()
	for i := range historySeries + 500 {
		h.add(seriesKey{name: "x", partition: int32(i)}, noon, new(1.0))
	}
	if len(h.series) != historySeries {
		t.Errorf("%d series, want %d", len(h.series), historySeries)
	}
}

func TestMeterStartsOverWhenTheCountGoesDown(t *testing.T) {
	var m meter
	for i, count := range []int64{100, 110, 120, 4, 6} {
		m.add(noon.Add(time.Duration(i)*time.Second), count)
	}
	if got := m.perSecond(); got == nil || *got != 2 {
		t.Errorf("rate %v, want 2", show(got))
	}
}
