package inventory

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"converge/consumers/event"
	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/producers/catalog"
	"converge/producers/outbox"
	"converge/schemas"
)

func open(t *testing.T) (*Service, *pgxpool.Pool) {
	t.Helper()
	url := pgtest.Database(t, "inventory", func(ctx context.Context, url string) error {
		return database.Migrate(ctx, url, database.Module{Service: "inventory", Sets: []database.Set{
			{Name: "outbox", FS: outbox.Migrations}, {Name: "inventory", FS: Migrations}}})
	})
	pool, err := database.Open(t.Context(), url, "inventory", 16)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	codec := schemas.NewCodec(schemas.JSON, schemas.IDs{})
	return New(Config{Pool: pool, Outbox: outbox.New(codec), Decoder: codec}), pool
}

func newEvent(t *testing.T, eventType string, data any) *event.Event {
	t.Helper()
	value, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	return &event.Event{ID: uuid.New(), Type: eventType, ContentType: schemas.ContentTypeJSON, Value: value, CorrelationID: "c"}
}

func placed(t *testing.T, orderID string, lines ...schemas.Line) *event.Event {
	return newEvent(t, "OrderPlaced", schemas.OrderPlaced{OrderID: orderID, CustomerID: "c-1", Items: lines, TotalAmount: 5, Currency: "USD"})
}

func apply(ctx context.Context, s *Service, pool *pgxpool.Pool, events ...*event.Event) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return s.apply(ctx, tx, events) })
}

func said(t *testing.T, pool *pgxpool.Pool) []string {
	t.Helper()
	rows, err := pool.Query(t.Context(), "SELECT event_type || ' ' || aggregate_id || ' v' || aggregate_version FROM outbox ORDER BY seq")
	if err != nil {
		t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func level(t *testing.T, pool *pgxpool.Pool, sku string) Level {
	t.Helper()
	found, ok, err := oneStock(t.Context(), pool, findStockSQL, sku)
	if err != nil || !ok {
		t.Fatal(err, ok)
	}
	return Level{found.Available, found.Reserved}
}

func TestHandlesWhatTheTopologySays(t *testing.T) {
	got := New(Config{}).Handler().Types()
	slices.Sort(got)
	_, want := schemas.ReadBy("inventory")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-topology +handler:\n%s", diff)
	}
}

func TestEveryProductHasStockAndEveryStockIsAProduct(t *testing.T) {
	_, pool := open(t)
	rows, err := pool.Query(t.Context(), "SELECT sku FROM stock ORDER BY sku")
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, p := range catalog.Products() {
		want = append(want, p.SKU)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-catalog +stock:\n%s", diff)
	}
}

func TestReservesAllLinesOrNone(t *testing.T) {
	s, pool := open(t)
	if err := apply(t.Context(), s, pool,
		placed(t, "o-1", schemas.Line{SKU: "BOOK-1", Quantity: 2}, schemas.Line{SKU: "RARE-1", Quantity: 2}),
		placed(t, "o-2", schemas.Line{SKU: "BOOK-1", Quantity: 3}, schemas.Line{SKU: "RARE-1", Quantity: 1}),
		placed(t, "o-3", schemas.Line{SKU: "RARE-1", Quantity: 1}),
		placed(t, "o-4", schemas.Line{SKU: "NONE", Quantity: 1}),
	); err != nil {
		t.Fatal(err)
	}
	want := []string{"StockRejected o-1 v1", "StockReserved o-2 v1", "StockRejected o-3 v1", "StockRejected o-4 v1"}
	if diff := cmp.Diff(want, said(t, pool)); diff != "" {
		t.Error(diff)
	}
	if got := level(t, pool, "RARE-1"); got != (Level{0, 1}) {
		t.Errorf("RARE-1: %+v", got)
	}
	if got := level(t, pool, "BOOK-1"); got.Reserved != 3 {
		t.Errorf("BOOK-1: %+v", got)
	}
}

func TestReleasesOnceWhateverCameFirst(t *testing.T) {
	s, pool := open(t)
	rare := schemas.Line{SKU: "RARE-1", Quantity: 1}
	for _, events := range [][]*event.Event{
		{newEvent(t, "OrderCancelled", schemas.OrderCancelled{OrderID: "early"})},
		{placed(t, "early", rare)},
		{placed(t, "late", rare), newEvent(t, "PaymentDeclined", schemas.PaymentDeclined{OrderID: "late"})},
		{newEvent(t, "OrderTimedOut", schemas.OrderTimedOut{OrderID: "late"}), newEvent(t, "ShipmentFailed", schemas.ShipmentFailed{OrderID: "late"})},
		{placed(t, "late", rare)},
	} {
		if err := apply(t.Context(), s, pool, events...); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"StockReleased early v1", "StockReserved late v1", "StockReleased late v2"}
	if diff := cmp.Diff(want, said(t, pool)); diff != "" {
		t.Error(diff)
	}
	if got := level(t, pool, "RARE-1"); got != (Level{1, 0}) {
		t.Errorf("RARE-1: %+v", got)
	}
}

// Sixteen transactions at once want the last copy and, in changing order, what else there is.
func TestTheLastPieceGoesToOneOfManyAtOnce(t *testing.T) {
	s, pool := open(t)
	var g errgroup.Group
	for i := range 16 {
		lines := []schemas.Line{{SKU: "BOOK-1", Quantity: 1}, {SKU: "MUG-1", Quantity: 1}, {SKU: "LAMP-1", Quantity: 1}}
		for range i % 3 {
			lines = append(lines[1:], lines[0])
		}
		with := append([]schemas.Line{{SKU: "RARE-1", Quantity: 1}}, lines[:1]...)
		first, second := placed(t, fmt.Sprintf("a-%d", i), lines[1]), placed(t, fmt.Sprintf("b-%d", i), with...)
		g.Go(func() error {
			return pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
				if err := s.apply(t.Context(), tx, []*event.Event{first}); err != nil {
					return err
				}
				return s.apply(t.Context(), tx, []*event.Event{second})
			})
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err) // a deadlock among them
	}
	var winners int
	for _, line := range said(t, pool) {
		if line[:len("StockReserved b")] == "StockReserved b" {
			winners++
		}
	}
	if got := level(t, pool, "RARE-1"); winners != 1 || got != (Level{0, 1}) {
		t.Errorf("%d orders got the last piece, %+v", winners, got)
	}
}

func TestRefusesForeverWhatNoOrderCanMean(t *testing.T) {
	s, pool := open(t)
	for name, e := range map[string]*event.Event{
		"no id":            placed(t, "", schemas.Line{SKU: "BOOK-1", Quantity: 1}),
		"NUL in the id":    placed(t, "o\x00", schemas.Line{SKU: "BOOK-1", Quantity: 1}),
		"nothing of it":    placed(t, "o-1", schemas.Line{SKU: "BOOK-1", Quantity: 0}),
		"less than none":   placed(t, "o-1", schemas.Line{SKU: "BOOK-1", Quantity: -5}),
		"no product":       placed(t, "o-1", schemas.Line{Quantity: 1}),
		"another's events": newEvent(t, "OrderStatusChanged", schemas.OrderStatusChanged{OrderID: "o-1"}),
	} {
		if err := apply(t.Context(), s, pool, e); err == nil || event.Classify(err) != event.ClassPermanent {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := said(t, pool); len(got) > 0 {
		t.Errorf("said %q", got)
	}
}
