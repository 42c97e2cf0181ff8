package analytics

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"converge/consumers/event"
	"converge/internal/pgtest"
	"converge/internal/profiletest"
)

var follower = profiletest.Follower{Name: "analytics", Migrations: Migrations, Path: "/analytics/profiles", Journal: "profile_changes",
	New: func(pool *pgxpool.Pool, decoder event.Decoder) profiletest.Service {
		return New(Config{Pool: pool, Decoder: decoder})
	}}

func TestAnalyticsFollowsProfiles(t *testing.T) { profiletest.Run(t, follower) }

// A batch is taken in as if its events came one by one.
func TestABatchIsTakenInAsIfOneByOne(t *testing.T) {
	w := follower.World(t)
	if err := w.Deliver(t.Context(), profiletest.Updated(t, "u-1", 2)); err != nil {
		t.Fatal(err)
	}
	twice := profiletest.Updated(t, "u-2", 1)
	if err := w.Deliver(t.Context(), profiletest.Updated(t, "u-1", 1), profiletest.Updated(t, "u-2", 3), profiletest.Updated(t, "u-1", 3), twice, profiletest.Updated(t, "u-1", 5),
		profiletest.Updated(t, "u-1", 4), twice, profiletest.Updated(t, "u-1", 5), profiletest.Updated(t, "u-3", 1)); err != nil {
		t.Fatal(err)
	}
	for user, want := range map[string][]string{
		"u-1": {"v2", "v1 superseded", "v3", "v5", "v4 superseded", "v5 superseded"},
		"u-2": {"v3", "v1 superseded"},
		"u-3": {"v1"},
	} {
		if diff := cmp.Diff(want, w.Journal(user)); diff != "" {
			t.Errorf("%s:\n%s", user, diff)
		}
	}
	for user, version := range map[string]int64{"u-1": 5, "u-2": 3, "u-3": 1} {
		if p, _ := w.Shown(user); p.Version != version || p.DisplayName != fmt.Sprint("version ", version) || !p.UpdatedAt.Equal(profiletest.Epoch.Add(time.Duration(version)*time.Second)) {
			t.Errorf("%s: %+v", user, p)
		}
	}
	old := profiletest.Updated(t, "u-3", 1) // a batch in which nothing is new
	if err := w.Deliver(t.Context(), old, profiletest.Updated(t, "u-1", 1)); err != nil {
		t.Fatal(err)
	}
	if p, _ := w.Shown("u-3"); p.Version != 1 {
		t.Errorf("%+v", p)
	}
}

// Two batches with the same users in opposite orders do not deadlock, also when nobody knows the users yet:
// each has begun with its first user when both wait for the one in the middle.
func TestBatchesOfTheSameUsersDoNotDeadlock(t *testing.T) {
	w := follower.World(t)
	batch := func(partition int32, version int64, users ...string) (events []*event.Event) {
		for _, user := range users {
			e := profiletest.Updated(t, user, version)
			e.Partition = partition
			events = append(events, e)
		}
		return events
	}
	var g errgroup.Group
	if err := pgx.BeginFunc(t.Context(), w.Pool, func(tx pgx.Tx) error {
		if err := w.Apply(t.Context(), tx, batch(1, 1, "m")...); err != nil {
			return err
		}
		g.Go(func() error { return w.Deliver(t.Context(), batch(2, 2, "a", "m", "z")...) })
		g.Go(func() error { return w.Deliver(t.Context(), batch(3, 3, "z", "m", "a")...) })
		pgtest.AwaitBlocked(t, w.URL, 2)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"a", "m", "z"} {
		if p, _ := w.Shown(user); p.Version != 3 {
			t.Errorf("%+v", p)
		}
	}
}

// Of two transactions that hear of a user for the first time, the later waits, and compares again.
func TestAFirstVersionThatComesLateChangesNothing(t *testing.T) {
	w := follower.World(t)
	newer, older := profiletest.Updated(t, "u-1", 5), profiletest.Updated(t, "u-1", 3)
	newer.Partition, older.Partition = 1, 2
	var g errgroup.Group
	if err := pgx.BeginFunc(t.Context(), w.Pool, func(tx pgx.Tx) error {
		if err := w.Apply(t.Context(), tx, newer); err != nil {
			return err
		}
		g.Go(func() error { return w.Deliver(t.Context(), older) })
		pgtest.AwaitBlocked(t, w.URL, 1)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if p, _ := w.Shown("u-1"); p.Version != 5 || p.DisplayName != "version 5" {
		t.Errorf("%+v", p)
	}
}
