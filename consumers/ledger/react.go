package ledger

import (
	"context"
	"maps"
	"regexp"
	"slices"

	"github.com/jackc/pgx/v5"

	"converge/consumers/event"
	"converge/producers/catalog"
	"converge/producers/httpapi"
	"converge/producers/outbox"
	"converge/schemas"
)

// Handler returns what the Ledger does with each event that it reads. Every type takes part in the same
// batches, so that a run of events costs one round trip beside the batch's own two.
func (s *Service) Handler() event.Handler {
	return event.Handler{Batch: map[string]event.Batch{
		"AccountOpened": s.apply,
		Requested:       s.apply,
		Confirmed:       s.apply,
		TimedOut:        s.apply,
	}}
}

// request is an event with what it asks for.
type request struct {
	event      *event.Event
	transferID string // "" of an AccountOpened
	terms      Terms  // of a TransferRequested
	openings   []opening
}

// apply takes the events through the rules, in their order. Accounts are opened before all: a transfer that
// was asked for before its account was there may find it or not.
func (s *Service) apply(ctx context.Context, tx pgx.Tx, events []*event.Event) error {
	requests := make([]request, 0, len(events))
	var openings []opening
	var transferIDs, accountIDs []string
	for _, e := range events {
		r, err := s.read(ctx, e)
		if err != nil {
			return err
		}
		requests, openings = append(requests, r), append(openings, r.openings...)
		if r.transferID != "" {
			transferIDs = append(transferIDs, r.transferID)
		}
		if r.terms != (Terms{}) {
			accountIDs = append(accountIDs, r.terms.From, r.terms.To, Clearing(r.terms.Currency))
		}
	}
	rows, book, err := lock(ctx, tx, openings, transferIDs, accountIDs)
	if err != nil {
		return err
	}
	before := maps.Clone(book)
	var said []outbox.Event
	var entries []entered
	for _, r := range requests {
		row := rows[r.transferID]
		if row == nil {
			continue // an AccountOpened
		}
		if row.state == Untouched {
			row.terms = r.terms
		}
		step := On(row.state, r.event.Type, row.terms, book)
		if step.Next == row.state {
			continue
		}
		row.state, row.changed = step.Next, true
		row.version++
		if step.Entry != nil {
			entries = append(entries, entered{r.transferID, *step.Entry})
		}
		said = append(said, tell(r, step, row, book))
	}
	if len(said) == 0 {
		return nil // nothing is said of a state that did not change
	}
	if err := save(ctx, tx, rows, entries, before, book); err != nil {
		return err
	}
	return s.outbox.Append(ctx, tx, said...)
}

// maxAmount is the largest that every JSON reader holds exactly (RFC 8259, section 6), in minor units.
const maxAmount = 1<<53 - 1

var currency = regexp.MustCompile(`^[A-Z]{3}$`)

// read decodes an event. One that no transfer and no account can mean is permanently refused.
func (s *Service) read(ctx context.Context, e *event.Event) (request, error) {
	r := request{event: e}
	var err error
	switch e.Type {
	case "AccountOpened":
		var data schemas.AccountOpened
		if err = s.decoder.Decode(ctx, e.Type, e.ContentType, e.Value, &data); err == nil {
			r.openings = []opening{{data.AccountID, data.Currency, data.OpeningBalance}}
			err = checkOpenings(r.openings)
		}
		return r, err
	case Requested:
		var data schemas.TransferRequested
		if err = s.decoder.Decode(ctx, e.Type, e.ContentType, e.Value, &data); err == nil {
			r.transferID = data.TransferID
			r.terms = Terms{data.FromAccount, data.ToAccount, data.Amount, data.Currency}
			for _, a := range data.Accounts {
				r.openings = append(r.openings, opening{a.AccountID, data.Currency, a.OpeningBalance})
			}
			err = checkTerms(r.terms, r.openings)
		}
	case Confirmed:
		var data schemas.TransferConfirmed
		err = s.decoder.Decode(ctx, e.Type, e.ContentType, e.Value, &data)
		r.transferID = data.TransferID
	case TimedOut:
		var data schemas.TransferTimedOut
		err = s.decoder.Decode(ctx, e.Type, e.ContentType, e.Value, &data)
		r.transferID = data.TransferID
	default:
		err = event.Permanentf("the ledger does not read %s", e.Type)
	}
	if err == nil && !catalog.ValidID(r.transferID) {
		err = event.Permanentf("%s names no transfer", e.Type)
	}
	return r, err
}

func checkTerms(terms Terms, openings []opening) error {
	switch {
	case terms.Amount < 1 || terms.Amount > maxAmount:
		return event.Permanentf("a transfer moves nothing, or more than there is")
	case !currency.MatchString(terms.Currency):
		return event.Permanentf("a transfer's currency is none")
	case !httpapi.Stored.Valid(terms.From) || !httpapi.Stored.Valid(terms.To) || terms.From == terms.To:
		return event.Permanentf("a transfer needs two accounts")
	case slices.ContainsFunc(openings, func(o opening) bool { return o.id != terms.From && o.id != terms.To }):
		return event.Permanentf("a transfer opens an account that is not its own")
	default:
		return checkOpenings(openings)
	}
}

func checkOpenings(openings []opening) error {
	for _, o := range openings {
		if !httpapi.Stored.Valid(o.id) || !currency.MatchString(o.currency) || o.balance < 0 || o.balance > maxAmount {
			return event.Permanentf("an account is opened that cannot be")
		}
	}
	return nil
}

// tell returns the event that says what was done, with the balance that it led to.
func tell(r request, step Step, row *transfer, book Book) outbox.Event {
	e := outbox.Event{
		Type:             step.Say,
		AggregateType:    "booking",
		AggregateID:      r.transferID,
		AggregateVersion: row.version,
		Cause: outbox.Cause{
			CorrelationID: r.event.CorrelationID,
			CausationID:   r.event.ID.String(),
			Traceparent:   r.event.Traceparent,
		},
	}
	payer, payee := book[row.terms.From], book[row.terms.To]
	switch step.Say {
	case SaidDebited:
		e.Data = schemas.TransferDebited{TransferID: r.transferID, AccountID: row.terms.From, Balance: payer.Balance, Version: payer.Version}
	case SaidCompleted:
		e.Data = schemas.TransferCompleted{TransferID: r.transferID, AccountID: row.terms.To, Balance: payee.Balance, Version: payee.Version}
	case SaidFailed:
		failed := schemas.TransferFailed{TransferID: r.transferID, Reason: step.Reason}
		if step.Entry != nil {
			failed.AccountID, failed.Balance, failed.Version = row.terms.From, payer.Balance, payer.Version
		}
		e.Data = failed
	}
	return e
}
