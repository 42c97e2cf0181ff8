package retry_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/consumers/event"
	"converge/consumers/inbox"
	"converge/consumers/retry"
	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/producers/outbox"
)

const (
	consumer = "billing"
	topic    = "orders"
)

var patience = time.Minute

// tables returns a pool on a fresh schema with the tables of a consumer.
func tables(t testing.TB) *pgxpool.Pool {
	t.Helper()
	url := pgtest.Database(t, "retry", func(ctx context.Context, url string) error {
		return database.Migrate(ctx, url, database.Module{Service: consumer, Sets: []database.Set{
			{Name: "outbox", FS: outbox.Migrations}, {Name: "inbox", FS: inbox.Migrations}, {Name: "retry", FS: retry.Migrations}}})
	})
	pool, err := database.Open(t.Context(), url, consumer, 8)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func ladder(p retry.Policy) retry.Ladder { return retry.Ladder{Consumer: consumer, Policy: p} }

var serial int64

// newEvent returns an event of the key with an id of its own.
func newEvent(key string) *event.Event {
	serial++
	id := uuid.Must(uuid.NewV7())
	e := &event.Event{Topic: topic, Partition: 1, Offset: serial, Key: []byte(key), Value: fmt.Appendf(nil, "value %d", serial),
		RecordedAt: time.Now().UTC().Truncate(time.Microsecond), Headers: []event.Header{
			{Key: "event_id", Value: []byte(id.String())}, {Key: "event_type", Value: []byte("OrderPlaced")}}}
	e.Identify()
	return e
}

func newEvents(key string, n int) []*event.Event {
	events := make([]*event.Event, n)
	for i := range events {
		events[i] = newEvent(key)
	}
	return events
}

// transact runs do in a transaction and returns what became of it.
func transact(t testing.TB, pool *pgxpool.Pool, do func(tx pgx.Tx) error) error {
	t.Helper()
	return pgx.BeginFunc(t.Context(), pool, do)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ask[T any](t testing.TB, pool *pgxpool.Pool, sql string, args ...any) (value T) {
	t.Helper()
	must(t, pool.QueryRow(t.Context(), sql, args...).Scan(&value))
	return value
}

// hold holds the first event's key because it failed, and puts all behind it.
func hold(t testing.TB, pool *pgxpool.Pool, l retry.Ladder, events ...*event.Event) {
	t.Helper()
	head := retry.Failure{Event: events[0], Err: fmt.Errorf("no stock"), Attempts: 1, FirstAt: time.Now()}
	must(t, transact(t, pool, func(tx pgx.Tx) error { return l.Hold(t.Context(), tx, topic, []retry.Failure{head}, events) }))
}

// current returns the one wake-up that may run the key.
func current(t testing.TB, pool *pgxpool.Pool, key string) retry.Wake {
	t.Helper()
	w := retry.Wake{Topic: topic, Key: key}
	must(t, pool.QueryRow(t.Context(), "SELECT token, due_at FROM held_keys WHERE consumer = $1 AND topic = $2 AND key = $3",
		consumer, topic, key).Scan(&w.Token, &w.NotBefore))
	return w
}

// sent is a record in the outbox.
type sent struct {
	Topic, Key string
	Headers    map[string]string
	Value      []byte
}

func outboxRows(t testing.TB, pool *pgxpool.Pool) []sent {
	t.Helper()
	rows, err := pool.Query(t.Context(), "SELECT topic, aggregate_id, headers, payload FROM outbox ORDER BY seq")
	must(t, err)
	records, err := pgx.CollectRows(rows, pgx.RowToStructByPos[sent])
	must(t, err)
	return records
}

// drain runs the key the way a retry consumer does, chunk by chunk, and returns what was applied. try says
// what becomes of an event.
func drain(t testing.TB, pool *pgxpool.Pool, l retry.Ladder, w retry.Wake, chunk int, try func(*event.Event) error) (applied []*event.Event) {
	t.Helper()
	var last int64
	for {
		var n int
		var again bool
		var done []retry.Waiting
		must(t, transact(t, pool, func(tx pgx.Tx) error {
			turn, ok, err := l.Claim(t.Context(), tx, w)
			if err != nil || !ok {
				again = true
				return err
			}
			waiting, err := l.Waiting(t.Context(), tx, w, last, chunk)
			if err != nil {
				return err
			}
			n = len(waiting)
			var result retry.Result
			attempt, first := turn.Attempt, turn.FirstAt
			for _, held := range waiting {
				failure := try(held.Event)
				if failure == nil {
					result.Done = append(result.Done, held)
					attempt, first = 0, time.Now()
					continue
				}
				f := retry.Failure{Event: held.Event, Err: failure, Attempts: attempt + 1, FirstAt: first}
				if event.Classify(failure) == event.ClassPermanent || l.Policy.Exhausted(f.Attempts, f.FirstAt, time.Now()) {
					result.Dead, result.DeadSeq = append(result.Dead, f), append(result.DeadSeq, held.Seq)
					attempt, first = 0, time.Now()
					continue
				}
				result.Again = &f
				break
			}
			if err := l.Bury(t.Context(), tx, result.Dead); err != nil {
				return err
			}
			done, again = result.Done, result.Again != nil
			if n > 0 {
				last = waiting[n-1].Seq
			}
			return l.Settle(t.Context(), tx, turn, result)
		}))
		for _, held := range done {
			applied = append(applied, held.Event)
		}
		if again {
			return applied
		}
		if n == chunk {
			continue
		}
		released, err := l.Release(t.Context(), pool, w)
		must(t, err)
		if released {
			return applied
		}
	}
}

func ids(events []*event.Event) []string {
	var list []string
	for _, e := range events {
		list = append(list, e.ID.String())
	}
	return list
}
