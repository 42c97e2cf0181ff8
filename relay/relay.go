package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// Keys of log attributes.
const (
	keyError       = "error"
	keyFrom        = "from"
	keyPublication = "publication"
	keyRetryIn     = "retry_in"
	keySlot        = "slot"
	keySource      = "source"
	keyTable       = "table"
	keyTables      = "tables"
	keyTimeline    = "timeline"
	keyTo          = "to"
	keyTopic       = "topic"
	keySystem      = "system_identifier"
	keyRows        = "rows"
)

// Relay is one reader of one slot. Make it with [New].
type Relay struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics

	// hasStreamed is Run's own: the slot was read from, so it may not be made anew in silence.
	hasStreamed bool

	mu sync.Mutex // guards all below
	// refused means that the last session ended at a row that Kafka would not take.
	refused bool
	// suspects are the rows of which one was refused in company, see refusal.
	suspects suspects
	// doomed are the rows that were refused alone and are to be dead letters.
	doomed map[eventID]*refusal
	// notReady is why nothing streams, nil while it does.
	notReady error
	// stalled is why nothing is acknowledged although it streams, nil while all is well.
	stalled error
}

// errNotStarted is the first answer of Ready.
var errNotStarted = errors.New("the relay has not started")

// New checks the configuration and registers the metrics. It connects to nothing.
func New(cfg Config) (*Relay, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("configuring the relay: %w", err)
	}
	m, err := newMetrics(cfg.Registerer, cfg.Source)
	if err != nil {
		return nil, err
	}
	return &Relay{cfg: cfg, log: cfg.Logger, metrics: m, notReady: errNotStarted}, nil
}

// Ready returns nil while the relay streams and Kafka acknowledges, otherwise the reason why not. It
// does not block and is safe for concurrent use.
func (r *Relay) Ready() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.notReady != nil {
		return r.notReady
	}
	return r.stalled
}

func (r *Relay) setNotReady(reason error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notReady, r.stalled = reason, nil
}

// streaming notes that a session has begun. After a refused row the relay is not ready merely for that:
// the row comes again at once.
func (r *Relay) streaming() {
	r.hasStreamed = true
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.refused {
		r.notReady, r.stalled = nil, nil
	}
	attributes := []any{slog.String(keySlot, r.cfg.Slot)}
	if r.cfg.Source != SourcePolling {
		attributes = append(attributes, slog.String(keyPublication, r.cfg.Publication))
	}
	r.log.Info("streaming", append(attributes, slog.String(keySource, string(r.cfg.Source)))...)
}

// steady notes that a session has streamed for a while.
func (r *Relay) steady() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refused {
		r.refused, r.notReady = false, nil
	}
}

// kafkaStalled notes for how long Kafka has acknowledged nothing of what waits, 0 for all is well.
func (r *Relay) kafkaStalled(d time.Duration, k *kafka) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch failure := k.connectFailure(); {
	case d == 0:
		r.stalled = nil
	case failure != nil:
		r.stalled = fmt.Errorf("kafka has acknowledged nothing for %s: %w", d.Round(time.Second), failure)
	default:
		r.stalled = fmt.Errorf("kafka has acknowledged nothing for %s", d.Round(time.Second))
	}
}

const (
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 5 * time.Second
	// refusedBackoff is for a row that needs someone: each attempt sends what comes before it again.
	refusedBackoff = 15 * time.Second
	// standbyBackoff bounds how long a takeover takes after the other relay's connection is gone.
	standbyBackoff = 500 * time.Millisecond
	// steadyAfter is how long a session must have lasted for the next backoff to start small again.
	steadyAfter = 10 * time.Second
)

// Run relays until ctx ends; it blocks, and must be called once. An outage of PostgreSQL or Kafka does
// not end it, nor does a row that Kafka refuses or another relay that reads the slot: it tries again,
// and [Relay.Ready] says why it does not stream.
//
// After ctx ended it stops reading, waits for the acknowledgements of what is under way, confirms that
// and returns nil, or [ErrDrainTimedOut]. It returns early with an error that names the fix when no
// waiting helps: a wrong configuration, a slot that is missing, lost or another's.
func (r *Relay) Run(ctx context.Context) error {
	defer r.setNotReady(errors.New("the relay has stopped"))
	session := r.runSession
	if r.cfg.Source == SourcePolling {
		session = r.runPolling
	}
	backoff := firstBackoff
	for {
		began := time.Now()
		err := session(ctx)
		if ctx.Err() != nil {
			if errors.Is(err, ErrDrainTimedOut) {
				return err
			}
			return nil // what could not be confirmed is read again
		}
		if f, ok := asFatal(err, r.hasStreamed); ok {
			return f
		}
		r.setNotReady(err)
		if time.Since(began) > steadyAfter {
			backoff = firstBackoff
		}
		delay := r.report(err, backoff)
		backoff = min(2*backoff, lastBackoff)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil
		}
	}
}

// report logs why a session ended, and returns how long to wait before the next.
func (r *Relay) report(err error, backoff time.Duration) time.Duration {
	jittered := func(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }
	var standby *standbyError
	if errors.As(err, &standby) {
		r.log.Debug("standing by", slog.String(keySlot, r.cfg.Slot))
		return jittered(standbyBackoff)
	}
	delay := jittered(backoff)
	var refused *refusal
	if errors.As(err, &refused) {
		if refused.poison() {
			r.condemn(refused)
			return delay
		}
		r.mu.Lock()
		r.refused = true
		r.mu.Unlock()
		delay = jittered(refusedBackoff)
		r.metrics.publishErrors.WithLabelValues(refused.reason).Inc()
		r.log.Error("a row cannot be published", slog.Any(keyError, err), slog.Duration(keyRetryIn, delay))
		return delay
	}
	r.log.Warn("disconnected", slog.Any(keyError, err), slog.Duration(keyRetryIn, delay))
	return delay
}
