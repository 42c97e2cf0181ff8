package transfers

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
	DefaultDeadline       = 30 * time.Second
	DefaultAnswerDeadline = time.Minute
)

// Config is what a Service needs.
type Config struct {
	Pool    *pgxpool.Pool // confined to the service's schema; the caller closes it
	Outbox  *outbox.Outbox
	Decoder event.Decoder

	// Deadline is how long a transfer may take to its pivot before it is undone; 0: [DefaultDeadline]. It
	// applies to transfers requested from then on.
	Deadline time.Duration
	// AnswerDeadline is how long the Ledger may take for its last word before a transfer is STUCK; 0:
	// [DefaultAnswerDeadline]. It is waited for all the same.
	AnswerDeadline time.Duration

	Logger     *slog.Logger          // nil: none
	Registerer prometheus.Registerer // nil: metrics are kept and not shown
}

// Service is Transfers. It is safe for concurrent use, and several processes may run it on one database.
type Service struct {
	pool           *pgxpool.Pool
	outbox         *outbox.Outbox
	decoder        event.Decoder
	deadline       time.Duration
	answerDeadline time.Duration
	log            *slog.Logger
	metrics        *sagas.Metrics
}

// New returns the service. It starts nothing and connects to nothing.
func New(cfg Config) *Service {
	s := &Service{
		pool:           cfg.Pool,
		outbox:         cfg.Outbox,
		decoder:        cfg.Decoder,
		deadline:       cfg.Deadline,
		answerDeadline: cfg.AnswerDeadline,
		log:            cfg.Logger,
		metrics:        newMetrics(cfg.Registerer),
	}
	if s.deadline == 0 {
		s.deadline = DefaultDeadline
	}
	if s.answerDeadline == 0 {
		s.answerDeadline = DefaultAnswerDeadline
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

func newMetrics(registerer prometheus.Registerer) *sagas.Metrics {
	kind := sagas.Kind{Saga: "transfer", Outcomes: append([]string{completed}, Reasons()...),
		Steps: map[string]string{string(Pending): "debit", string(Debited): "credit", string(Compensating): "acknowledgement"}}
	for _, state := range States() {
		if !state.Terminal() {
			kind.Open = append(kind.Open, string(state))
		}
	}
	for _, edge := range Edges() {
		kind.Edges = append(kind.Edges, [2]string{string(edge.From), string(edge.To)})
	}
	return sagas.New(registerer, kind)
}

// completed is the outcome of a transfer that does not fail.
const completed = "completed"

// measure counts what a move of a transfer did.
func (s *Service) measure(tr *transfer, from State, states []State, at time.Time) {
	for _, to := range states {
		s.metrics.Moved(string(from), string(to))
		from = to
		if to.Terminal() {
			outcome := completed
			if tr.saga.Reason != "" {
				outcome = tr.saga.Reason
			}
			s.metrics.Ended(outcome, at.Sub(tr.createdAt))
		}
	}
}

// Run keeps the deadlines and counts the open sagas until ctx ends; then it returns nil. It outlives outages
// of the database.
func (s *Service) Run(ctx context.Context) error {
	return s.metrics.Keep(ctx, s.pool, openSagasSQL, s.log, s.sweep)
}

// sweep ends what is due: transfers whose deadline passed time out, those that the Ledger does not answer are
// STUCK. It returns how many transfers it found.
func (s *Service) sweep(ctx context.Context) (n int, err error) {
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		found, err := overdue(ctx, tx, sagas.SweepLimit)
		if err != nil || len(found) == 0 {
			return err
		}
		n = len(found)
		var said []outbox.Event
		for _, tr := range found {
			in := AnswerOverdue
			if tr.saga.State == Pending {
				in = DeadlinePassed
			}
			s.metrics.TimedOut(string(tr.saga.State))
			said = append(said, s.move(tr, in, "", uuid.Nil, outbox.Cause{})...)
			if tr.saga.State == Stuck {
				s.log.ErrorContext(ctx, "transfer is stuck: the ledger does not answer", "transfer_id", tr.id, "reason", tr.saga.Reason)
			}
		}
		if err := save(ctx, tx, found, s.answerDeadline); err != nil {
			return err
		}
		return s.outbox.Append(ctx, tx, said...)
	})
	return n, err
}
