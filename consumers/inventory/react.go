package inventory

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"

	"github.com/jackc/pgx/v5"

	"converge/consumers/event"
	"converge/producers/catalog"
	"converge/producers/outbox"
	"converge/schemas"
)

// Handler returns what Inventory does with each event that it reads. Every type takes part in the same
// batches, so that a run of events costs one round trip beside the batch's own two.
func (s *Service) Handler() event.Handler {
	return event.Handler{Batch: map[string]event.Batch{
		"OrderPlaced":     s.apply,
		"PaymentDeclined": s.apply,
		"ShipmentFailed":  s.apply,
		"OrderCancelled":  s.apply,
		"OrderTimedOut":   s.apply,
	}}
}

// request is an event with what it asks for.
type request struct {
	event   *event.Event
	orderID string
	placed  schemas.OrderPlaced // zero unless the event is one
	lines   []Line
}

// apply takes the events through the rules, in their order.
func (s *Service) apply(ctx context.Context, tx pgx.Tx, events []*event.Event) error {
	requests := make([]request, 0, len(events))
	var orderIDs, skus []string
	for _, e := range events {
		r, err := s.read(ctx, e)
		if err != nil {
			return err
		}
		requests = append(requests, r)
		orderIDs = append(orderIDs, r.orderID)
		for _, line := range r.lines {
			skus = append(skus, line.SKU)
		}
	}
	rows, shelf, err := lock(ctx, tx, orderIDs, skus)
	if err != nil {
		return err
	}
	before := maps.Clone(shelf)
	var said []outbox.Event
	for _, r := range requests {
		row := rows[r.orderID]
		if row.state == Untouched {
			row.lines = r.lines
		}
		next, say := On(row.state, r.event.Type, row.lines, shelf)
		row.changed = row.changed || next != row.state
		row.state = next
		if say != "" {
			row.version++
			said = append(said, tell(r, say, row.version))
		}
	}
	if len(said) == 0 {
		return nil // nothing is said of a state that did not change
	}
	if err := save(ctx, tx, rows, before, shelf); err != nil {
		return err
	}
	return s.outbox.Append(ctx, tx, said...)
}

// read decodes an event. One that no order can mean is permanently refused.
func (s *Service) read(ctx context.Context, e *event.Event) (request, error) {
	r := request{event: e}
	var err error
	switch e.Type {
	case "OrderPlaced":
		err = s.decoder.Decode(ctx, e.Type, e.ContentType, e.Value, &r.placed)
		r.orderID = r.placed.OrderID
		for _, item := range r.placed.Items {
			if item.Quantity < 1 || !catalog.ValidID(item.SKU) {
				return r, event.Permanentf("an order line asks for %d pieces of one product", item.Quantity)
			}
			r.lines = append(r.lines, Line{item.SKU, int64(item.Quantity)})
		}
	case "PaymentDeclined":
		var data schemas.PaymentDeclined
		err = s.decoder.Decode(ctx, e.Type, e.ContentType, e.Value, &data)
		r.orderID = data.OrderID
	case "ShipmentFailed":
		var data schemas.ShipmentFailed
		err = s.decoder.Decode(ctx, e.Type, e.ContentType, e.Value, &data)
		r.orderID = data.OrderID
	case "OrderCancelled":
		var data schemas.OrderCancelled
		err = s.decoder.Decode(ctx, e.Type, e.ContentType, e.Value, &data)
		r.orderID = data.OrderID
	case "OrderTimedOut":
		var data schemas.OrderTimedOut
		err = s.decoder.Decode(ctx, e.Type, e.ContentType, e.Value, &data)
		r.orderID = data.OrderID
	default:
		err = event.Permanentf("inventory does not read %s", e.Type)
	}
	if err == nil && !catalog.ValidID(r.orderID) {
		err = event.Permanentf("%s names no order", e.Type)
	}
	return r, err
}

func tell(r request, say string, version int64) outbox.Event {
	e := outbox.Event{
		Type:             say,
		AggregateType:    "reservation",
		AggregateID:      r.orderID,
		AggregateVersion: version,
		Cause: outbox.Cause{
			CorrelationID: r.event.CorrelationID,
			CausationID:   r.event.ID.String(),
			Traceparent:   r.event.Traceparent,
		},
	}
	switch say {
	case SaidReserved:
		e.Data = schemas.StockReserved{
			OrderID:       r.orderID,
			CustomerID:    r.placed.CustomerID,
			TotalAmount:   r.placed.TotalAmount,
			Currency:      r.placed.Currency,
			PaymentMethod: r.placed.PaymentMethod,
			ShipCountry:   r.placed.ShipCountry,
		}
	case SaidRejected:
		e.Data = schemas.StockRejected{OrderID: r.orderID, Reason: "insufficient_inventory"}
	case SaidReleased:
		e.Data = schemas.StockReleased{OrderID: r.orderID}
	}
	return e
}

func encodeLines(lines []Line) (string, error) {
	if lines == nil {
		lines = []Line{}
	}
	text, err := json.Marshal(lines)
	if err != nil {
		return "", fmt.Errorf("writing order lines: %w", err)
	}
	return string(text), nil
}
