package orders

import (
	"context"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"converge/consumers/event"
	"converge/internal/sagas"
	"converge/producers/outbox"
)

// Defaults of a [Config].
const (
	DefaultOrderDeadline = 30 * time.Second
	DefaultAckDeadline   = time.Minute
)

// Config is what a Service needs.
type Config struct {
	Pool    *pgxpool.Pool // confined to the service's schema; the caller closes it
	Outbox  *outbox.Outbox
	Decoder event.Decoder

	// OrderDeadline is how long an order may take to its pivot before it is undone; 0:
	// [DefaultOrderDeadline]. It applies to orders placed from then on.
	OrderDeadline time.Duration
	// AckDeadline is how long the participants may take to acknowledge before an order is STUCK; 0:
	// [DefaultAckDeadline]. They are waited for all the same.
	AckDeadline time.Duration

	Logger     *slog.Logger          // nil: none
	Registerer prometheus.Registerer // nil: metrics are kept and not shown
}

// Service is Orders. It is safe for concurrent use, and several processes may run it on one database.
type Service struct {
	pool          *pgxpool.Pool
	outbox        *outbox.Outbox
	decoder       event.Decoder
	orderDeadline time.Duration
	ackDeadline   time.Duration
	log           *slog.Logger
	metrics       *sagas.Metrics
}

// New returns the service. It starts nothing and connects to nothing.
func New(cfg Config) *Service {
	s := &Service{
		pool:          cfg.Pool,
		outbox:        cfg.Outbox,
		decoder:       cfg.Decoder,
		orderDeadline: cfg.OrderDeadline,
		ackDeadline:   cfg.AckDeadline,
		log:           cfg.Logger,
		metrics:       newMetrics(cfg.Registerer),
	}
	if s.orderDeadline == 0 {
		s.orderDeadline = DefaultOrderDeadline
	}
	if s.ackDeadline == 0 {
		s.ackDeadline = DefaultAckDeadline
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

// Run keeps the deadlines and counts the open sagas until ctx ends; then it returns nil. It outlives
// outages of the database.
func (s *Service) Run(ctx context.Context) error {
	return s.metrics.Keep(ctx, s.pool, openSQL, s.log, s.sweep)
}

// sweep ends what is due: orders whose deadline passed are undone, compensations whose acknowledgements
// did not come are STUCK. It returns how many orders it found.
func (s *Service) sweep(ctx context.Context) (n int, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		found, err := overdue(ctx, tx, sagas.SweepLimit)
		if err != nil || len(found) == 0 {
			return err
		}
		n = len(found)
		var said []outbox.Event
		for _, o := range found {
			in := DeadlinePassed
			if o.saga.Outcome != Undecided {
				in = AcksOverdue
			}
			said = append(said, s.move(o, in, uuid.Nil, outbox.Cause{}, fromOrder)...)
			if o.saga.State() == Stuck {
				s.log.ErrorContext(ctx, "order is stuck: acknowledgements are overdue", "order_id", o.id, "reason", o.saga.Outcome.Reason())
			}
		}
		if err := save(ctx, tx, found, s.ackDeadline); err != nil {
			return err
		}
		return s.outbox.Append(ctx, tx, said...)
	})
	return n, err
}
