package payments

import (
	"context"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/consumers/event"
	"converge/internal/sweep"
	"converge/producers/outbox"
)

// Config is what a Service needs.
type Config struct {
	Pool    *pgxpool.Pool // confined to the service's schema; the caller closes it
	Outbox  *outbox.Outbox
	Decoder event.Decoder

	// OrderDeadline is how long an order may take; 0: 30 s. The provider of a card-slow takes half as
	// long again to answer.
	OrderDeadline time.Duration

	Logger *slog.Logger // nil: none
}

// Service is Payments. It is safe for concurrent use, and several processes may run it on one database.
type Service struct {
	pool     *pgxpool.Pool
	outbox   *outbox.Outbox
	decoder  event.Decoder
	slowCard time.Duration
	log      *slog.Logger
}

// New returns the service. It starts nothing and connects to nothing.
func New(cfg Config) *Service {
	s := &Service{pool: cfg.Pool, outbox: cfg.Outbox, decoder: cfg.Decoder, slowCard: cfg.OrderDeadline * 3 / 2, log: cfg.Logger}
	if s.slowCard == 0 {
		s.slowCard = 45 * time.Second
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

// Run lets slow cards answer when they are due, until ctx ends; then it returns nil. It outlives outages
// of the database.
func (s *Service) Run(ctx context.Context) error {
	return sweep.Every(ctx, sweepEvery, s.log, "slow cards", func(ctx context.Context) (bool, error) {
		n, err := s.sweep(ctx)
		return n == sweepLimit, err
	})
}

// answerNamespace keeps ids derived from orders here apart from those that others derive.
var answerNamespace = uuid.NewSHA1(uuid.NameSpaceURL, []byte("converge/payments/answer"))

// answerID derives the id of a slow card's PaymentAuthorized from its order.
func answerID(orderID string) uuid.UUID { return uuid.NewSHA1(answerNamespace, []byte(orderID)) }
