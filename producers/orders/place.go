package orders

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"converge/internal/pipeline"
	"converge/producers/catalog"
	"converge/producers/httpapi"
	"converge/producers/outbox"
	"converge/schemas"
)

// placement is what a customer asks for. Every SKU is in the catalog.
type placement struct {
	customerID string // as stored
	items      []item
	method     string
	country    string
}

// total returns what the items cost, in minor units of [catalog.Currency].
func (p placement) total() int64 {
	var sum int64
	for _, it := range p.items {
		product, _ := catalog.Lookup(it.SKU)
		sum += product.Amount * int64(it.Quantity)
	}
	return sum
}

// place writes a new order with its deadline and its OrderPlaced into tx.
func (s *Service) place(ctx context.Context, tx pgx.Tx, p placement) (*view, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("making an order id: %w", err)
	}
	eventID, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("making an event id: %w", err)
	}
	now := time.Now().UTC().Truncate(time.Microsecond) // what the database keeps
	v := &view{id: id, customerID: p.customerID, items: p.items, total: p.total(), currency: catalog.Currency,
		state: Pending, version: 1, createdAt: now, updatedAt: now,
		history: []change{{State: Pending, At: now, EventID: &eventID}}}
	why := outbox.CauseFrom(ctx)
	if why.CorrelationID == "" {
		why.CorrelationID = eventID.String()
	}
	history, err := json.Marshal(v.history)
	if err != nil {
		return nil, fmt.Errorf("writing an order's history: %w", err)
	}
	items, err := json.Marshal(p.items)
	if err != nil {
		return nil, fmt.Errorf("writing an order's items: %w", err)
	}
	if err := pipeline.Exec(ctx, tx, insertSQL, id, p.customerID, string(items), v.total, v.currency, p.method, p.country,
		string(history), why.CorrelationID, now, s.orderDeadline); err != nil {
		return nil, fmt.Errorf("writing an order: %w", err)
	}
	lines := make([]schemas.Line, len(p.items))
	for i, it := range p.items {
		lines[i] = schemas.Line{SKU: it.SKU, Quantity: it.Quantity}
	}
	err = s.outbox.Append(ctx, tx, outbox.Event{ID: eventID, Type: "OrderPlaced", AggregateType: aggregate, AggregateID: id.String(),
		AggregateVersion: 1, OccurredAt: now, Cause: why, Data: schemas.OrderPlaced{
			OrderID:       id.String(),
			CustomerID:    p.customerID,
			Items:         lines,
			TotalAmount:   v.total,
			Currency:      v.currency,
			PaymentMethod: p.method,
			ShipCountry:   p.country,
		}})
	if err != nil {
		return nil, err
	}
	pipeline.After(tx, func() { s.metrics.Moved("", string(Pending)) })
	return v, nil
}

// cancel takes an order back, if it is still to be had: accepted says that it will end FAILED,
// cancelled. found is false when there is no such order of
// the context's tenant. Cancelling again is accepted again and changes
// nothing.
func (s *Service) cancel(ctx context.Context, tx pgx.Tx, id uuid.UUID) (found, accepted bool, err error) {
	orders, err := lockOne(ctx, tx, id)
	if err != nil {
		return false, false, err
	}
	o, ok := orders[id]
	if !ok || !httpapi.Owns(ctx, o.customerID) {
		return false, false, nil
	}
	eventID, err := uuid.NewV7()
	if err != nil {
		return true, false, fmt.Errorf("making an event id: %w", err)
	}
	why := outbox.CauseFrom(ctx)
	why.CorrelationID = o.correlationID
	said := s.move(o, Cancel, eventID, why, outboxChooses)
	if err := save(ctx, tx, orders, s.ackDeadline); err != nil {
		return true, false, err
	}
	return true, o.saga.Outcome == WasCancelled, s.outbox.Append(ctx, tx, said...)
}
