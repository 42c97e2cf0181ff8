package console

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// seen is one look of a scenario: at so many seconds, with that commit, lag and age, owned or not.
type seen struct {
	at        float64
	committed int64
	lag       int64
	seconds   float64
	owned     bool
	want      Verdict
}

func TestVerdicts(t *testing.T) {
	for name, scenario := range map[string][]seen{
		"quiet for a day, without members": {
			{0, 5, 0, 0, false, OK}, {3600, 5, 0, 0, false, OK}, {86400, 5, 0, 0, false, OK},
		},
		"one late record on a quiet partition gets the whole patience": {
			{0, 5, 0, 0, true, OK}, {5, 5, 1, 1, true, OK}, {7, 5, 1, 3, true, Lagging}, {10, 5, 1, 6, true, Stalled},
		},
		"moves, never reaches the end, but is young": {
			{0, 0, 9, .3, true, OK}, {5, 50, 9, .3, true, OK}, {10, 99, 9, .3, true, OK}, {15, 150, 9, .3, true, OK},
		},
		"catches up from far behind": {
			{0, 0, 900, 300, true, Lagging}, {5, 300, 600, 200, true, Lagging}, {10, 600, 300, 100, true, Lagging}, {15, 900, 0, 0, true, OK},
		},
		"a member hangs": {
			{0, 5, 4, 1, true, OK}, {5, 5, 9, 6, true, Lagging}, {10, 5, 12, 11, true, Stalled}, {11, 6, 12, 11, true, Lagging},
		},
		"the last member left": {
			{0, 5, 4, 1, true, OK}, {5, 5, 9, 6, false, Lagging}, {10, 5, 12, 11, false, Stopped}, {12, 5, 12, 13, true, Stalled},
		},
		"rewound while stopped, and left alone": {
			{0, 50, 0, 0, false, OK}, {1, 10, 40, 99, false, Rewound}, {11, 10, 40, 109, false, Rewound}, {21, 10, 40, 119, false, Rewound},
			{31, 10, 40, 129, false, Rewound}, {41, 10, 40, 139, false, Rewound}, {51, 10, 40, 149, false, Rewound}, {61, 10, 40, 159, false, Stopped},
		},
		"rewound, reads again, passes the old mark": {
			{0, 50, 3, .1, true, OK}, {1, 10, 43, 9, true, Rewound}, {2, 30, 23, 9, true, Rewound}, {3, 49, 4, 9, true, Rewound}, {4, 50, 3, 1, true, OK},
		},
		"the commit was deleted, which is no rewind": {
			{0, 50, 3, 1, true, OK}, {1, -1, 53, 1, true, OK}, {2, 10, 43, 1, true, OK},
		},
		"nobody looked for a minute, so the wait begins anew": {
			{0, 5, 4, 1, true, OK}, {60, 5, 4, 61, true, Lagging}, {69, 5, 4, 70, true, Lagging}, {70, 5, 4, 71, true, Stalled},
		},
		"the end is unknown": {
			{0, 5, -1, -1, true, Unknown}, {1, 5, 0, 0, true, OK}, {2, 5, -1, -1, true, Unknown},
		},
		"the age is unknown, but it has not been at the end for long": {
			{0, 0, 9, -1, true, Lagging}, {1, 9, 0, 0, true, OK}, {2, 9, 5, -1, true, OK}, {11, 12, 5, -1, true, Lagging},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var p progress
			if v := p.verdict(limitsFor(0)); v != Unknown {
				t.Errorf("before the first look: %s, want UNKNOWN", v)
			}
			for _, s := range scenario {
				at := noon.Add(time.Duration(s.at * float64(time.Second)))
				p.observe(observation{at, s.committed, s.lag, s.seconds, s.owned}, limitsFor(0))
				if got := p.verdict(limitsFor(0)); got != s.want {
					t.Errorf("at %v s: %s, want %s", s.at, got, s.want)
				}
			}
		})
	}
}

// Whatever a group does: nothing to read is OK; STALLED and STOPPED need a commit that stood still for the
// whole patience with something to read all the while, watched; REWOUND needs a commit that went back.
func TestVerdictsAreDeservedWhateverHappens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := limitsFor(rapid.SampledFrom([]time.Duration{0, time.Second, time.Minute}).Draw(t, "delay"))
		var p progress
		var past []observation
		at := noon
		for range rapid.IntRange(1, 80).Draw(t, "looks") {
			at = at.Add(time.Duration(rapid.IntRange(200, 4000).Draw(t, "ms")) * time.Millisecond)
			o := observation{
				at: at, committed: int64(rapid.IntRange(-1, 6).Draw(t, "committed")), lag: int64(rapid.IntRange(-1, 4).Draw(t, "lag")),
				seconds: float64(rapid.IntRange(-1, 90).Draw(t, "seconds")), owned: rapid.Bool().Draw(t, "owned"),
			}
			if len(past) > 0 && rapid.Bool().Draw(t, "still") {
				o.committed = past[len(past)-1].committed
			}
			past = append(past, o)
			p.observe(o, limits)
			judge(t, past, p.verdict(limits), limits)
		}
	})
}

func judge(t *rapid.T, past []observation, got Verdict, limits Limits) {
	now := past[len(past)-1]
	stood, wentBack := true, false
	began := now.at
	for i := len(past) - 1; i >= 0 && stood; i-- {
		// Something came right after the last look that saw nothing: the wait is counted from there.
		if past[i].committed == now.committed {
			began = past[i].at
		}
		stood = past[i].committed == now.committed && past[i].lag != 0
	}
	for i := 1; i < len(past); i++ {
		wentBack = wentBack || past[i].committed >= 0 && past[i].committed < past[i-1].committed
	}
	still := now.at.Sub(began)
	switch {
	case now.lag < 0 && got != Unknown, now.lag == 0 && got != OK:
		t.Fatalf("lag %d is %s", now.lag, got)
	case (got == Stalled || got == Stopped) && still < limits.Patience:
		t.Fatalf("%s after standing for %v, patience %v", got, still, limits.Patience)
	case got == Stalled && !now.owned, got == Stopped && now.owned:
		t.Fatalf("%s with owned %v", got, now.owned)
	case got == Rewound && !wentBack:
		t.Fatalf("REWOUND without a commit that went back")
	case got == OK && now.lag > 0 && still >= limits.Patience+4*time.Second && !wentBack:
		t.Fatalf("OK after standing for %v before %d records", still, now.lag)
	}
}
