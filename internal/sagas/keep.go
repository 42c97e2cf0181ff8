package sagas

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"converge/consumers/event"
	"converge/internal/sweep"
)

const (
	sweepEvery = 250 * time.Millisecond // how late a deadline may strike
	countEvery = 5 * time.Second        // how old the gauges may be
)

// SweepLimit is how many sagas a sweep may end in one transaction; one that ended so many is called again at
// once.
const SweepLimit = 100

// Keep lets due do what is due, and reads the gauges by countSQL, until ctx ends; then it returns nil. It
// outlives outages of the database. due returns how many sagas it found, at most [SweepLimit]. countSQL returns
// state, number and age of the oldest in seconds.
func (m *Metrics) Keep(ctx context.Context, pool *pgxpool.Pool, countSQL string, log *slog.Logger, due func(context.Context) (int, error)) error {
	var g errgroup.Group
	g.Go(func() error {
		return sweep.Every(ctx, sweepEvery, log, m.kind.Saga+" deadlines", func(ctx context.Context) (bool, error) {
			n, err := due(ctx)
			return n == SweepLimit, err
		})
	})
	g.Go(func() error {
		return sweep.Every(ctx, countEvery, log, "open sagas: "+m.kind.Saga, func(ctx context.Context) (bool, error) {
			return false, m.Count(ctx, pool, countSQL)
		})
	})
	return g.Wait()
}

// Count reads the gauges.
func (m *Metrics) Count(ctx context.Context, pool *pgxpool.Pool, sql string) error {
	rows, err := pool.Query(ctx, sql)
	if err != nil {
		return fmt.Errorf("counting open sagas: %w", err)
	}
	counts, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Counted])
	if err != nil {
		return fmt.Errorf("counting open sagas: %w", err)
	}
	m.Open(counts)
	return nil
}

const (
	// visibleWithin bounds how long after an event was recorded its saga may be committed and not yet seen.
	visibleWithin = time.Second
	visiblePause  = 10 * time.Millisecond
)

// Await returns what lock finds of the sagas of the events, ids[i] being that of events[i]. What is not there is
// waited for while its event is young: the relay reads a transaction from the log when its commit is on disk,
// and its own server shows it to others only a moment later, once the committing process has had the processor.
// A reply can be back before that. It blocks for [visibleWithin] at most.
func Await[T any](ctx context.Context, events []*event.Event, ids []uuid.UUID, lock func() (map[uuid.UUID]T, error)) (map[uuid.UUID]T, error) {
	for began := time.Now(); ; {
		found, err := lock()
		if err != nil {
			return nil, err
		}
		awaited := false
		for i, e := range events {
			_, there := found[ids[i]]
			awaited = awaited || !there && time.Since(e.RecordedAt).Abs() < visibleWithin
		}
		if !awaited || time.Since(began) > visibleWithin {
			return found, nil
		}
		select {
		case <-time.After(visiblePause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
