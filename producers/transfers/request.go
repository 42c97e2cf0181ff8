package transfers

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"converge/internal/pipeline"
	"converge/producers/outbox"
	"converge/schemas"
)

// terms is what a customer asks for.
type terms struct {
	from, to string
	amount   int64 // minor units
	currency string
}

// request writes a new transfer with its deadline and its TransferRequested into tx. known are those of its
// accounts that are open.
func (s *Service) request(ctx context.Context, tx pgx.Tx, asked terms, known []account) (*view, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("making a transfer id: %w", err)
	}
	eventID, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("making an event id: %w", err)
	}
	now := time.Now().UTC().Truncate(time.Microsecond) // what the database keeps
	v := &view{id: id, terms: asked, saga: Begun, version: 1, createdAt: now, updatedAt: now,
		history: []change{{State: Pending, At: now, EventID: &eventID}}}
	why := outbox.CauseFrom(ctx)
	if why.CorrelationID == "" {
		why.CorrelationID = eventID.String()
	}
	history, err := json.Marshal(v.history)
	if err != nil {
		return nil, fmt.Errorf("writing a transfer's history: %w", err)
	}
	if err := pipeline.Exec(ctx, tx, insertSQL, id, asked.from, asked.to, asked.amount, asked.currency, string(history),
		why.CorrelationID, now, s.deadline); err != nil {
		return nil, fmt.Errorf("writing a transfer: %w", err)
	}
	accounts := make([]schemas.OpenAccount, len(known))
	for i, a := range known {
		accounts[i] = schemas.OpenAccount{AccountID: a.id, OpeningBalance: a.opening}
	}
	err = s.outbox.Append(ctx, tx, outbox.Event{ID: eventID, Type: "TransferRequested", AggregateType: aggregate, AggregateID: id.String(),
		AggregateVersion: 1, OccurredAt: now, Cause: why, Data: schemas.TransferRequested{
			TransferID:  id.String(),
			FromAccount: asked.from,
			ToAccount:   asked.to,
			Amount:      asked.amount,
			Currency:    asked.currency,
			Accounts:    accounts,
		}})
	if err != nil {
		return nil, err
	}
	pipeline.After(tx, func() { s.metrics.Moved("", string(Pending)) })
	return v, nil
}

// open writes a new account and its AccountOpened into tx; taken says that there is one of its id, and
// nothing was written.
func (s *Service) open(ctx context.Context, tx pgx.Tx, a account) (taken bool, err error) {
	if taken, err = open(ctx, tx, a); taken || err != nil {
		return taken, err
	}
	return false, s.outbox.Append(ctx, tx, outbox.Event{Type: "AccountOpened", AggregateType: "account", AggregateID: a.id, AggregateVersion: a.version,
		Data: schemas.AccountOpened{AccountID: a.id, Currency: a.currency, OpeningBalance: a.opening}})
}
