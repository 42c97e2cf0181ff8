package payments

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"converge/consumers/event"
	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/producers/catalog"
	"converge/producers/httpapi"
	"converge/producers/outbox"
	"converge/schemas"
)

func open(t *testing.T, orderDeadline time.Duration) (*Service, *pgxpool.Pool) {
	t.Helper()
	url := pgtest.Database(t, "payments", func(ctx context.Context, url string) error {
		return database.Migrate(ctx, url, database.Module{Service: "payments", Sets: []database.Set{
			{Name: "outbox", FS: outbox.Migrations}, {Name: "httpapi", FS: httpapi.Migrations}, {Name: "payments", FS: Migrations}}})
	})
	pool, err := database.Open(t.Context(), url, "payments", 8)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	codec := schemas.NewCodec(schemas.JSON, schemas.IDs{})
	return New(Config{Pool: pool, Outbox: outbox.New(codec), Decoder: codec, OrderDeadline: orderDeadline}), pool
}

func newEvent(t *testing.T, eventType string, data any) *event.Event {
	t.Helper()
	value, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	return &event.Event{ID: uuid.New(), Type: eventType, ContentType: schemas.ContentTypeJSON, Value: value, CorrelationID: "c"}
}

func reserved(t *testing.T, orderID, method string) *event.Event {
	return newEvent(t, "StockReserved", schemas.StockReserved{OrderID: orderID, CustomerID: "c-1", TotalAmount: 700, Currency: "USD",
		PaymentMethod: method, ShipCountry: "DE"})
}

func cancelled(t *testing.T, orderID string) *event.Event {
	return newEvent(t, "OrderCancelled", schemas.OrderCancelled{OrderID: orderID})
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

func TestHandlesWhatTheTopologySays(t *testing.T) {
	got := New(Config{}).Handler().Types()
	slices.Sort(got)
	_, want := schemas.ReadBy("payments")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-topology +handler:\n%s", diff)
	}
}

func TestChargesByTheTestValues(t *testing.T) {
	s, pool := open(t, time.Hour)
	if err := apply(t.Context(), s, pool, reserved(t, "ok", catalog.CardOK), reserved(t, "declined", catalog.CardDeclined),
		reserved(t, "slow", catalog.CardSlow), reserved(t, "ok", catalog.CardOK)); err != nil {
		t.Fatal(err)
	}
	flaky := reserved(t, "flaky", catalog.CardError2)
	for flaky.Attempt = range 2 {
		err := apply(t.Context(), s, pool, flaky)
		if !errors.Is(err, ErrProvider) || event.Classify(err) != event.ClassRetriable {
			t.Fatalf("attempt %d: %v", flaky.Attempt, err)
		}
	}
	flaky.Attempt = 2
	if err := apply(t.Context(), s, pool, flaky); err != nil {
		t.Fatal(err)
	}
	want := []string{"PaymentAuthorized ok v1", "PaymentDeclined declined v1", "PaymentAuthorized flaky v1"}
	if diff := cmp.Diff(want, said(t, pool)); diff != "" {
		t.Error(diff)
	}
}

func TestVoidsOnceWhateverCameFirst(t *testing.T) {
	s, pool := open(t, time.Hour)
	for _, events := range [][]*event.Event{
		{cancelled(t, "early"), reserved(t, "late", catalog.CardOK), reserved(t, "slow", catalog.CardSlow)},
		{reserved(t, "early", catalog.CardError2)}, // the tombstone knows better than to ask the provider
		{newEvent(t, "ShipmentFailed", schemas.ShipmentFailed{OrderID: "late"}), newEvent(t, "OrderTimedOut", schemas.OrderTimedOut{OrderID: "late"})},
		{cancelled(t, "slow")},
		{reserved(t, "late", catalog.CardOK)},
	} {
		if err := apply(t.Context(), s, pool, events...); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"PaymentVoided early v1", "PaymentAuthorized late v1", "PaymentVoided late v2", "PaymentVoided slow v2"}
	if diff := cmp.Diff(want, said(t, pool)); diff != "" {
		t.Error(diff)
	}
}

// Two sweepers at once, as two processes have, and a slow card whose payment was voided meanwhile.
func TestASlowCardAnswersOnceWhenItIsDue(t *testing.T) {
	s, pool := open(t, time.Nanosecond)
	if err := apply(t.Context(), s, pool, reserved(t, "o-1", catalog.CardSlow), reserved(t, "o-2", catalog.CardSlow), reserved(t, "o-3", catalog.CardSlow)); err != nil {
		t.Fatal(err)
	}
	if err := apply(t.Context(), s, pool, cancelled(t, "o-3")); err != nil {
		t.Fatal(err)
	}
	var g errgroup.Group
	for range 4 {
		g.Go(func() error {
			_, err := s.sweep(t.Context())
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	got := said(t, pool)
	slices.Sort(got)
	want := []string{"PaymentAuthorized o-1 v2", "PaymentAuthorized o-2 v2", "PaymentVoided o-3 v2"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	var id uuid.UUID
	var causation string
	if err := pool.QueryRow(t.Context(), "SELECT event_id, headers->>'causation_id' FROM outbox WHERE aggregate_id = 'o-1'").Scan(&id, &causation); err != nil {
		t.Fatal(err)
	}
	if id != answerID("o-1") || causation == "" {
		t.Errorf("event id %s, caused by %q", id, causation)
	}
}

func TestASlowCardIsSlowerThanTheOrderMayTake(t *testing.T) {
	for _, deadline := range []time.Duration{0, time.Second, 30 * time.Second} {
		s := New(Config{OrderDeadline: deadline})
		if deadline == 0 {
			deadline = 30 * time.Second
		}
		if s.slowCard <= deadline {
			t.Errorf("deadline %v: the card answers after %v", deadline, s.slowCard)
		}
	}
}
