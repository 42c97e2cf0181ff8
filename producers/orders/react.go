package orders

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"converge/consumers/event"
	"converge/internal/sagas"
	"converge/producers/outbox"
	"converge/schemas"
)

// Handler returns what Orders does with each event that it reads. Every type takes part in the same
// batches, so that a run of events costs one round trip beside the batch's own two.
func (s *Service) Handler() event.Handler {
	batch := map[string]event.Batch{}
	for _, in := range Inputs() {
		if in != Cancel && in != DeadlinePassed && in != AcksOverdue {
			batch[string(in)] = s.apply
		}
	}
	return event.Handler{Batch: batch}
}

// errUnknownOrder is retriable, and becomes a dead letter if it stays so.
var errUnknownOrder = errors.New("no such order is known here")

// apply takes the events through the rules, in their order.
func (s *Service) apply(ctx context.Context, tx pgx.Tx, events []*event.Event) error {
	ids := make([]uuid.UUID, 0, len(events))
	for _, e := range events {
		id, err := s.read(ctx, e)
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	found, err := sagas.Await(ctx, events, ids, func() (map[uuid.UUID]*order, error) { return lockAll(ctx, tx, events[0].Partition, ids) })
	if err != nil {
		return err
	}
	var said []outbox.Event
	for i, e := range events {
		o, ok := found[ids[i]]
		if !ok {
			return fmt.Errorf("%s for order %s: %w", e.Type, ids[i], errUnknownOrder)
		}
		why := outbox.Cause{CorrelationID: e.CorrelationID, CausationID: e.ID.String(), Traceparent: e.Traceparent}
		said = append(said, s.move(o, Input(e.Type), e.ID, why, outboxChooses)...)
	}
	if err := save(ctx, tx, found, s.ackDeadline); err != nil {
		return err
	}
	return s.outbox.Append(ctx, tx, said...)
}

// read returns the order that an event is about.
func (s *Service) read(ctx context.Context, e *event.Event) (uuid.UUID, error) {
	var orderID string
	var err error
	switch Input(e.Type) {
	case StockReserved:
		orderID, err = decode(ctx, s, e, func(d schemas.StockReserved) string { return d.OrderID })
	case StockRejected:
		orderID, err = decode(ctx, s, e, func(d schemas.StockRejected) string { return d.OrderID })
	case StockReleased:
		orderID, err = decode(ctx, s, e, func(d schemas.StockReleased) string { return d.OrderID })
	case PaymentAuthorized:
		orderID, err = decode(ctx, s, e, func(d schemas.PaymentAuthorized) string { return d.OrderID })
	case PaymentDeclined:
		orderID, err = decode(ctx, s, e, func(d schemas.PaymentDeclined) string { return d.OrderID })
	case PaymentVoided:
		orderID, err = decode(ctx, s, e, func(d schemas.PaymentVoided) string { return d.OrderID })
	case ShipmentArranged:
		orderID, err = decode(ctx, s, e, func(d schemas.ShipmentArranged) string { return d.OrderID })
	case ShipmentFailed:
		orderID, err = decode(ctx, s, e, func(d schemas.ShipmentFailed) string { return d.OrderID })
	case ShipmentCancelled:
		orderID, err = decode(ctx, s, e, func(d schemas.ShipmentCancelled) string { return d.OrderID })
	default:
		err = event.Permanentf("orders does not read %s", e.Type)
	}
	if err != nil {
		return uuid.Nil, err
	}
	id, ok := parseID(orderID)
	if !ok {
		return uuid.Nil, event.Permanentf("%s names no order of ours", e.Type)
	}
	return id, nil
}

func decode[T any](ctx context.Context, s *Service, e *event.Event, orderID func(T) string) (string, error) {
	var data T
	err := s.decoder.Decode(ctx, e.Type, e.ContentType, e.Value, &data)
	return orderID(data), err
}

// parseID reads the one spelling of an id that Orders writes.
func parseID(text string) (uuid.UUID, bool) {
	id, err := uuid.Parse(text)
	return id, err == nil && id.String() == text
}

// eventIDs makes the id of an event that a move says.
type eventIDs func(o *order, name string) uuid.UUID

// outboxChooses leaves the ids to the outbox, which makes UUIDv7s.
func outboxChooses(*order, string) uuid.UUID { return uuid.Nil }

// fromOrder derives the id from the order and the name: a decision of the clock that is taken again,
// after a commit whose answer was lost, says the same events.
func fromOrder(o *order, name string) uuid.UUID { return uuid.NewSHA1(o.id, []byte(name)) }

// move takes the order through the input and returns what there is to say of it: the outcome, if Orders
// decided it here, and every change of state. by is the event that brings the input, the zero UUID when
// none does.
func (s *Service) move(o *order, in Input, by uuid.UUID, why outbox.Cause, ids eventIDs) []outbox.Event {
	next, entered := o.saga.On(in)
	if next == o.saga {
		return nil
	}
	before := o.saga
	o.saga, o.touched = next, true
	if len(entered) == 0 {
		return nil
	}
	at := later(time.Now().UTC().Truncate(time.Microsecond), o.updatedAt.UTC())
	o.updatedAt = at
	s.measure(o, before.State(), entered, at)
	if in == DeadlinePassed || in == AcksOverdue {
		s.metrics.TimedOut(string(before.State()))
	}
	if why.CorrelationID == "" {
		why.CorrelationID = o.correlationID
	}

	var said []outbox.Event
	if announcement := next.Outcome.Announcement(); announcement != "" && before.Outcome == Undecided {
		if by == uuid.Nil {
			by = fromOrder(o, announcement)
		}
		said = append(said, outbox.Event{ID: by, Type: announcement, AggregateType: aggregate, AggregateID: o.id.String(),
			AggregateVersion: o.version + 1, OccurredAt: at, Cause: why, Data: announcementData(announcement, o.id)})
		why.CausationID = by.String()
	}
	for _, state := range entered {
		o.version++
		c := change{State: state, At: at}
		if by != uuid.Nil {
			c.EventID = &by
		}
		o.entered = append(o.entered, c)
		said = append(said, outbox.Event{ID: ids(o, fmt.Sprintf("OrderStatusChanged/%d", o.version)), Type: "OrderStatusChanged",
			AggregateType: aggregate, AggregateID: o.id.String(), AggregateVersion: o.version, OccurredAt: at, Cause: why,
			Data: schemas.OrderStatusChanged{
				OrderID:     o.id.String(),
				CustomerID:  o.customerID,
				State:       state.Public(),
				DetailState: string(state),
				Reason:      next.Outcome.ReasonIn(state),
				TotalAmount: o.total,
				Currency:    o.currency,
			}})
		switch {
		case state.Terminal():
			o.due = dueEnded
		case state == Stuck:
			o.due = dueNever
		case state == Compensating:
			o.due = dueAcknowledgement
		}
	}
	return said
}

const aggregate = "order"

// later keeps the times of an order from running backwards when another process's clock was ahead.
func later(now, last time.Time) time.Time {
	if now.Before(last) {
		return last
	}
	return now
}

func announcementData(eventType string, id uuid.UUID) any {
	if eventType == "OrderCancelled" {
		return schemas.OrderCancelled{OrderID: id.String()}
	}
	return schemas.OrderTimedOut{OrderID: id.String()}
}
