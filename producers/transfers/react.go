package transfers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"converge/consumers/event"
	"converge/internal/sagas"
	"converge/producers/outbox"
	"converge/schemas"
)

// Handler returns what Transfers does with each event that it reads. Every type takes part in the same
// batches, so that a run of events costs one round trip beside the batch's own two.
func (s *Service) Handler() event.Handler {
	return event.Handler{Batch: map[string]event.Batch{
		string(LedgerDebited):   s.apply,
		string(LedgerCompleted): s.apply,
		string(LedgerFailed):    s.apply,
	}}
}

// errUnknownTransfer is retriable, and becomes a dead letter if it stays so.
var errUnknownTransfer = errors.New("no such transfer is known here")

// word is what the Ledger says of a transfer.
type word struct {
	event   *event.Event
	id      uuid.UUID
	reason  string  // of a TransferFailed
	balance balance // of account "": none
}

// apply takes the events through the rules, in their order. The balances that they tell are taken over
// whatever becomes of the transfers: they are the Ledger's to know.
func (s *Service) apply(ctx context.Context, tx pgx.Tx, events []*event.Event) error {
	words := make([]word, 0, len(events))
	ids := make([]uuid.UUID, 0, len(events))
	var balances []balance
	for _, e := range events {
		w, err := s.read(ctx, e)
		if err != nil {
			return err
		}
		words, ids = append(words, w), append(ids, w.id)
		if w.balance.account != "" {
			balances = append(balances, w.balance)
		}
	}
	found, err := sagas.Await(ctx, events, ids, func() (map[uuid.UUID]*transfer, error) { return lock(ctx, tx, ids) })
	if err != nil {
		return err
	}
	var said []outbox.Event
	for _, w := range words {
		tr, ok := found[w.id]
		if !ok {
			return fmt.Errorf("%s for transfer %s: %w", w.event.Type, w.id, errUnknownTransfer)
		}
		why := outbox.Cause{CorrelationID: w.event.CorrelationID, CausationID: w.event.ID.String(), Traceparent: w.event.Traceparent}
		said = append(said, s.move(tr, Input(w.event.Type), w.reason, w.event.ID, why)...)
	}
	if err := save(ctx, tx, found, s.answerDeadline); err != nil {
		return err
	}
	if err := saveBalances(ctx, tx, balances); err != nil {
		return err
	}
	return s.outbox.Append(ctx, tx, said...)
}

// read decodes an event. One that no transfer can mean is permanently refused.
func (s *Service) read(ctx context.Context, e *event.Event) (word, error) {
	w := word{event: e}
	var transferID string
	var err error
	switch Input(e.Type) {
	case LedgerDebited:
		var data schemas.TransferDebited
		err = s.decoder.Decode(ctx, e.Type, e.ContentType, e.Value, &data)
		transferID, w.balance = data.TransferID, balance{data.AccountID, data.Balance, data.Version}
	case LedgerCompleted:
		var data schemas.TransferCompleted
		err = s.decoder.Decode(ctx, e.Type, e.ContentType, e.Value, &data)
		transferID, w.balance = data.TransferID, balance{data.AccountID, data.Balance, data.Version}
	case LedgerFailed:
		var data schemas.TransferFailed
		err = s.decoder.Decode(ctx, e.Type, e.ContentType, e.Value, &data)
		transferID, w.balance, w.reason = data.TransferID, balance{data.AccountID, data.Balance, data.Version}, data.Reason
		if err == nil && !slices.Contains(Reasons(), w.reason) {
			err = event.Permanentf("a transfer failed for no reason that is known")
		}
	default:
		err = event.Permanentf("transfers does not read %s", e.Type)
	}
	if err != nil {
		return w, err
	}
	if w.balance.amount < 0 {
		return w, event.Permanentf("%s tells of an account that is overdrawn", e.Type)
	}
	var ok bool
	if w.id, ok = parseID(transferID); !ok {
		return w, event.Permanentf("%s names no transfer of ours", e.Type)
	}
	return w, nil
}

// parseID reads the one spelling of an id that Transfers writes.
func parseID(text string) (uuid.UUID, bool) {
	id, err := uuid.Parse(text)
	return id, err == nil && id.String() == text
}

const aggregate = "transfer"

// timedOutID makes the id of the event that the clock brings about: the same, whoever says it.
func timedOutID(id uuid.UUID) uuid.UUID { return uuid.NewSHA1(id, []byte(SaidTimedOut)) }

// move takes an input to a transfer and returns what there is to say. by is the event that brings the input,
// the zero UUID when the clock does.
func (s *Service) move(tr *transfer, in Input, reason string, by uuid.UUID, why outbox.Cause) []outbox.Event {
	next, entered, say := tr.saga.On(in, reason)
	if len(entered) == 0 {
		return nil
	}
	before := tr.saga.State
	tr.saga = next
	at := time.Now().UTC().Truncate(time.Microsecond)
	if last := tr.updatedAt.UTC(); at.Before(last) { // another process's clock was ahead
		at = last
	}
	tr.updatedAt = at
	if say == SaidTimedOut {
		by = timedOutID(tr.id)
	}
	for _, state := range entered {
		c := change{State: state, At: at}
		if by != uuid.Nil {
			c.EventID = &by
		}
		tr.entered = append(tr.entered, c)
	}
	tr.version += int64(len(entered))
	s.measure(tr, before, entered, at)
	if say == "" {
		return nil
	}
	if why.CorrelationID == "" {
		why.CorrelationID = tr.correlationID
	}
	e := outbox.Event{Type: say, AggregateType: aggregate, AggregateID: tr.id.String(), AggregateVersion: tr.version, OccurredAt: at, Cause: why}
	if say == SaidTimedOut {
		e.ID, e.Data = by, schemas.TransferTimedOut{TransferID: tr.id.String()}
	} else {
		e.Data = schemas.TransferConfirmed{TransferID: tr.id.String()}
	}
	return []outbox.Event{e}
}
