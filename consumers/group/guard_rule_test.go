package group

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"converge/consumers/retry"
)

func TestTheGuardTellsABadDeployFromBadEvents(t *testing.T) {
	trouble := errors.New("trouble")
	keys := func(from, n int, err error) (f []retry.Failure) {
		for i := range n {
			f = append(f, retry.Failure{Err: err, Attempts: from + i})
		}
		return f
	}
	key := func(f retry.Failure) string { return fmt.Sprint(f.Attempts) }
	type step struct {
		after   time.Duration
		applied int
		failed  []retry.Failure
		stops   bool
	}
	for name, steps := range map[string][]step{
		"many keys at once":                  {{0, 0, keys(0, 10, trouble), true}},
		"many keys, one by one":              {{0, 0, keys(0, 9, trouble), false}, {time.Second, 0, keys(9, 1, trouble), true}},
		"one key often":                      {{0, 0, keys(0, 1, trouble), false}, {1, 0, keys(0, 1, trouble), false}, {2, 0, append(keys(0, 1, trouble), keys(0, 1, trouble)...), false}},
		"few keys":                           {{0, 0, keys(0, 9, trouble), false}},
		"many keys among more that are well": {{0, 5, keys(0, 5, trouble), false}, {time.Second, 5, keys(5, 5, trouble), false}},
		"what was well long ago":             {{0, 100, nil, false}, {2 * time.Minute, 9, keys(0, 10, trouble), true}},
		"what failed long ago":               {{0, 0, keys(0, 9, trouble), false}, {2 * time.Minute, 0, keys(9, 9, trouble), false}},
		"nothing fails":                      {{0, 10, nil, false}},
		"records without a type":             {{0, 0, keys(0, 20, errNoType), false}},
		"events that the inbox forgot":       {{0, 0, keys(0, 20, errForgotten), false}},
		"nobody fails while it is stopped":   {{0, 0, keys(0, 10, trouble), true}, {time.Second, 3, nil, false}},
		"still bad":                          {{0, 0, keys(0, 10, trouble), true}, {50 * time.Second, 0, keys(0, 9, trouble), true}, {59 * time.Second, 0, keys(0, 9, trouble), true}},
		"few are left, and those are bad":    {{0, 0, keys(0, 10, trouble), true}, {50 * time.Second, 0, keys(0, 1, trouble), true}, {61 * time.Second, 0, keys(0, 1, trouble), false}},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuard(Guard{Keys: 10})
			epoch := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
			for i, s := range steps {
				err := g.admit(epoch.Add(s.after), s.applied, key, s.failed...)
				if (err != nil) != s.stops || s.stops && !errors.Is(err, ErrGuard) {
					t.Fatalf("step %d: %v", i, err)
				}
			}
		})
	}
	if err := newGuard(Guard{Keys: -1}).admit(time.Now(), 0, key, keys(0, 1000, trouble)...); err != nil {
		t.Errorf("without a guard: %v", err)
	}
}
