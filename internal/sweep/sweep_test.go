package sweep

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

func TestEveryRepeatsAtTheIntervalAndAtOnceWhileMoreWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		start := time.Now()
		var at []time.Duration
		err := Every(ctx, time.Second, slog.New(slog.DiscardHandler), "test", func(context.Context) (bool, error) {
			at = append(at, time.Since(start))
			if len(at) == 5 {
				cancel()
			}
			return len(at) == 2, nil
		})
		if err != nil {
			t.Errorf("ended with %v", err)
		}
		want := []time.Duration{0, time.Second, time.Second, 2 * time.Second, 3 * time.Second}
		for i := range want {
			if at[i] != want[i] {
				t.Fatalf("worked at %v, want %v", at, want)
			}
		}
	})
}

func TestEveryOutlivesAnOutageAndSlowsDownMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		away := time.Now().Add(time.Minute)
		var failures int
		var recovered time.Duration
		_ = Every(ctx, 100*time.Millisecond, slog.New(slog.DiscardHandler), "test", func(context.Context) (bool, error) {
			if time.Now().Before(away) {
				failures++
				return true, errors.New("the database is away")
			}
			recovered = time.Since(away)
			cancel()
			return false, nil
		})
		if failures < 5 || failures > 16 {
			t.Errorf("%d attempts in a minute of outage", failures)
		}
		if recovered > MaxBackoff+MaxBackoff/2 {
			t.Errorf("recovered %v after the outage", recovered)
		}
	})
}
