package group

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"converge/consumers/event"
	"converge/consumers/inbox"
	"converge/consumers/retry"
	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/producers/outbox"
)

// house is a store, and what a test wants to know of it beside.
type house struct {
	store
	redrive func(ctx context.Context, topic, key string) ([]uuid.UUID, error)
	discard func(ctx context.Context, id uuid.UUID) error
	effects func() []uuid.UUID
	wakes   func() []retry.Wake // in the order in which they were written
	letters func() map[uuid.UUID]fateOf
	// age makes all that is held so much older.
	age func(time.Duration)
	// blocked returns when so many transactions wait for another's lock.
	blocked func(int)
}

// fateOf is what a dead letter says.
type fateOf struct {
	State            string
	Attempts, Deaths int
}

const (
	storeTopic    = "orders"
	storeConsumer = "tally"
	storePatience = 30 * time.Second
)

var storePolicy = retry.Policy{Rungs: []time.Duration{10 * time.Millisecond, time.Hour}}

func inMemory(t *testing.T) house {
	ladder := retry.Ladder{Consumer: storeConsumer, Policy: storePolicy}
	m := newMemoryDB(1).member(ladder)
	return house{store: m, redrive: m.redrive, discard: m.discard,
		effects: func() (ids []uuid.UUID) {
			m.mu.Lock()
			defer m.mu.Unlock()
			for _, e := range m.memoryDB.effects {
				ids = append(ids, e.id)
			}
			return ids
		},
		wakes: func() (wakes []retry.Wake) {
			m.mu.Lock()
			defer m.mu.Unlock()
			for _, o := range m.outbox {
				if strings.Contains(o.topic, ".retry.") {
					wakes = append(wakes, wakeOf(t, o.headers))
				}
			}
			return wakes
		},
		letters: func() map[uuid.UUID]fateOf {
			m.mu.Lock()
			defer m.mu.Unlock()
			found := map[uuid.UUID]fateOf{}
			for id, l := range m.memoryDB.letters {
				found[id] = fateOf{l.state, l.attempts, l.deaths}
			}
			return found
		},
		age: func(d time.Duration) {
			m.mu.Lock()
			defer m.mu.Unlock()
			for k, h := range m.held {
				h.dueAt, h.nudgedAt = h.dueAt.Add(-d), h.nudgedAt.Add(-d)
				m.held[k] = h
			}
		},
		blocked: func(n int) {
			await(t, "transactions wait for a lock", func() bool {
				m.mu.Lock()
				defer m.mu.Unlock()
				waiting := 0
				for tx := range m.open {
					if len(tx.waits) > 0 {
						waiting++
					}
				}
				return waiting >= n
			})
		}}
}

var storeEffects = fstest.MapFS{"migrations/00001_effects.sql": {Data: []byte(`-- +goose Up
CREATE TABLE effects (n bigint GENERATED ALWAYS AS IDENTITY, event_id uuid, key text, seq int, applied_by text, attempt int);
`)}}

func inPostgreSQL(t *testing.T) house {
	url := pgtest.Database(t, "stores", func(ctx context.Context, url string) error {
		return database.Migrate(ctx, url, database.Module{Service: storeConsumer, Sets: []database.Set{
			{Name: "outbox", FS: outbox.Migrations}, {Name: "inbox", FS: inbox.Migrations}, {Name: "retry", FS: retry.Migrations},
			{Name: "effects", FS: storeEffects}}})
	})
	pool, err := database.Open(t.Context(), url, storeConsumer, 8)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	ladder := retry.Ladder{Consumer: storeConsumer, Policy: storePolicy}
	query := func(sql string, args ...any) pgx.Rows {
		rows, err := pool.Query(t.Context(), sql, args...)
		if err != nil {
			t.Fatal(err)
		}
		return rows
	}
	collect := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	return house{store: newTables(Config{Pool: pool, BatchTime: 20 * time.Second}, ladder),
		redrive: func(ctx context.Context, topic, key string) ([]uuid.UUID, error) {
			return ladder.Redrive(ctx, pool, topic, key, retry.Decision{})
		},
		discard: func(ctx context.Context, id uuid.UUID) error { return ladder.Discard(ctx, pool, id, retry.Decision{}) },
		effects: func() []uuid.UUID {
			ids, err := pgx.CollectRows(query("SELECT event_id FROM effects ORDER BY n"), pgx.RowTo[uuid.UUID])
			collect(err)
			return ids
		},
		wakes: func() (wakes []retry.Wake) {
			headers, err := pgx.CollectRows(query("SELECT headers FROM outbox WHERE topic LIKE '%.retry.%' ORDER BY seq"), pgx.RowTo[map[string]string])
			collect(err)
			for _, h := range headers {
				wakes = append(wakes, wakeOf(t, h))
			}
			return wakes
		},
		letters: func() map[uuid.UUID]fateOf {
			found := map[uuid.UUID]fateOf{}
			var id uuid.UUID
			var f fateOf
			_, err := pgx.ForEachRow(query("SELECT event_id, state, attempts, deaths FROM dead_letters"),
				[]any{&id, &f.State, &f.Attempts, &f.Deaths}, func() error { found[id] = f; return nil })
			collect(err)
			return found
		},
		age: func(d time.Duration) {
			query("UPDATE held_keys SET due_at = due_at - $1::interval, nudged_at = nudged_at - $1::interval", d).Close()
		},
		blocked: func(n int) { pgtest.AwaitBlocked(t, url, n) }}
}

func wakeOf(t *testing.T, headers map[string]string) retry.Wake {
	token, err := strconv.ParseInt(headers["token"], 10, 64)
	due, dueErr := time.Parse(time.RFC3339Nano, headers["not_before"])
	if err := errors.Join(err, dueErr); err != nil {
		t.Errorf("a wake-up of %v: %v", headers, err)
	}
	return retry.Wake{Topic: headers["origin_topic"], Key: headers["hold_key"], Token: token, NotBefore: due}
}

// await polls until it is so.
func await(t *testing.T, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(storePatience)
	for !so() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within %v", what, storePatience)
		}
	}
}

var storeOffset atomic.Int64

// storeEvent returns an event of the key with an id and an offset of its own.
func storeEvent(key string) *event.Event {
	id := uuid.New()
	e := &event.Event{Topic: storeTopic, Offset: storeOffset.Add(1), Key: []byte(key), Value: []byte("7"), RecordedAt: time.Now().UTC().Truncate(time.Millisecond),
		Headers: []event.Header{{Key: "event_id", Value: []byte(id.String())}, {Key: "event_type", Value: []byte("Counted")}}}
	e.Identify()
	return e
}

func refused(e *event.Event) retry.Failure {
	return retry.Failure{Event: e, Err: errors.New("no stock"), Attempts: 1, FirstAt: time.Now()}
}

func idsOf(events ...*event.Event) []uuid.UUID {
	ids := make([]uuid.UUID, len(events))
	for i, e := range events {
		ids[i] = e.ID
	}
	return ids
}

func same[T any](t *testing.T, what string, want, got T) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(partition{}, gauges{})); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// batchOf is the next batch of a partition whose stored offset is at.
func batchOf(id int32, at int64, events ...*event.Event) batch {
	return batch{partition: partition{storeTopic, id}, expected: at, next: at + int64(len(events)), events: events}
}

// took takes a batch on that must be there to be taken.
func (h house) took(t *testing.T, b batch) taken {
	t.Helper()
	_, err := h.readStored(t.Context(), []partition{b.partition})
	ok(t, err)
	took, err := h.takeOn(t.Context(), b)
	ok(t, err)
	return took
}

func addEffect(ctx context.Context, tx pgx.Tx, e *event.Event, by string) error {
	_, err := tx.Exec(ctx, addEffectSQL, e.ID, string(e.Key), 0, by, e.Attempt)
	return err
}

// hold holds the keys of the events; the first of each is its head.
func (h house) hold(t *testing.T, events ...*event.Event) {
	t.Helper()
	var heads []retry.Failure
	seen := map[string]bool{}
	for _, e := range events {
		if !seen[string(e.Key)] {
			heads = append(heads, refused(e))
		}
		seen[string(e.Key)] = true
	}
	tx, err := h.begin(t.Context())
	ok(t, err)
	ok(t, h.Hold(t.Context(), tx, storeTopic, heads, events))
	ok(t, tx.Commit(t.Context()))
}

// bury makes events dead letters.
func (h house) bury(t *testing.T, events ...*event.Event) {
	t.Helper()
	tx, err := h.begin(t.Context())
	ok(t, err)
	for _, e := range events {
		ok(t, h.Bury(t.Context(), tx, []retry.Failure{refused(e)}))
	}
	ok(t, tx.Commit(t.Context()))
}

// last returns the newest wake-up.
func (h house) last(t *testing.T) retry.Wake {
	t.Helper()
	wakes := h.wakes()
	if len(wakes) == 0 {
		t.Fatal("nothing was called for")
	}
	return wakes[len(wakes)-1]
}

// drain applies what waits for the wake-up, at most n, and settles it.
func (h house) drain(t *testing.T, w retry.Wake, n int) []uuid.UUID {
	t.Helper()
	tx, err := h.begin(t.Context())
	ok(t, err)
	defer rollback(tx)
	turn, fits, err := h.Claim(t.Context(), tx, w)
	ok(t, err)
	if !fits {
		return nil
	}
	waiting, err := h.Waiting(t.Context(), tx, w, 0, n)
	ok(t, err)
	var ids []uuid.UUID
	for _, waits := range waiting {
		ids = append(ids, waits.Event.ID)
		ok(t, addEffect(t.Context(), tx, waits.Event, "drain"))
	}
	ok(t, h.Settle(t.Context(), tx, turn, retry.Result{Done: waiting}))
	ok(t, tx.Commit(t.Context()))
	return ids
}

func (h house) gauges(t *testing.T) gauges {
	t.Helper()
	now, err := h.sample(t.Context())
	ok(t, err)
	now.oldest = 0
	return now
}

// TestStoresKeepThePromises holds the tables and the store in memory to the same: what simulations find on the one
// is true of the other.
func TestStoresKeepThePromises(t *testing.T) {
	t.Parallel()
	promises := map[string]func(*testing.T, house){}
	maps.Copy(promises, promisesOfBatches)
	maps.Copy(promises, promisesOfHeldKeys)
	maps.Copy(promises, promisesOfBlockedKeys)
	for name, open := range map[string]func(*testing.T) house{"memory": inMemory, "PostgreSQL": inPostgreSQL} {
		for _, promise := range slices.Sorted(maps.Keys(promises)) {
			t.Run(fmt.Sprintf("%s/%s", name, promise), func(t *testing.T) {
				t.Parallel()
				promises[promise](t, open(t))
			})
		}
	}
}
