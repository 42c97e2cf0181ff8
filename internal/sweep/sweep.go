// Package sweep does a piece of work again and again: looking for rows that are due, say.
//
// The guarantee: the work is done at least once per interval for as long as it succeeds, at once again
// while it says that more waits, and failures neither end the loop nor hammer what is down: they are
// logged and retried ever more slowly, up to [MaxBackoff]. It fails to hold when the work itself never
// returns.
package sweep

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"
)

// MaxBackoff is the longest pause between two failing attempts.
const MaxBackoff = 10 * time.Second

// Every calls work now and then every interval until ctx ends; then it returns nil. work says whether
// more of it waits. Pauses are stretched at random by up to a half after failures, so that processes
// that failed together do not return together. It starts no goroutine.
func Every(ctx context.Context, interval time.Duration, log *slog.Logger, name string, work func(context.Context) (more bool, err error)) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	pause := interval
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		more, err := work(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			pause = min(2*pause, MaxBackoff)
			log.WarnContext(ctx, "sweeping, will try again", "sweep", name, "error", err, "pause", pause)
			timer.Reset(pause + rand.N(pause/2+1))
			continue
		case more:
			timer.Reset(0)
		default:
			timer.Reset(interval)
		}
		pause = interval
	}
}
