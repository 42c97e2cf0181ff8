package payments

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"converge/consumers/event"
	"converge/producers/catalog"
	"converge/producers/httpapi"
	"converge/producers/outbox"
	"converge/schemas"
)

// Handler returns what Payments does with each event that it reads. Every type takes part in the same
// batches, so that a run of events costs one round trip beside the batch's own two.
func (s *Service) Handler() event.Handler {
	return event.Handler{Batch: map[string]event.Batch{
		"StockReserved":  s.apply,
		"ShipmentFailed": s.apply,
		"OrderCancelled": s.apply,
		"OrderTimedOut":  s.apply,
	}}
}

// request is an event with what it asks for.
type request struct {
	event   *event.Event
	orderID string
	terms   terms  // of a StockReserved
	tenant  string // of a StockReserved
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
	changed := false
	for _, r := range requests {
		row := rows[r.orderID]
		next, say, err := On(row.state, r.event.Type, r.terms.method, r.event.Attempt)
		if err != nil {
			return err
		}
		if next == row.state {
			continue
		}
		if row.state == Untouched {
			row.terms, row.tenant = r.terms, r.tenant
		}
		row.enter(next, &r.event.ID)
		changed = true
		row.cause = cause{r.event.CorrelationID, r.event.ID.String()}
		if say != "" {
			said = append(said, tell(row, say, r.event.Traceparent))
		}
	}
	if !changed {
		return nil
	}
	if err := save(ctx, tx, rows, s.slowCard); err != nil {
		return err
	}
	return s.outbox.Append(ctx, tx, said...)
}

// read decodes an event. One that no order can mean is permanently refused.
func (s *Service) read(ctx context.Context, e *event.Event) (request, error) {
	r := request{event: e}
	var err error
	switch e.Type {
	case "StockReserved":
		var data schemas.StockReserved
		err = s.decoder.Decode(ctx, e.Type, e.ContentType, e.Value, &data)
		if err == nil && data.TotalAmount < 0 {
			err = event.Permanentf("an order asks for less than nothing")
		}
		r.orderID = data.OrderID
		r.tenant = httpapi.TenantOf(data.CustomerID)
		r.terms = terms{&data.TotalAmount, data.Currency, data.PaymentMethod, data.ShipCountry}
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
		err = event.Permanentf("payments does not read %s", e.Type)
	}
	if err == nil && !catalog.ValidID(r.orderID) {
		err = event.Permanentf("%s names no order", e.Type)
	}
	return r, err
}

// tell returns the event that says what became of the payment.
func tell(p *payment, say, traceparent string) outbox.Event {
	e := outbox.Event{
		Type:             say,
		AggregateType:    "payment",
		AggregateID:      p.orderID,
		AggregateVersion: p.version,
		Cause: outbox.Cause{
			CorrelationID: p.cause.correlationID,
			CausationID:   p.cause.causationID,
			Traceparent:   traceparent,
		},
	}
	switch say {
	case SaidAuthorized:
		e.Data = schemas.PaymentAuthorized{
			OrderID:     p.orderID,
			PaymentID:   p.id.String(),
			Amount:      *p.terms.amount,
			Currency:    p.terms.currency,
			ShipCountry: p.terms.country,
		}
	case SaidDeclined:
		e.Data = schemas.PaymentDeclined{OrderID: p.orderID, Reason: "payment_declined"}
	case SaidVoided:
		e.Data = schemas.PaymentVoided{OrderID: p.orderID}
	}
	return e
}

// sweepLimit bounds one transaction of the sweeper.
const sweepLimit = 100

// sweep lets the providers of slow cards answer that are due, and returns how many were.
func (s *Service) sweep(ctx context.Context) (answered int, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		list, err := due(ctx, tx, sweepLimit)
		if err != nil || len(list) == 0 {
			return err
		}
		rows := map[string]*payment{}
		var said []outbox.Event
		for _, p := range list {
			next, say := Answer(p.state)
			if say == "" {
				continue
			}
			p.enter(next, nil)
			rows[p.orderID] = p
			e := tell(p, say, "")
			e.ID = answerID(p.orderID)
			said = append(said, e)
		}
		answered = len(said)
		if err := save(ctx, tx, rows, s.slowCard); err != nil {
			return err
		}
		return s.outbox.Append(ctx, tx, said...)
	})
	return answered, err
}

// sweepEvery is how often the sweeper looks for slow cards that are due.
const sweepEvery = 250 * time.Millisecond
