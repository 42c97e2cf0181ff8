package rebuild_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/event"
	"converge/consumers/group"
	"converge/consumers/inbox"
	"converge/consumers/orderviews"
	"converge/consumers/rebuild"
	"converge/consumers/retry"
	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/producers/outbox"
	"converge/schemas"
)

const (
	service = "orderviews"
	topic   = "orders"
)

var sets = []database.Set{{Name: "outbox", FS: outbox.Migrations}, {Name: "inbox", FS: inbox.Migrations},
	{Name: "retry", FS: retry.Migrations}, {Name: "orderviews", FS: orderviews.Migrations}}

// world is order views in use: a topic, the model, and the consumer that keeps it.
type world struct {
	t      *testing.T
	url    string
	root   *pgxpool.Pool
	send   *kgo.Client
	config rebuild.Config
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, url: pgtest.Database(t, "rebuild", func(ctx context.Context, url string) error {
		return database.Migrate(ctx, url, database.Module{Service: service, Sets: sets})
	})}
	kafka, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, topic))
	must(t, err)
	t.Cleanup(kafka.Close)
	w.send, err = kgo.NewClient(kgo.SeedBrokers(kafka.ListenAddrs()...), kgo.DefaultProduceTopic(topic))
	must(t, err)
	t.Cleanup(w.send.Close)
	w.root, err = pgxpool.New(t.Context(), w.url)
	must(t, err)
	t.Cleanup(w.root.Close)
	w.config = rebuild.Config{DatabaseURL: w.url, Brokers: kafka.ListenAddrs(), Service: service, Sets: sets, Topics: []string{topic},
		Handler: handler, Table: "order_views", Key: "id", Version: "version", Others: []string{"read_model_progress"}}
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func handler(pool *pgxpool.Pool) event.Handler {
	return orderviews.New(orderviews.Config{Pool: pool, Decoder: schemas.NewCodec(schemas.JSON, schemas.IDs{})}).Handler()
}

// follow keeps the model in use until the test ends.
func (w *world) follow() {
	w.t.Helper()
	pool, err := database.Open(w.t.Context(), w.url, service, 8)
	must(w.t, err)
	w.t.Cleanup(pool.Close)
	g, err := group.New(group.Config{Name: service, Brokers: w.config.Brokers, Topics: []string{topic}, Pool: pool, Handler: handler(pool)})
	must(w.t, err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	w.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
}

// move produces the order's event of the version.
func (w *world) move(order int, version int64) {
	w.t.Helper()
	id := fmt.Sprintf("o-%d", order)
	value, err := json.Marshal(schemas.OrderStatusChanged{OrderID: id, CustomerID: "c-1", State: "IN_PROGRESS", DetailState: "PAID", TotalAmount: 100, Currency: "USD"})
	must(w.t, err)
	header := func(key, value string) kgo.RecordHeader { return kgo.RecordHeader{Key: key, Value: []byte(value)} }
	must(w.t, w.send.ProduceSync(w.t.Context(), &kgo.Record{Key: []byte(id), Value: value, Headers: []kgo.RecordHeader{
		header("event_id", uuid.NewString()), header("event_type", "OrderStatusChanged"), header("aggregate_id", id),
		header("aggregate_version", fmt.Sprint(version)), header("content-type", schemas.ContentTypeJSON)}}).FirstErr())
}

func (w *world) exec(sql string) {
	w.t.Helper()
	_, err := w.root.Exec(w.t.Context(), sql)
	must(w.t, err)
}

func ask[T any](w *world, sql string) (answer T) {
	w.t.Helper()
	must(w.t, w.root.QueryRow(w.t.Context(), sql).Scan(&answer))
	return answer
}

// shows waits until the model in use has so many orders at the version.
func (w *world) shows(orders int, version int64) {
	w.t.Helper()
	deadline, tick := time.After(time.Minute), time.NewTicker(20*time.Millisecond)
	defer tick.Stop()
	for {
		n := ask[int](w, fmt.Sprintf("SELECT count(*) FROM orderviews.order_views WHERE version = %d", version))
		if n == orders {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatalf("%d orders are at version %d, want %d", n, version, orders)
		}
	}
}

const orders = 40

// A model with every kind of damage is rebuilt while its consumer runs, which goes on in the new one.
func TestARebuiltModelTakesThePlaceOfTheOneInUse(t *testing.T) {
	w := newWorld(t)
	for i := range orders {
		w.move(i, 2)
	}
	w.follow()
	w.shows(orders, 2)
	w.exec("UPDATE orderviews.order_views SET state = 'FAILED' WHERE id IN ('o-1', 'o-2')")
	w.exec("DELETE FROM orderviews.order_views WHERE id = 'o-3'")
	w.exec("INSERT INTO orderviews.order_views VALUES ('o-old', 'c-1', 'COMPLETED', 1, 'USD', 9, now(), now())")
	w.exec("UPDATE orderviews.order_views SET version = 1 WHERE id = 'o-4'")

	w.config.DryRun = true
	var told atomic.Int64
	w.config.Progress = func(done, total int64) {
		if total == orders {
			told.Store(done)
		}
	}
	want := rebuild.Report{Events: orders, Rows: orders, Same: orders - 4, Newer: 1, Different: 2, Added: 1, Kept: 1, Examples: []string{"o-1", "o-2"}}
	report, err := rebuild.Run(t.Context(), w.config)
	must(t, err)
	if diff := cmp.Diff(want, report); diff != "" || told.Load() != orders {
		t.Errorf("%d told\n%s", told.Load(), diff)
	}
	if n := ask[int](w, "SELECT count(*) FROM orderviews.order_views WHERE state = 'FAILED'"); n != 2 {
		t.Errorf("a dry run has changed the model: %d orders failed", n)
	}

	w.config.DryRun = false
	want.Replaced = true
	report, err = rebuild.Run(t.Context(), w.config)
	must(t, err)
	if diff := cmp.Diff(want, report); diff != "" {
		t.Error(diff)
	}
	w.shows(orders, 2)
	w.shows(1, 9)
	if n := ask[int](w, "SELECT count(*) FROM orderviews.order_views WHERE state = 'IN_PROGRESS'"); n != orders {
		t.Errorf("%d orders are in progress", n)
	}
	for i := range orders {
		w.move(i, 3)
	}
	w.shows(orders, 3)
	if n := ask[int](w, "SELECT count(*) FROM pg_namespace WHERE nspname LIKE '%shadow'") + ask[int](w, "SELECT count(*) FROM pg_roles WHERE rolname LIKE '%shadow'"); n != 0 {
		t.Errorf("the shadow is still there: %d", n)
	}
	if owner := ask[string](w, "SELECT tableowner FROM pg_tables WHERE (schemaname, tablename) = ('orderviews', 'order_views')"); owner != "converge_orderviews" {
		t.Errorf("the model belongs to %s", owner)
	}
}

// While events come in, none is lost between the two models.
func TestNothingIsLostBetweenTheModels(t *testing.T) {
	w := newWorld(t)
	w.follow()
	moving, stop := context.WithCancel(t.Context())
	moved := make(chan int64)
	go func() {
		version := int64(1)
		for ; moving.Err() == nil; version++ {
			for i := range orders {
				w.move(i, version)
			}
		}
		moved <- version - 1
	}()
	for range 3 {
		report, err := rebuild.Run(t.Context(), w.config)
		if err != nil || !report.Replaced || report.Different != 0 || report.Kept != 0 || report.Dead != 0 {
			t.Errorf("%+v, %v", report, err)
		}
	}
	stop()
	w.shows(orders, <-moved)
}

func TestARebuildThatCannotEndLeavesTheModelAsItIs(t *testing.T) {
	w := newWorld(t)
	w.move(1, 1)
	w.follow()
	w.shows(1, 1)
	refuse := w.config
	refuse.Handler = func(*pgxpool.Pool) event.Handler {
		return event.Handler{Each: map[string]event.Each{"OrderStatusChanged": func(context.Context, pgx.Tx, *event.Event) error {
			return errors.New("no such column")
		}}}
	}
	if _, err := rebuild.Run(t.Context(), refuse); !errors.Is(err, rebuild.ErrWaiting) {
		t.Errorf("a handler that refuses: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	stopped := w.config
	stopped.Progress = func(_, _ int64) { cancel() }
	if _, err := rebuild.Run(ended, stopped); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
	w.exec("SELECT pg_advisory_lock(hashtext('converge rebuild'), hashtext('orderviews'))")
	another, err := w.root.Acquire(t.Context()) // any but the one with the lock
	must(t, err)
	defer another.Release()
	if _, err := rebuild.Run(t.Context(), w.config); !errors.Is(err, rebuild.ErrRunning) {
		t.Errorf("two at once: %v", err)
	}
	w.shows(1, 1)
}
