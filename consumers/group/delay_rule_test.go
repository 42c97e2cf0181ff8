package group

import (
	"testing"
	"time"

	"converge/consumers/event"
)

func TestAnEventRipensFromItsCommit(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		committed, recorded time.Time
		want                time.Duration // from now
	}{
		"just committed":         {now, now, 3 * time.Second},
		"committed earlier":      {now.Add(-time.Second), now, 2 * time.Second},
		"ripe":                   {now.Add(-time.Minute), now, -57 * time.Second},
		"of no known commit":     {time.Time{}, now.Add(-time.Second), 2 * time.Second},
		"of the future":          {now.Add(time.Hour), now, 3 * time.Second},
		"recorded in the future": {time.Time{}, now.Add(time.Hour), 3 * time.Second},
		"of no known time":       {time.Time{}, time.Time{}, 0},
	} {
		got := ripe(&event.Event{CommittedAt: c.committed, RecordedAt: c.recorded}, now, 3*time.Second)
		if c.recorded.IsZero() {
			if got.After(now) {
				t.Errorf("%s: %v", name, got)
			}
		} else if got.Sub(now) != c.want {
			t.Errorf("%s: in %v, want %v", name, got.Sub(now), c.want)
		}
	}
}
