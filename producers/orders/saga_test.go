package orders

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"converge/consumers/event"
	"converge/consumers/inventory"
	"converge/consumers/shipping"
	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/producers/catalog"
	"converge/producers/httpapi"
	"converge/producers/outbox"
	"converge/producers/payments"
	"converge/schemas"
)

// world is the four services on one real PostgreSQL, each in its schema, joined by a post office that
// reads their outboxes and delivers at random: a partition's events in batches of random size and random
// order, again and again, by several hands at once, without an inbox. Only what is lost stays away: every event is delivered to
// every reader in the end.
type world struct {
	url      string
	registry *prometheus.Registry
	orders   *Service
	payments *payments.Service
	pools    map[string]*pgxpool.Pool
	handlers map[string]event.Handler

	mu     sync.Mutex
	rng    *rand.Rand
	seen   map[string]int64 // how far each outbox has been read
	known  map[uuid.UUID]bool
	events []*event.Event
	mail   map[string][]*letter // by reader
	raced  int                  // transactions that lost against another
}

// letter is an event on its way to a reader.
type letter struct {
	event     *event.Event
	delivered bool
	attempt   int
}

var participants = []string{"orders", "inventory", "payments", "shipping"}

func newWorld(t testing.TB, seed uint64, orderDeadline, ackDeadline time.Duration) *world {
	t.Helper()
	outboxSet := database.Set{Name: "outbox", FS: outbox.Migrations}
	modules := []database.Module{
		{Service: "orders", Sets: []database.Set{outboxSet, {Name: "httpapi", FS: httpapi.Migrations}, {Name: "orders", FS: Migrations}}},
		{Service: "inventory", Sets: []database.Set{outboxSet, {Name: "inventory", FS: inventory.Migrations}}},
		{Service: "payments", Sets: []database.Set{outboxSet, {Name: "payments", FS: payments.Migrations}}},
		{Service: "shipping", Sets: []database.Set{outboxSet, {Name: "shipping", FS: shipping.Migrations}}},
	}
	url := pgtest.Database(t, "saga", func(ctx context.Context, url string) error {
		return database.Migrate(ctx, url, modules...)
	})
	w := &world{url: url, registry: prometheus.NewRegistry(), pools: map[string]*pgxpool.Pool{}, rng: rand.New(rand.NewPCG(seed, 0)), seen: map[string]int64{}, known: map[uuid.UUID]bool{}, mail: map[string][]*letter{}}
	for _, name := range participants {
		pool, err := database.Open(t.Context(), url, name, 8)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		w.pools[name] = pool
	}
	codec := schemas.NewCodec(schemas.JSON, schemas.IDs{})
	out := outbox.New(codec)
	w.orders = New(Config{Pool: w.pools["orders"], Outbox: out, Decoder: codec, OrderDeadline: orderDeadline, AckDeadline: ackDeadline, Registerer: w.registry})
	// Slow cards answer after a quarter of the deadline here, so that the answer races with everything.
	w.payments = payments.New(payments.Config{Pool: w.pools["payments"], Outbox: out, Decoder: codec, OrderDeadline: orderDeadline / 6})
	w.handlers = map[string]event.Handler{
		"orders":    w.orders.Handler(),
		"inventory": inventory.New(inventory.Config{Pool: w.pools["inventory"], Outbox: out, Decoder: codec}).Handler(),
		"payments":  w.payments.Handler(),
		"shipping":  shipping.New(shipping.Config{Outbox: out, Decoder: codec}).Handler(),
	}
	return w
}

const outboxSQL = `
SELECT seq, event_id, topic, aggregate_id, aggregate_version, event_type, content_type, payload, headers
FROM outbox
WHERE seq > $1
ORDER BY seq`

// collect takes what is new in the outboxes to its readers. A sequence number may become visible after a
// greater one; the look back covers it.
func (w *world) collect(ctx context.Context) error {
	for _, emitter := range participants {
		w.mu.Lock()
		from := w.seen[emitter] - 100
		w.mu.Unlock()
		rows, err := w.pools[emitter].Query(ctx, outboxSQL, from)
		if err != nil {
			return err
		}
		list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*event.Event, error) {
			var e event.Event
			var headers map[string]string
			err := row.Scan(&e.Offset, &e.ID, &e.Topic, &e.AggregateID, &e.AggregateVersion, &e.Type, &e.ContentType, &e.Value, &headers)
			e.CorrelationID, e.CausationID = headers["correlation_id"], headers["causation_id"]
			return &e, err
		})
		if err != nil {
			return err
		}
		w.mu.Lock()
		for _, e := range list {
			if w.known[e.ID] {
				continue
			}
			w.known[e.ID] = true
			e.Partition = int32(crc32.ChecksumIEEE([]byte(e.AggregateID)) % schemas.Partitions)
			w.events = append(w.events, e)
			w.seen[emitter] = max(w.seen[emitter], e.Offset)
			for _, route := range schemas.Routes() {
				for _, reader := range route.Readers {
					if _, takesPart := w.handlers[reader]; route.Type == e.Type && takesPart {
						w.mail[reader] = append(w.mail[reader], &letter{event: e})
					}
				}
			}
		}
		w.mu.Unlock()
	}
	return nil
}

// draw picks up to n letters of one reader and partition at random: some undelivered, some to be delivered
// again. There are none when nobody waits for any.
func (w *world) draw(n int) (reader string, drawn []*letter) {
	w.mu.Lock()
	defer w.mu.Unlock()
	open := map[string][]*letter{}
	for reader, letters := range w.mail {
		for _, l := range letters {
			if !l.delivered {
				open[reader] = append(open[reader], l)
			}
		}
	}
	if len(open) == 0 {
		return "", nil
	}
	for len(open[reader]) == 0 {
		reader = participants[w.rng.IntN(len(participants))]
	}
	first := open[reader][w.rng.IntN(len(open[reader]))]
	drawn = append(drawn, first)
	for range w.rng.IntN(n) {
		from := open[reader]
		if w.rng.IntN(5) == 0 {
			from = w.mail[reader]
		}
		if l := from[w.rng.IntN(len(from))]; l.event.Partition == first.event.Partition {
			drawn = append(drawn, l)
		}
	}
	return reader, drawn
}

// deliver gives the letters to the reader in one transaction, as runs of one type, and brings back what
// failed one by one, as the runtime does.
func (w *world) deliver(ctx context.Context, reader string, letters []*letter) error {
	err := pgx.BeginFunc(ctx, w.pools[reader], func(tx pgx.Tx) error {
		for start := 0; start < len(letters); {
			end := start + 1
			for end < len(letters) && letters[end].event.Type == letters[start].event.Type {
				end++
			}
			var run []*event.Event
			for _, l := range letters[start:end] {
				e := *l.event
				w.mu.Lock()
				e.Attempt = l.attempt
				w.mu.Unlock()
				run = append(run, &e)
			}
			if err := w.handlers[reader].Batch[letters[start].event.Type](ctx, tx, run); err != nil {
				return err
			}
			start = end
		}
		return nil
	})
	switch {
	case err == nil:
		w.mu.Lock()
		for _, l := range letters {
			l.delivered = true
		}
		w.mu.Unlock()
		return nil
	case event.Classify(err) == event.ClassContention:
		w.mu.Lock()
		w.raced++
		w.mu.Unlock()
		return nil // still to be delivered
	case len(letters) > 1:
		for _, l := range letters {
			if err := w.deliver(ctx, reader, []*letter{l}); err != nil {
				return err
			}
		}
		return nil
	case errors.Is(err, payments.ErrProvider):
		w.mu.Lock()
		letters[0].attempt++
		w.mu.Unlock()
		return nil
	default:
		return fmt.Errorf("%s for %s: %w", letters[0].event.Type, reader, err)
	}
}

// settled reports whether every letter is delivered and every order that was to be placed has ended.
func (w *world) settled(ctx context.Context, placed int) (bool, error) {
	if _, letters := w.draw(1); len(letters) > 0 {
		return false, w.collect(ctx)
	}
	w.mu.Lock()
	w.seen = map[string]int64{} // now look for what became visible late
	w.mu.Unlock()
	if err := w.collect(ctx); err != nil {
		return false, err
	}
	if _, letters := w.draw(1); len(letters) > 0 {
		return false, nil
	}
	var all, open int
	err := w.pools["orders"].QueryRow(ctx, "SELECT count(*), count(due_at) FROM orders").Scan(&all, &open)
	return all == placed && open == 0, err
}

func (w *world) intn(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(n)
}

func (w *world) placeOne(ctx context.Context) (uuid.UUID, error) {
	methods := append(catalog.PaymentMethods(), catalog.CardOK, catalog.CardOK)
	countries := []string{"DE", "DE", "DE", catalog.NotServed}
	p := placement{customerID: "c-1", method: methods[w.intn(len(methods))], country: countries[w.intn(len(countries))],
		items: []item{{"BOOK-1", 1 + w.intn(3)}}}
	if w.intn(2) == 0 {
		p.items = append(p.items, item{"MUG-1", 1})
	}
	if w.intn(8) == 0 {
		p.items = append([]item{{"RARE-1", 1}}, p.items...)
	}
	var id uuid.UUID
	err := pgx.BeginFunc(ctx, w.pools["orders"], func(tx pgx.Tx) error {
		v, err := w.orders.place(ctx, tx, p)
		if err == nil {
			id = v.id
		}
		return err
	})
	return id, err
}

func (w *world) cancelOne(ctx context.Context, id uuid.UUID) error {
	return pgx.BeginFunc(ctx, w.pools["orders"], func(tx pgx.Tx) error {
		_, _, err := w.orders.cancel(ctx, tx, id)
		return err
	})
}

// The sagas of many orders on real tables, with deadlines so short that many strike, cancellations, and
// two processes' worth of sweepers.
func TestSagasEndWholeOnPostgreSQL(t *testing.T) {
	const orders = 100
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w := newWorld(t, seed, 3*time.Second, 500*time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	sweepers, stop := context.WithCancel(ctx)
	var background errgroup.Group
	for range 2 {
		background.Go(func() error { return w.orders.Run(sweepers) })
		background.Go(func() error { return w.payments.Run(sweepers) })
	}
	defer func() { stop(); _ = background.Wait() }()

	var g errgroup.Group
	g.Go(func() error {
		for range orders {
			id, err := w.placeOne(ctx)
			if err != nil {
				return err
			}
			if w.intn(6) == 0 {
				if err := w.cancelOne(ctx, id); err != nil {
					return err
				}
			}
		}
		return nil
	})
	for range 4 {
		g.Go(func() error {
			for round := 0; ; round++ {
				reader, letters := w.draw(30)
				if len(letters) == 0 || round%4 == 0 {
					if done, err := w.settled(ctx, orders); done || err != nil {
						return err
					}
				}
				if len(letters) > 0 {
					if err := w.deliver(ctx, reader, letters); err != nil {
						return err
					}
				}
			}
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if w.raced > 0 {
		t.Errorf("%d transactions lost a race: the locks have no order", w.raced)
	}
	w.check(t)
}

// check holds the four services' tables against each other.
func (w *world) check(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	reserved, authorized, arranged := map[string]string{}, map[string]string{}, map[string]string{}
	w.states(t, "inventory", "SELECT order_id, state FROM reservations", reserved)
	w.states(t, "payments", "SELECT order_id, state FROM payments", authorized)
	w.states(t, "shipping", "SELECT order_id, state FROM shipments", arranged)

	said := map[string]map[string]int{} // order, event type
	versions := map[string][]int64{}
	for _, e := range w.events {
		if said[e.AggregateID] == nil {
			said[e.AggregateID] = map[string]int{}
		}
		said[e.AggregateID][e.Type]++
		if e.Type == "OrderStatusChanged" {
			versions[e.AggregateID] = append(versions[e.AggregateID], e.AggregateVersion)
		}
	}
	ids, err := w.pools["orders"].Query(ctx, "SELECT id FROM orders")
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(ids, pgx.RowTo[uuid.UUID])
	if err != nil {
		t.Fatal(err)
	}
	sold, ends := map[string]int64{}, map[string]int{}
	var money int64
	for _, id := range all {
		v, _, err := find(ctx, w.pools["orders"], id)
		if err != nil {
			t.Fatal(err)
		}
		ends[string(v.outcome)]++
		key := id.String()
		holds := []bool{reserved[key] == string(inventory.Reserved), authorized[key] == string(payments.Authorized), arranged[key] == string(shipping.Arranged)}
		for i, held := range holds {
			if held != (v.state == Completed) {
				t.Errorf("order %s is %s (%s): stock, money, shipment held: %t, at %d", id, v.state, v.outcome, holds, i)
			}
		}
		if v.state == Completed {
			money += v.total
			for _, it := range v.items {
				sold[it.SKU] += int64(it.Quantity)
			}
		}
		for eventType, n := range said[key] {
			if eventType != "OrderStatusChanged" && n > 1 {
				t.Errorf("order %s: %s was said %d times", id, eventType, n)
			}
		}
		checkHistory(t, v, versions[key])
	}
	var held int64
	if err := w.pools["payments"].QueryRow(ctx, "SELECT coalesce(sum(amount) FILTER (WHERE state = 'AUTHORIZED'), 0) FROM payments").Scan(&held); err != nil {
		t.Fatal(err)
	}
	if held != money {
		t.Errorf("completed orders cost %d, payments hold %d", money, held)
	}
	initial := map[string]int64{"BOOK-1": 100_000_000, "LAMP-1": 100_000_000, "MUG-1": 100_000_000, "RARE-1": 1}
	for sku, pieces := range initial {
		var level inventory.Level
		if err := w.pools["inventory"].QueryRow(ctx, "SELECT available, reserved FROM stock WHERE sku = $1", sku).Scan(&level.Available, &level.Reserved); err != nil {
			t.Fatal(err)
		}
		if want := (inventory.Level{Available: pieces - sold[sku], Reserved: sold[sku]}); level != want {
			t.Errorf("%s: %+v, want %+v", sku, level, want)
		}
	}
	t.Logf("%d orders ended: %v; %d events, %d transactions lost a race", len(all), ends, len(w.events), w.raced)
}

// checkHistory: the history walks the table, and the announced versions are the ones that it has.
func checkHistory(t *testing.T, v *view, versions []int64) {
	t.Helper()
	if int64(len(v.history)) != v.version || v.history[0].State != Pending || v.history[v.version-1].State != v.state ||
		!v.history[v.version-1].At.Equal(v.updatedAt) {
		t.Errorf("order %s: version %d, %s, history %+v", v.id, v.version, v.state, v.history)
		return
	}
	for i := 1; i < len(v.history); i++ {
		if edge := (Edge{v.history[i-1].State, v.history[i].State}); !slices.Contains(Edges(), edge) {
			t.Errorf("order %s: %v is not in the table", v.id, edge)
		}
		if v.history[i].At.Before(v.history[i-1].At) {
			t.Errorf("order %s: the history runs backwards", v.id)
		}
	}
	slices.Sort(versions)
	for i, version := range versions {
		if version != int64(i)+2 {
			t.Errorf("order %s: versions announced %v", v.id, versions)
			return
		}
	}
	if int64(len(versions)) != v.version-1 {
		t.Errorf("order %s: %d changes announced, version %d", v.id, len(versions), v.version)
	}
}

func (w *world) states(t *testing.T, service, sql string, into map[string]string) {
	t.Helper()
	rows, err := w.pools[service].Query(t.Context(), sql)
	if err != nil {
		t.Fatal(err)
	}
	var orderID, state string
	if _, err := pgx.ForEachRow(rows, []any{&orderID, &state}, func() error {
		into[orderID] = state
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkSaga is what the four services' transactions cost per order, in batches as a loaded consumer
// gets them. Kafka, the relay, the inbox and the fence come on top.
func BenchmarkSaga(b *testing.B) {
	for _, size := range []int{1, 10, 50} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			w := newWorld(b, 1, time.Hour, time.Hour)
			ctx := b.Context()
			for b.Loop() {
				for range size {
					if err := pgx.BeginFunc(ctx, w.pools["orders"], func(tx pgx.Tx) error {
						_, err := w.orders.place(ctx, tx, placement{"c-1", []item{{"BOOK-1", 1}, {"MUG-1", 1}}, catalog.CardOK, "DE"})
						return err
					}); err != nil {
						b.Fatal(err)
					}
				}
				for done := false; !done; {
					if err := w.collect(ctx); err != nil {
						b.Fatal(err)
					}
					done = true
					for _, reader := range participants {
						if letters := w.mail[reader]; len(letters) > 0 {
							done = false
							w.mail[reader] = nil
							if err := w.deliver(ctx, reader, letters); err != nil {
								b.Fatal(err)
							}
						}
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*size), "µs/order")
		})
	}
}
