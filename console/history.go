package console

import (
	"math"
	"sync"
	"time"
)

const (
	// historyStep is the resolution of history: a slot keeps the greatest value seen within it, so that
	// a spike of one second stays visible.
	historyStep = 5 * time.Second
	// historySlots times historyStep is the hour that is kept.
	historySlots = 720
	// historySeries bounds memory: 2,000 series of 720 four-byte slots are below 6 MB. Series beyond it
	// are measured and shown without a past.
	historySeries = 2000
)

// series is one value's past in a ring. Invariant: slots outside (newest-historySlots, newest] are not
// read.
type series struct {
	values []float32 // NaN: not measured
	newest int64     // the slot number, since 1970, written last
}

func (s *series) add(at time.Time, value float64) {
	slot := at.UnixNano() / int64(historyStep)
	switch {
	case s.values == nil:
		s.values = make([]float32, historySlots)
		for i := range s.values {
			s.values[i] = float32(math.NaN())
		}
		s.newest = slot
	case slot < s.newest:
		return // the clock was set back: the past is not rewritten
	case slot > s.newest:
		for skipped := max(s.newest+1, slot-historySlots+1); skipped <= slot; skipped++ {
			s.values[skipped%historySlots] = float32(math.NaN())
		}
		s.newest = slot
	}
	cell := &s.values[slot%historySlots]
	if v := float32(value); math.IsNaN(float64(*cell)) || v > *cell {
		*cell = v
	}
}

// read returns the last n slots up to and with the one of now, oldest first; nil where nothing was
// measured.
func (s *series) read(now time.Time, n int) []*float64 {
	out := make([]*float64, n)
	last := now.UnixNano() / int64(historyStep)
	for i := range out {
		slot := last - int64(n-1-i)
		if s.values == nil || slot > s.newest || slot <= s.newest-historySlots {
			continue
		}
		if v := float64(s.values[slot%historySlots]); !math.IsNaN(v) {
			out[i] = &v
		}
	}
	return out
}

// seriesKey names a series: a headline (Name alone), or a group's lag on a topic or one partition of it.
type seriesKey struct {
	name      string
	group     string
	topic     string
	partition int32 // allPartitions for the topic as a whole
}

const allPartitions = -1

// history is safe for concurrent use.
type history struct {
	mu     sync.Mutex
	series map[seriesKey]*series
}

func newHistory() *history { return &history{series: map[seriesKey]*series{}} }

// add keeps a value; a nil value keeps nothing, which leaves a gap.
func (h *history) add(key seriesKey, at time.Time, value *float64) {
	if value == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s, ok := h.series[key]
	if !ok {
		if len(h.series) >= historySeries {
			return
		}
		s = &series{}
		h.series[key] = s
	}
	s.add(at, *value)
}

func (h *history) read(key seriesKey, now time.Time, n int) []*float64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, ok := h.series[key]
	if !ok {
		s = &series{}
	}
	return s.read(now, n)
}

// meter turns a growing count into a rate over the last few seconds.
type meter struct {
	points [meterPoints]meterPoint
	n      int // points taken in all
}

const meterPoints = 6

type meterPoint struct {
	at    time.Time
	count int64
}

// add takes in a count. A count that went down starts over: what was counted was made anew.
func (m *meter) add(at time.Time, count int64) {
	if m.n > 0 {
		last := m.points[(m.n-1)%meterPoints]
		if count < last.count {
			m.n = 0
		} else if !at.After(last.at) {
			return
		}
	}
	m.points[m.n%meterPoints] = meterPoint{at, count}
	m.n++
}

// perSecond returns the rate between the oldest and the newest point; nil before there are two.
func (m *meter) perSecond() *float64 {
	if m.n < 2 {
		return nil
	}
	newest := m.points[(m.n-1)%meterPoints]
	oldest := m.points[max(0, m.n-meterPoints)%meterPoints]
	rate := float64(newest.count-oldest.count) / newest.at.Sub(oldest.at).Seconds()
	return &rate
}
