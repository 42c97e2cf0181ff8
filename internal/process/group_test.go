package process

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestPartsStopInReverseOrderEachBeforeTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		var stopped []string
		for _, name := range []string{"database", "relay", "services"} {
			g.Add(name, func(ctx context.Context) error {
				<-ctx.Done()
				<-time.After(time.Second) // longer for those that others lean on would show in the order
				stopped = append(stopped, name)
				return ctx.Err()
			})
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		if err := g.Run(ctx); err != nil {
			t.Errorf("a clean drain returned %v", err)
		}
		if want := []string{"services", "relay", "database"}; !slices.Equal(stopped, want) {
			t.Errorf("stopped %v, want %v", stopped, want)
		}
	})
}

func TestTheFirstFailureEndsTheGroupAndIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boom := errors.New("boom")
		var g Group
		waited := false
		g.Add("steady", func(ctx context.Context) error { <-ctx.Done(); waited = true; return nil })
		g.Add("faulty", func(context.Context) error { return boom })
		err := g.Run(t.Context())
		if !errors.Is(err, boom) || err.Error() != "faulty: boom" {
			t.Errorf("Run returned %v, want faulty: boom", err)
		}
		if !waited {
			t.Error("Run returned before the steady part had")
		}
	})
}

func TestAPartThatEndsByItselfEndsTheGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group
		g.Add("short", func(context.Context) error { return nil })
		if err := g.Run(t.Context()); err == nil {
			t.Error("Run returned nil although a part left")
		}
	})
}

func TestADrainThatTakesTooLongNamesThePart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := Group{Drain: time.Second}
		release := make(chan struct{})
		g.Add("deaf", func(context.Context) error { <-release; return nil })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err := g.Run(ctx)
		if !errors.Is(err, ErrDrain) || err.Error() != "deaf: did not stop in time" {
			t.Errorf("Run returned %v, want that deaf did not stop in time", err)
		}
		close(release)
	})
}
