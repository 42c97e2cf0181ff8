package shipping

import (
	"context"
	"encoding/json"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"converge/consumers/event"
	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/producers/catalog"
	"converge/producers/outbox"
	"converge/schemas"
)

func newEvent(t *testing.T, eventType string, data any) *event.Event {
	t.Helper()
	value, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	return &event.Event{ID: uuid.New(), Type: eventType, ContentType: schemas.ContentTypeJSON, Value: value, CorrelationID: "c"}
}

func TestHandlesWhatTheTopologySays(t *testing.T) {
	got := New(Config{}).Handler().Types()
	slices.Sort(got)
	_, want := schemas.ReadBy("shipping")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-topology +handler:\n%s", diff)
	}
}

func TestShipsOnceAndNeverAfterACancellation(t *testing.T) {
	url := pgtest.Database(t, "shipping", func(ctx context.Context, url string) error {
		return database.Migrate(ctx, url, database.Module{Service: "shipping", Sets: []database.Set{
			{Name: "outbox", FS: outbox.Migrations}, {Name: "shipping", FS: Migrations}}})
	})
	pool, err := database.Open(t.Context(), url, "shipping", 4)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	codec := schemas.NewCodec(schemas.JSON, schemas.IDs{})
	s := New(Config{Outbox: outbox.New(codec), Decoder: codec})
	paid := func(orderID, country string) *event.Event {
		return newEvent(t, "PaymentAuthorized", schemas.PaymentAuthorized{OrderID: orderID, PaymentID: "p", Amount: 1, Currency: "USD", ShipCountry: country})
	}
	cancelled := func(orderID string) *event.Event {
		return newEvent(t, "OrderCancelled", schemas.OrderCancelled{OrderID: orderID})
	}
	for _, events := range [][]*event.Event{
		{paid("served", "DE"), paid("refused", catalog.NotServed), cancelled("early"), paid("called-off", "DE")},
		{paid("early", "DE"), paid("served", "DE"), cancelled("called-off"), newEvent(t, "OrderTimedOut", schemas.OrderTimedOut{OrderID: "called-off"})},
		{cancelled("refused")},
	} {
		if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return s.apply(t.Context(), tx, events) }); err != nil {
			t.Fatal(err)
		}
	}
	rows, err := pool.Query(t.Context(), "SELECT event_type || ' ' || aggregate_id || ' v' || aggregate_version FROM outbox ORDER BY seq")
	if err != nil {
		t.Fatal(err)
	}
	said, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"ShipmentArranged served v1", "ShipmentFailed refused v1", "ShipmentCancelled early v1", "ShipmentArranged called-off v1",
		"ShipmentCancelled called-off v2", "ShipmentCancelled refused v2",
	}
	if diff := cmp.Diff(want, said); diff != "" {
		t.Error(diff)
	}
}
