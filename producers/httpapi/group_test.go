package httpapi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// house is a group whose runs wait until they are let go.
type house struct {
	group[int]
	t    *testing.T
	over context.Context // ends what a failed test left behind
	mu   sync.Mutex
	runs []*stay // that have begun
	wait sync.WaitGroup
}

type stay struct {
	calls []int
	leave chan error
}

func newHouse(t *testing.T, lanes, most int) (*house, func()) {
	over, end := context.WithCancel(t.Context())
	h := &house{t: t, over: over}
	h.group = group[int]{lanes: lanes, most: most, run: func(_ context.Context, calls []int) error {
		s := &stay{calls: slices.Clone(calls), leave: make(chan error)}
		h.mu.Lock()
		h.runs = append(h.runs, s)
		h.mu.Unlock()
		select {
		case err := <-s.leave:
			return err
		case <-over.Done():
			return over.Err()
		}
	}}
	return h, func() {
		end()
		h.wait.Wait()
	}
}

// call makes a call, and returns where its error will be, once all that can happen has happened.
func (h *house) call(ctx context.Context, of int) <-chan error {
	over := make(chan error, 1)
	h.wait.Go(func() { over <- h.do(ctx, of) })
	synctest.Wait()
	return over
}

// end lets the nth run go.
func (h *house) end(n int, err error) {
	h.runs[n].leave <- err
	synctest.Wait()
}

func (h *house) shows(want ...string) {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	var runs []string
	for _, s := range h.runs {
		runs = append(runs, fmt.Sprint(s.calls))
	}
	if !slices.Equal(runs, want) {
		h.t.Fatalf("the runs are %v, want %v", runs, want)
	}
}

func is(t *testing.T, over <-chan error, want error) {
	t.Helper()
	select {
	case err := <-over:
		if !errors.Is(err, want) {
			t.Errorf("the error is %v, want %v", err, want)
		}
	default:
		t.Error("the call is not over")
	}
}

// Who finds a lane runs at once, who does not shares the next run; each hears of its own run alone.
func TestCallsThatWaitShareARun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, leave := newHouse(t, 2, 3)
		defer leave()
		bad := errors.New("bad")
		one, two := h.call(h.over, 1), h.call(h.over, 2)
		h.shows("[1]", "[2]")
		var later []<-chan error
		for n := 3; n <= 7; n++ {
			later = append(later, h.call(h.over, n))
		}
		h.shows("[1]", "[2]")
		h.end(0, nil)
		is(t, one, nil)
		h.shows("[1]", "[2]", "[3 4 5]")
		h.end(2, bad)
		for _, over := range later[:3] {
			is(t, over, bad)
		}
		h.shows("[1]", "[2]", "[3 4 5]", "[6 7]")
		h.end(3, nil)
		h.end(1, bad)
		is(t, two, bad)
		for _, over := range later[3:] {
			is(t, over, nil)
		}
		h.call(h.over, 8) // the lanes are free again
		h.call(h.over, 9)
		h.shows("[1]", "[2]", "[3 4 5]", "[6 7]", "[8]", "[9]")
		h.end(4, nil)
		h.end(5, nil)
	})
}

func TestACallThatLeavesIsNotRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, end := newHouse(t, 1, 8)
		defer end()
		ctx, leave := context.WithCancel(h.over)
		first, gone, last := h.call(h.over, 1), h.call(ctx, 2), h.call(h.over, 3)
		leave()
		synctest.Wait()
		is(t, gone, context.Canceled)
		h.end(0, nil)
		is(t, first, nil)
		h.shows("[1]", "[3]")
		h.end(1, nil)
		is(t, last, nil)
	})
}

// What has begun is heard to its end: whether it has happened nobody knows before.
func TestACallThatIsRunIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, end := newHouse(t, 1, 8)
		defer end()
		ctx, leave := context.WithCancel(h.over)
		first, second, third := h.call(ctx, 1), h.call(h.over, 2), h.call(ctx, 3)
		h.end(0, nil)
		is(t, first, nil)
		h.shows("[1]", "[2 3]")
		leave()
		synctest.Wait()
		if len(third) != 0 {
			t.Error("a call that is run was not waited for")
		}
		h.end(1, nil)
		is(t, second, nil)
		is(t, third, nil)
	})
}

// A run that panics takes down the request that made it, and neither the others nor its lane.
func TestARunThatPanicsIsNotTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leave := make(chan struct{})
		g := group[int]{lanes: 1, most: 8, run: func(_ context.Context, calls []int) error {
			<-leave
			if slices.Contains(calls, 2) {
				panic("secret")
			}
			return nil
		}}
		errs, panics := make(chan error, 3), make(chan any, 1)
		var wait sync.WaitGroup
		for _, of := range []int{1, 2, 3} { // the second leads the third
			wait.Go(func() {
				defer func() {
					if p := recover(); p != nil {
						panics <- p
					}
				}()
				errs <- g.do(t.Context(), of)
			})
			synctest.Wait()
		}
		close(leave)
		wait.Wait()
		if one, three := <-errs, <-errs; one != nil || !errors.Is(three, errNotRun) || <-panics != "secret" {
			t.Errorf("the errors are %v and %v", one, three)
		}
		if err := g.do(t.Context(), 4); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}

// Many callers, some of which leave: each is run once, or told that it was not, and no more at once than may.
func TestEveryCallIsRunOnce(t *testing.T) {
	const callers, each, lanes, most = 32, 200, 3, 5
	var running, ran atomic.Int64
	counts := make([]atomic.Int64, callers*each)
	g := group[int]{lanes: lanes, most: most, run: func(_ context.Context, calls []int) error {
		if n := running.Add(1); n > lanes || len(calls) > most {
			t.Errorf("%d runs at once, %d calls in one", n, len(calls))
		}
		defer running.Add(-1)
		ran.Add(1)
		for _, of := range calls {
			counts[of].Add(1)
		}
		return nil
	}}
	var wait sync.WaitGroup
	for caller := range callers {
		wait.Go(func() {
			for n := range each {
				ctx, leave := context.WithCancel(t.Context())
				if n%7 == 0 {
					leave()
				}
				of := caller*each + n
				err := g.do(ctx, of)
				leave()
				if times := counts[of].Load(); times > 1 || (times == 1) != (err == nil) {
					t.Errorf("call %d was run %d times, its error is %v", of, times, err)
				}
			}
		})
	}
	wait.Wait()
	if g.running != 0 || len(g.waiting) != 0 {
		t.Errorf("%d lanes are taken, %d calls wait", g.running, len(g.waiting))
	}
	t.Logf("%d calls in %d runs", callers*each, ran.Load())
}
