package readmodel

import (
	"net/http/httptest"
	"testing"
	"time"

	"converge/consumers/event"
)

// Headers hold what anybody wrote there: a time that cannot be printed is not believed.
func TestATimeThatNobodyCanPrintIsNotBelieved(t *testing.T) {
	occurred := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	recorded := occurred.Add(time.Minute)
	for name, step := range map[string]struct {
		told time.Time
		ok   bool
	}{
		"not told":         {time.Time{}, false},
		"told":             {occurred, true},
		"1970":             {time.Unix(0, 0), true},
		"before 1970":      {time.Unix(-1, 0), false},
		"9998":             {time.Date(9998, 12, 31, 23, 59, 59, 0, time.UTC), true},
		"9999":             {time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), false},
		"9999 by its zone": {time.Date(9999, 1, 1, 0, 0, 0, 0, time.FixedZone("", 3600)), true},
		"five digits":      {time.Date(12026, 1, 1, 0, 0, 0, 0, time.UTC), false},
		"the end of time":  {time.UnixMilli(1<<63 - 1), false},
	} {
		want := recorded
		if step.ok {
			want = step.told
		}
		if got := Occurred(&event.Event{OccurredAt: step.told, RecordedAt: recorded}); !got.Equal(want) {
			t.Errorf("%s: occurred %v, want %v", name, got, want)
		}
		if got := committed(&event.Event{CommittedAt: step.told, OccurredAt: recorded}); !got.Equal(want) {
			t.Errorf("%s: committed %v, want %v", name, got, want)
		}
	}
	before := time.Now()
	if got := Occurred(&event.Event{}); got.Before(before) || got.After(time.Now()) {
		t.Errorf("an event that tells no time occurred %v", got)
	}
}

func TestTheLagIsToldInSeconds(t *testing.T) {
	for lag, want := range map[time.Duration]string{0: "0.000", 1500 * time.Millisecond: "1.500", 400 * time.Microsecond: "0.000", time.Hour: "3600.000"} {
		w := httptest.NewRecorder()
		Tell(w, 7, lag)
		if w.Header().Get("Read-Model-Lag") != want || w.Header().Get("Read-Model-Version") != "7" {
			t.Errorf("%s: %v", lag, w.Header())
		}
	}
}
