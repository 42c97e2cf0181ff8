package shipping

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"converge/consumers/event"
	"converge/producers/catalog"
	"converge/producers/outbox"
	"converge/schemas"
)

// Config is what a Service needs.
type Config struct {
	Outbox  *outbox.Outbox
	Decoder event.Decoder
}

// Service is Shipping. It is safe for concurrent use.
type Service struct {
	outbox  *outbox.Outbox
	decoder event.Decoder
}

// New returns the service. It starts nothing.
func New(cfg Config) *Service { return &Service{outbox: cfg.Outbox, decoder: cfg.Decoder} }

// Handler returns what Shipping does with each event that it reads. Every type takes part in the same
// batches, so that a run of events costs one round trip beside the batch's own two.
func (s *Service) Handler() event.Handler {
	return event.Handler{Batch: map[string]event.Batch{
		"PaymentAuthorized": s.apply,
		"OrderCancelled":    s.apply,
		"OrderTimedOut":     s.apply,
	}}
}

// request is an event with what it asks for.
type request struct {
	event   *event.Event
	orderID string
	country string // of a PaymentAuthorized
}

// apply takes the events through the rules, in their order.
func (s *Service) apply(ctx context.Context, tx pgx.Tx, events []*event.Event) error {
	requests := make([]request, 0, len(events))
	orderIDs := make([]string, 0, len(events))
	for _, e := range events {
		r, err := s.read(ctx, e)
		if err != nil {
			return err
		}
		requests, orderIDs = append(requests, r), append(orderIDs, r.orderID)
	}
	rows, err := lock(ctx, tx, events[0].Partition, orderIDs)
	if err != nil {
		return err
	}
	var said []outbox.Event
	for _, r := range requests {
		row := rows[r.orderID]
		next, say := On(row.state, r.event.Type, r.country)
		if say == "" {
			continue // nothing is said of a state that did not change
		}
		row.state, row.changed = next, true
		row.version++
		if r.country != "" {
			row.country = r.country
		}
		if say == SaidArranged {
			id, err := uuid.NewV7()
			if err != nil {
				return fmt.Errorf("making a shipment id: %w", err)
			}
			row.id = &id
		}
		said = append(said, tell(r, say, row))
	}
	if len(said) == 0 {
		return nil
	}
	if err := save(ctx, tx, rows); err != nil {
		return err
	}
	return s.outbox.Append(ctx, tx, said...)
}

// read decodes an event. One that no order can mean is permanently refused.
func (s *Service) read(ctx context.Context, e *event.Event) (request, error) {
	r := request{event: e}
	var err error
	switch e.Type {
	case "PaymentAuthorized":
		var data schemas.PaymentAuthorized
		err = s.decoder.Decode(ctx, e.Type, e.ContentType, e.Value, &data)
		r.orderID, r.country = data.OrderID, data.ShipCountry
	case "OrderCancelled":
		var data schemas.OrderCancelled
		err = s.decoder.Decode(ctx, e.Type, e.ContentType, e.Value, &data)
		r.orderID = data.OrderID
	case "OrderTimedOut":
		var data schemas.OrderTimedOut
		err = s.decoder.Decode(ctx, e.Type, e.ContentType, e.Value, &data)
		r.orderID = data.OrderID
	default:
		err = event.Permanentf("shipping does not read %s", e.Type)
	}
	if err == nil && !catalog.ValidID(r.orderID) {
		err = event.Permanentf("%s names no order", e.Type)
	}
	return r, err
}

func tell(r request, say string, row *shipment) outbox.Event {
	e := outbox.Event{
		Type:             say,
		AggregateType:    "shipment",
		AggregateID:      r.orderID,
		AggregateVersion: row.version,
		Cause: outbox.Cause{
			CorrelationID: r.event.CorrelationID,
			CausationID:   r.event.ID.String(),
			Traceparent:   r.event.Traceparent,
		},
	}
	switch say {
	case SaidArranged:
		e.Data = schemas.ShipmentArranged{OrderID: r.orderID, ShipmentID: row.id.String()}
	case SaidFailed:
		e.Data = schemas.ShipmentFailed{OrderID: r.orderID, Reason: "shipment_refused"}
	case SaidCancelled:
		e.Data = schemas.ShipmentCancelled{OrderID: r.orderID}
	}
	return e
}
