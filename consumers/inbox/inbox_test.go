package inbox_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/consumers/inbox"
	"converge/internal/database"
	"converge/internal/pgtest"
)

func open(t *testing.T) *pgxpool.Pool {
	t.Helper()
	url := pgtest.Database(t, "inbox", func(ctx context.Context, url string) error {
		return database.Migrate(ctx, url, database.Module{Service: "billing", Sets: []database.Set{{Name: "inbox", FS: inbox.Migrations}}})
	})
	pool, err := database.Open(t.Context(), url, "billing", 12)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func entry(id uuid.UUID) inbox.Entry { return inbox.Entry{ID: id, Day: inbox.Day(id, time.Time{})} }

func TestOfManyDeliveriesAtOnceOneIsFresh(t *testing.T) {
	pool := open(t)
	for _, id := range []uuid.UUID{uuid.Must(uuid.NewV7()), uuid.New()} {
		var fresh int
		var mu sync.Mutex
		var wait sync.WaitGroup
		for range 10 {
			wait.Go(func() {
				if err := pgx.BeginFunc(context.Background(), pool, func(tx pgx.Tx) error {
					first, err := inbox.Once(context.Background(), tx, "billing", entry(id))
					if first {
						mu.Lock()
						defer mu.Unlock()
						fresh++
					}
					return err
				}); err != nil {
					t.Error(err)
				}
			})
		}
		wait.Wait()
		if fresh != 1 {
			t.Errorf("%d deliveries of %s are fresh", fresh, id)
		}
	}
}

func TestADeliveryThatIsRolledBackLeavesTheEventFresh(t *testing.T) {
	pool, e := open(t), entry(uuid.New())
	for range 2 {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if fresh, err := inbox.Once(t.Context(), tx, "billing", e); err != nil || !fresh {
			t.Errorf("fresh is %v, error %v", fresh, err)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEachConsumerHasAnInboxOfItsOwn(t *testing.T) {
	pool, e := open(t), entry(uuid.New())
	for _, consumer := range []string{"billing", "analytics"} {
		if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			fresh, err := inbox.Once(t.Context(), tx, consumer, e)
			if !fresh {
				t.Errorf("not fresh for %s", consumer)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// Two partitions that get the same re-sent stretch, each in its own order, insert the same rows.
func TestBatchesOfTheSameEventsDoNotDeadlock(t *testing.T) {
	pool := open(t)
	entries := make([]inbox.Entry, 200)
	for i := range entries {
		entries[i] = entry(uuid.New())
	}
	backwards := make([]inbox.Entry, len(entries))
	for i, e := range entries {
		backwards[len(entries)-1-i] = e
	}
	var wait sync.WaitGroup
	for i := range 12 {
		wait.Go(func() {
			list := entries
			if i%2 == 1 {
				list = backwards
			}
			if err := pgx.BeginFunc(context.Background(), pool, func(tx pgx.Tx) error {
				var batch pgx.Batch
				inbox.Queue(&batch, "billing", list, func(_, _ []uuid.UUID) {})
				return tx.SendBatch(context.Background(), &batch).Close()
			}); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
}

func TestTheDayDependsOnTheEventAlone(t *testing.T) {
	day := time.Date(2024, 7, 15, 0, 0, 0, 0, time.UTC)
	v7 := uuid.MustParse("0190b5a0-7c3e-7cc2-8f2f-0123456789ab") // 2024-07-15
	v4 := uuid.MustParse("6f1f3f0e-53a7-4b9c-8f0d-0c6f1a1f7f31")
	other := time.Date(2026, 1, 2, 23, 59, 0, 0, time.FixedZone("", -3600))
	for name, c := range map[string]struct {
		id       uuid.UUID
		occurred time.Time
		want     time.Time
	}{
		"a UUIDv7 tells":            {v7, other, day},
		"a UUIDv7 alone":            {v7, time.Time{}, day},
		"when it occurred, in UTC":  {v4, other, time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC)},
		"nothing tells: a constant": {v4, time.Time{}, time.Unix(0, 0).UTC()},
	} {
		if got := inbox.Day(c.id, c.occurred); !got.Equal(c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}
