package partitions_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/internal/partitions"
	"converge/internal/pgtest"
)

var today = time.Date(2026, 3, 20, 23, 30, 0, 0, time.FixedZone("", 2*3600)) // 21:30 in UTC

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func table(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), pgtest.URL(t))
	must(t, err)
	t.Cleanup(pool.Close)
	_, err = pool.Exec(t.Context(), `
		CREATE TABLE moments (at timestamptz NOT NULL, n int NOT NULL DEFAULT 7, PRIMARY KEY (n, at)) PARTITION BY RANGE (at);
		CREATE TABLE moments_default PARTITION OF moments DEFAULT`)
	must(t, err)
	return pool
}

func insert(t *testing.T, pool *pgxpool.Pool, at time.Time) (place string) {
	t.Helper()
	must(t, pool.QueryRow(t.Context(), "INSERT INTO moments (at) VALUES ($1) RETURNING tableoid::regclass::text", at).Scan(&place))
	return place
}

func TestDaysAreUTCAndMadeAhead(t *testing.T) {
	t.Parallel()
	pool := table(t)
	must(t, partitions.Make(t.Context(), pool, "moments", today, 2))
	want := []string{"moments_20260319", "moments_20260320", "moments_20260321", "moments_20260322"}
	if names, err := partitions.List(t.Context(), pool, "moments"); err != nil || !slices.Equal(names, want) {
		t.Errorf("partitions %v, want %v (%v)", names, want, err)
	}
	midnight := time.Date(2026, 3, 21, 0, 0, 0, 0, time.UTC)
	for at, want := range map[time.Time]string{midnight.Add(-time.Microsecond): "moments_20260320", midnight: "moments_20260321", midnight.AddDate(0, 0, 9): "moments_default"} {
		if got := insert(t, pool, at); got != want {
			t.Errorf("%v stands in %s, want %s", at, got, want)
		}
	}
	_, err := pool.Exec(t.Context(), "INSERT INTO moments (at) VALUES ($1)", midnight)
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != "23505" {
		t.Errorf("a partition without its parent's key: %v", err)
	}
}

func TestProcessesThatMakeTheSameDaysAtOnceAllSucceed(t *testing.T) {
	t.Parallel()
	pool := table(t)
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			if err := partitions.Make(t.Context(), pool, "moments", today, 3); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if names, err := partitions.List(t.Context(), pool, "moments"); err != nil || len(names) != 5 {
		t.Errorf("partitions %v, %v", names, err)
	}
}

func TestADayWhoseRowsStandInTheDefaultPartitionStaysThere(t *testing.T) {
	t.Parallel()
	pool := table(t)
	insert(t, pool, today)
	tx, err := pool.Begin(t.Context())
	must(t, err)
	defer tx.Rollback(context.Background())
	_, err = tx.Exec(t.Context(), "INSERT INTO moments VALUES ($1, 1)", today)
	must(t, err)
	if err := partitions.Make(t.Context(), pool, "moments", today, 0); err == nil {
		t.Error("the default partition was locked under its writer")
	}
	must(t, tx.Commit(t.Context()))
	must(t, partitions.Make(t.Context(), pool, "moments", today, 1))
	if names, err := partitions.List(t.Context(), pool, "moments"); err != nil || !slices.Equal(names, []string{"moments_20260319", "moments_20260321"}) {
		t.Errorf("partitions %v, %v", names, err)
	}
	if got := insert(t, pool, today.Add(time.Minute)); got != "moments_default" {
		t.Errorf("a row of that day stands in %s", got)
	}
}

func TestATableThatStandsInTheWayIsAnError(t *testing.T) {
	t.Parallel()
	pool := table(t)
	_, err := pool.Exec(t.Context(), "CREATE TABLE moments_20260320 (LIKE moments)")
	must(t, err)
	if err := partitions.Make(t.Context(), pool, "moments", today, 0); err == nil {
		t.Error("a table that is no partition was taken for one")
	}
}

func TestABriefLockLeavesRoomForWritersAndGivesUpAtTheEnd(t *testing.T) {
	t.Parallel()
	pool := table(t)
	writer, err := pool.Begin(t.Context())
	must(t, err)
	defer writer.Rollback(context.Background())
	_, err = writer.Exec(t.Context(), "INSERT INTO moments VALUES ($1, 1)", today)
	must(t, err)
	tries := 0
	must(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		return partitions.Briefly(t.Context(), tx, func(tx pgx.Tx) error {
			if tries++; tries == 3 {
				must(t, writer.Commit(t.Context()))
			}
			_, err := tx.Exec(t.Context(), "LOCK TABLE moments")
			if tries < 3 {
				insert(t, pool, today.Add(time.Duration(tries)*time.Hour)) // the lock is not even waited for any more
			}
			return err
		})
	}))
	if tries != 3 {
		t.Errorf("%d tries", tries)
	}
}

func TestPartitionsOfOthersAreLeftAlone(t *testing.T) {
	t.Parallel()
	pool := table(t)
	must(t, partitions.Make(t.Context(), pool, "moments", today, 0))
	_, err := pool.Exec(t.Context(), `
		CREATE TABLE moments_2020 PARTITION OF moments FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
		CREATE TABLE moments_20190101_old PARTITION OF moments FOR VALUES FROM ('2019-01-01') TO ('2019-01-02')`)
	must(t, err)
	names, kept, err := partitions.Expired(t.Context(), pool, "moments", today.AddDate(0, 0, 10), 10*partitions.Day)
	if err != nil || !slices.Equal(names, []string{"moments_20260319"}) || !kept.Equal(partitions.Start(today)) {
		t.Errorf("expired %v, kept from %v, %v", names, kept, err)
	}
}
