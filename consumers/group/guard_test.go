package group_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"converge/consumers/event"
	"converge/consumers/group"
)

// A build that cannot handle anything stops in front of the events, and the next one finds them all.
func TestABadDeployStopsTheGroupAndBlamesNoEvent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	list := facts(200, 60, 2)
	var bad atomic.Bool
	var refused atomic.Int64
	bad.Store(true)
	w.produce(list...)
	cfg := w.config(tally{"a", func(context.Context, *event.Event) error {
		if bad.Load() {
			refused.Add(1)
			return event.Permanent(errors.New("column \"kind\" is not known"))
		}
		return nil
	}})
	cfg.Guard = group.Guard{Keys: 10}
	m := w.start(cfg)
	eventually(t, "the group stops, and looks again", func() error {
		if n := refused.Load(); w.blames() == 0 && (n < 400 || m.Ready() == nil) {
			return fmt.Errorf("%d refusals", n)
		}
		return nil
	})
	w.nothingCounted()
	const tripped = `
# HELP converge_consumer_guard_tripped 1 while the group has stopped because the events of many keys fail: a bad deploy.
# TYPE converge_consumer_guard_tripped gauge
converge_consumer_guard_tripped{group="tally"} %d
`
	shows := func(n int) error {
		return testutil.GatherAndCompare(m.registry, strings.NewReader(fmt.Sprintf(tripped, n)), "converge_consumer_guard_tripped")
	}
	if err := shows(1); err != nil {
		t.Error(err)
	}
	bad.Store(false)
	w.settled()
	w.check(list, nil)
	w.nothingCounted()
	eventually(t, "the group is ready again", m.Ready)
	if err := shows(0); err != nil {
		t.Error(err)
	}
}

// Keys that were held before the bad deploy do not climb their ladders in it.
func TestABadDeployDoesNotBuryWhatWaits(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.relay()
	list := facts(40, 40, 1)
	var bad atomic.Bool
	var tries atomic.Int64
	w.produce(list[:8]...)
	cfg := w.config(tally{"a", func(_ context.Context, e *event.Event) error {
		if bad.Load() {
			if e.Attempt > 0 {
				tries.Add(1)
			}
			return event.RetryAfter(errors.New("no such column"), 3*time.Second)
		}
		return nil
	}})
	cfg.Guard, cfg.Retry.MaxAttempts = group.Guard{Keys: 9}, 2
	bad.Store(true)
	w.start(cfg)
	eventually(t, "eight keys are held", func() error {
		if n := ask[int](w, "SELECT count(*) FROM held_keys"); n != 8 {
			return fmt.Errorf("%d keys", n)
		}
		return nil
	})
	w.produce(list[8:]...)
	eventually(t, "the group tries a head again and again", func() error {
		if n := tries.Load(); n < 3 && len(w.letters()) == 0 {
			return fmt.Errorf("%d tries", n)
		}
		return nil
	})
	if letters := w.letters(); len(letters) != 0 {
		t.Errorf("dead: %v", letters)
	}
	bad.Store(false)
	w.settled()
	w.check(list, nil)
	if letters := w.letters(); len(letters) != 0 {
		t.Errorf("dead: %v", letters)
	}
}
