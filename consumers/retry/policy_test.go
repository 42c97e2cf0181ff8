package retry_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"converge/consumers/retry"
)

func TestTopicsAreNamedAfterTopicGroupAndDelay(t *testing.T) {
	policy := retry.Policy{Rungs: []time.Duration{250 * time.Millisecond, time.Second, 90 * time.Second, 10 * time.Minute, 2 * time.Hour}}
	want := []string{"orders.billing.retry.250ms", "orders.billing.retry.1s", "orders.billing.retry.90s",
		"orders.billing.retry.10m", "orders.billing.retry.2h", "orders.billing.dlq"}
	if diff := cmp.Diff(want, retry.Topics("orders", "billing", policy)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want[:5], retry.WakeTopics("orders", "billing", policy)); diff != "" {
		t.Error(diff)
	}
	defaults := []string{"t.g.retry.1s", "t.g.retry.10s", "t.g.retry.1m", "t.g.retry.10m", "t.g.dlq"}
	if diff := cmp.Diff(defaults, retry.Topics("t", "g", retry.Policy{})); diff != "" {
		t.Error(diff)
	}
}

func TestAPolicyThatCannotBeFollowedIsRefused(t *testing.T) {
	for name, bad := range map[string]retry.Policy{
		"falling rungs":     {Rungs: []time.Duration{time.Minute, time.Second}},
		"equal rungs":       {Rungs: []time.Duration{time.Second, time.Second}},
		"a rung of nothing": {Rungs: []time.Duration{0, time.Second}},
		"negative attempts": {MaxAttempts: -1},
		"negative age":      {MaxAge: -time.Second},
	} {
		if bad.Validate() == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := (retry.Policy{}).Validate(); err != nil {
		t.Errorf("the default policy: %v", err)
	}
}

func TestAnEventDiesByAttemptsOrByAge(t *testing.T) {
	now := time.Now()
	policy := retry.Policy{MaxAttempts: 3, MaxAge: time.Minute}
	for _, c := range []struct {
		attempts int
		age      time.Duration
		want     bool
	}{{1, 0, false}, {2, time.Minute, false}, {3, 0, true}, {4, 0, true}, {1, time.Minute + 1, true}} {
		if got := policy.Exhausted(c.attempts, now.Add(-c.age), now); got != c.want {
			t.Errorf("%d attempts in %v: exhausted is %v", c.attempts, c.age, got)
		}
	}
	if (retry.Policy{}).Exhausted(9, now, now) || !(retry.Policy{}).Exhausted(10, now, now) {
		t.Error("the default is not 10 attempts")
	}
}

func TestRungsClimbAndStayOnTheLast(t *testing.T) {
	var got []string
	for attempts := range 7 {
		got = append(got, retry.Policy{}.RungName(attempts))
	}
	if want := []string{"1s", "1s", "10s", "1m", "10m", "10m", "10m"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
