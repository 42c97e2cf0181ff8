package orders

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sync/errgroup"

	"converge/consumers/event"
	"converge/producers/catalog"
	"converge/schemas"
)

func newEvent(t *testing.T, eventType string, data any) *event.Event {
	t.Helper()
	value, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	return &event.Event{ID: uuid.New(), Type: eventType, ContentType: schemas.ContentTypeJSON, Value: value}
}

func (w *world) apply(ctx context.Context, events ...*event.Event) error {
	return pgx.BeginFunc(ctx, w.pools["orders"], func(tx pgx.Tx) error { return w.orders.apply(ctx, tx, events) })
}

func (w *world) mustPlace(t *testing.T) uuid.UUID {
	t.Helper()
	var id uuid.UUID
	err := pgx.BeginFunc(t.Context(), w.pools["orders"], func(tx pgx.Tx) error {
		v, err := w.orders.place(t.Context(), tx, placement{"c-1", []item{{"BOOK-1", 2}}, catalog.CardOK, "DE"})
		id = v.id
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (w *world) mustFind(t *testing.T, id uuid.UUID) *view {
	t.Helper()
	v, ok, err := find(t.Context(), w.pools["orders"], id)
	if err != nil || !ok {
		t.Fatal(err, ok)
	}
	return v
}

// said returns what Orders said of the order, with ids.
func (w *world) said(t *testing.T, id uuid.UUID) (types []string, ids []uuid.UUID) {
	t.Helper()
	rows, err := w.pools["orders"].Query(t.Context(), "SELECT event_type, event_id FROM outbox WHERE aggregate_id = $1 ORDER BY seq", id.String())
	if err != nil {
		t.Fatal(err)
	}
	var eventType string
	var eventID uuid.UUID
	if _, err := pgx.ForEachRow(rows, []any{&eventType, &eventID}, func() error {
		types, ids = append(types, eventType), append(ids, eventID)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return types, ids
}

// metric returns the value of the series of a metric that has the label value.
func (w *world) metric(t *testing.T, name, value string) float64 {
	t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == name && l.GetValue() == value {
					return m.GetGauge().GetValue() + m.GetCounter().GetValue() // it has one of them
				}
			}
		}
	}
	t.Fatalf("there is no %s of %s", name, value)
	return 0
}

func TestHandlesWhatTheTopologySays(t *testing.T) {
	got := New(Config{}).Handler().Types()
	slices.Sort(got)
	_, want := schemas.ReadBy("orders")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-topology +handler:\n%s", diff)
	}
}

// The relay may show a transaction before the server shows it to others: an answer to it that is quick does
// not cost a try.
func TestAnOrderThatIsNotVisibleYetIsWaitedFor(t *testing.T) {
	w := newWorld(t, 1, 0, 0)
	tx, err := w.pools["orders"].Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context()) //nolint:errcheck // after the commit it has nothing to do
	v, err := w.orders.place(t.Context(), tx, placement{"c-1", []item{{"BOOK-1", 2}}, catalog.CardOK, "DE"})
	if err != nil {
		t.Fatal(err)
	}
	reserved := newEvent(t, "StockReserved", schemas.StockReserved{OrderID: v.id.String()})
	reserved.RecordedAt = time.Now()
	applied := make(chan error, 1)
	go func() { applied <- w.apply(t.Context(), reserved) }()
	looked := time.NewTicker(10 * time.Millisecond)
	defer looked.Stop()
	for waits := false; !waits; {
		select {
		case err := <-applied:
			t.Fatalf("nobody waited for the order's commit: %v", err)
		case <-looked.C:
			const sql = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted)"
			if err := w.pools["orders"].QueryRow(t.Context(), sql).Scan(&waits); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-applied; err != nil {
		t.Fatal(err)
	}
	if v := w.mustFind(t, v.id); v.state != Reserved {
		t.Errorf("the order is %s, want %s", v.state, Reserved)
	}
}

// An order that stays unknown is worth another try; what names no order at all is not.
func TestAnUnknownOrderIsTriedAgainAndRubbishIsNot(t *testing.T) {
	w := newWorld(t, 1, 0, 0)
	known := w.mustPlace(t)
	err := w.apply(t.Context(),
		newEvent(t, "StockReserved", schemas.StockReserved{OrderID: known.String()}),
		newEvent(t, "StockReserved", schemas.StockReserved{OrderID: uuid.NewString()}))
	if !errors.Is(err, errUnknownOrder) || event.Classify(err) != event.ClassRetriable {
		t.Errorf("unknown order: %v", err)
	}
	for _, orderID := range []string{"", "42", "o\x00", strings.ToUpper(known.String()), "urn:uuid:" + known.String()} {
		err := w.apply(t.Context(), newEvent(t, "StockReserved", schemas.StockReserved{OrderID: orderID}))
		if err == nil || event.Classify(err) != event.ClassPermanent {
			t.Errorf("order id %q: %v", orderID, err)
		}
	}
	if v := w.mustFind(t, known); v.state != Pending {
		t.Errorf("the batch with the unknown order moved the known one to %s", v.state)
	}
}

// Four sweepers find one overdue order: it times out once, and whoever did it said what any other would
// have said.
func TestADeadlineStrikesOnceWithDeterministicIDs(t *testing.T) {
	w := newWorld(t, 1, time.Nanosecond, time.Hour)
	id := w.mustPlace(t)
	var g errgroup.Group
	for range 4 {
		g.Go(func() error {
			_, err := w.orders.sweep(t.Context())
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	types, ids := w.said(t, id)
	if diff := cmp.Diff([]string{"OrderPlaced", "OrderTimedOut", "OrderStatusChanged"}, types); diff != "" {
		t.Fatal(diff)
	}
	if ids[1] != uuid.NewSHA1(id, []byte("OrderTimedOut")) || ids[2] != uuid.NewSHA1(id, []byte("OrderStatusChanged/2")) {
		t.Errorf("ids %s", ids)
	}
	v := w.mustFind(t, id)
	if v.state != Compensating || v.outcome != TimedOut || *v.history[1].EventID != ids[1] {
		t.Errorf("%+v", v)
	}
	if n := w.metric(t, "converge_saga_timeouts_total", "reservation"); n != 1 {
		t.Errorf("%v timeouts counted", n)
	}
}

func TestAnOrderIsStuckUntilTheLastAcknowledgement(t *testing.T) {
	w := newWorld(t, 1, time.Hour, time.Nanosecond)
	id := w.mustPlace(t)
	if err := w.cancelOne(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds nothing: STUCK is not due again
		if _, err := w.orders.sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if v := w.mustFind(t, id); v.state != Stuck || v.version != 3 || v.outcome != WasCancelled {
		t.Fatalf("%+v", v)
	}
	if err := w.orders.metrics.Count(t.Context(), w.pools["orders"], openSQL); err != nil {
		t.Fatal(err)
	}
	if n := w.metric(t, "converge_saga_instances", "STUCK"); n != 1 {
		t.Errorf("%v stuck orders are shown", n)
	}
	if err := w.apply(t.Context(), newEvent(t, "ShipmentCancelled", schemas.ShipmentCancelled{OrderID: id.String()}),
		newEvent(t, "StockReleased", schemas.StockReleased{OrderID: id.String()})); err != nil {
		t.Fatal(err)
	}
	if v := w.mustFind(t, id); v.state != Stuck {
		t.Fatalf("two of three acknowledged: %s", v.state)
	}
	if err := w.apply(t.Context(), newEvent(t, "PaymentVoided", schemas.PaymentVoided{OrderID: id.String()})); err != nil {
		t.Fatal(err)
	}
	if v := w.mustFind(t, id); v.state != Failed || v.outcome != WasCancelled {
		t.Errorf("%+v", v)
	}
	if err := w.orders.metrics.Count(t.Context(), w.pools["orders"], openSQL); err != nil {
		t.Fatal(err)
	}
	if n := w.metric(t, "converge_saga_instances", "STUCK"); n != 0 {
		t.Errorf("%v stuck orders are shown at the end", n)
	}
}

// The database goes away while an order is open, and comes back after its deadline.
func TestADeadlineStrikesAfterAnOutageOfTheDatabase(t *testing.T) {
	w := newWorld(t, 1, 300*time.Millisecond, time.Hour)
	id := w.mustPlace(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- w.orders.Run(ctx) }()

	u, err := url.Parse(w.url)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimPrefix(u.Path, "/")
	u.Path = "/postgres"
	admin, err := pgx.Connect(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	outage := func(statement string) {
		t.Helper()
		if _, err := admin.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	outage("ALTER DATABASE " + name + " ALLOW_CONNECTIONS false")
	outage("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '" + name + "'")
	select {
	case err := <-ended:
		t.Fatalf("Run ended in the outage: %v", err)
	case <-time.After(time.Second):
	}
	outage("ALTER DATABASE " + name + " ALLOW_CONNECTIONS true")

	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.After(15 * time.Second); ; {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatal("the deadline did not strike")
		}
		if v, ok, err := find(t.Context(), w.pools["orders"], id); err == nil && ok && v.outcome == TimedOut {
			break
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run ended with %v", err)
	}
}

func TestMetricsAreWellNamedAndThereFromTheStart(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	New(Config{Registerer: registry})
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
	for name, want := range map[string]int{
		"converge_saga_instances":           5,
		"converge_saga_oldest_open_seconds": 5,
		"converge_saga_transitions_total":   len(Edges()),
		"converge_saga_duration_seconds":    6,
		"converge_saga_timeouts_total":      4,
	} {
		if n, err := testutil.GatherAndCount(registry, name); err != nil || n != want {
			t.Errorf("%s has %d series, want %d (%v)", name, n, want, err)
		}
	}
}

// A hundred thousand orders have ended; what runs every few moments must not look at them.
func TestSweepingAndCountingLookAtOpenOrdersOnly(t *testing.T) {
	w := newWorld(t, 1, time.Hour, time.Hour)
	w.mustPlace(t)
	pool := w.pools["orders"]
	for _, statement := range []string{`
INSERT INTO orders (id, customer_id, items, total_amount, currency, payment_method, ship_country, outcome, state,
                    version, history, correlation_id, created_at, updated_at)
SELECT gen_random_uuid(), 'c-1', '[]', 1, 'USD', 'card-ok', 'DE', 'completed', 'COMPLETED', 5, '[]', '', now(), now()
FROM generate_series(1, 100000)`, "ANALYZE orders"} {
		if _, err := pool.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	for name, sql := range map[string]string{"counting": openSQL, "sweeping": strings.Replace(overdueSQL, "$1", "100", 1)} {
		rows, err := pool.Query(t.Context(), "EXPLAIN (ANALYZE, COSTS OFF) "+sql)
		if err != nil {
			t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		plan := strings.Join(lines, "\n")
		if !strings.Contains(plan, "orders_due") || strings.Contains(plan, "Seq Scan") {
			t.Errorf("%s:\n%s", name, plan)
		}
		t.Logf("%s: %s", name, lines[len(lines)-1])
	}
}
