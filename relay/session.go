package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"converge/relay/pgoutput"
)

// session is one connection to either side. Nothing of it outlives it but what is confirmed.
type session struct {
	*publisher

	control *control
	wire    *wire
	memory  *arenas

	checkpoints *checkpoints
	// snapshot is a transaction that sees the rows older than the slot, nil when none was asked for.
	snapshot *control

	// spill keeps transactions that come before they have ended, nil when none do.
	spill *spill

	// The reading goroutine's own:
	layouts     map[uint32]*layout
	described   uint32 // relations so far on this connection
	messages    *layout
	tuple       pgoutput.Tuple
	transaction *transaction
	skip        int64 // rows of the transaction that are on their topics already
}

const (
	statusInterval = time.Second
	sampleInterval = 5 * time.Second
	// askAfter and giveUpAfter bound the silence of a server that may be gone without a word.
	askAfter    = 10 * time.Second
	giveUpAfter = 30 * time.Second
	// transactionGrace is how long a drain reads on to the end of a transaction that it is in.
	transactionGrace = 500 * time.Millisecond
	finishTimeout    = 2 * time.Second
)

// runSession streams until ctx ends and all is drained (nil or ErrDrainTimedOut), or an error.
func (r *Relay) runSession(ctx context.Context) error {
	s := &session{publisher: newPublisher(ctx, r), layouts: make(map[uint32]*layout)}
	defer s.end(nil)
	if err := s.open(ctx); err != nil {
		s.close()
		return err
	}
	s.wire.push = s.push
	if s.checkpoints.pending.Load() {
		r.hasStreamed = true
		r.setNotReady(errBackfill)
	} else {
		r.streaming()
	}
	defer r.metrics.leader.Set(0)
	r.metrics.leader.Set(1)

	reading, stopReading := context.WithCancelCause(s.life)
	defer stopReading(nil)
	var parts sync.WaitGroup
	part := func(run func() error) {
		parts.Go(func() {
			if err := run(); err != nil {
				s.end(err)
			}
		})
	}
	part(s.reportStatus)
	part(s.sampleSlot)
	if s.exact != nil {
		part(s.exact.run)
	}
	parts.Go(func() {
		// A read or a write under way ends only when the connection does, and a Kafka client that had
		// a record refused must send nothing that came behind it.
		<-s.life.Done()
		s.wire.close()
		s.kafka.client.Close()
	})
	stop := context.AfterFunc(ctx, func() {
		stopReading(errStopped)
		if err := s.wire.interrupt(0); err != nil {
			s.end(fmt.Errorf("stopping the stream: %w", err))
		}
	})
	var err error
	if s.checkpoints.pending.Load() {
		if err = s.backfill(reading); err == nil {
			r.streaming()
		}
	}
	if err == nil {
		err = s.read(reading)
	}
	stop()
	var refused *refusal
	switch {
	case errors.Is(err, errStopped) && ctx.Err() != nil:
		err = s.drain()
	case errors.As(err, &refused):
		s.confirmInFront()
	}
	s.end(err)
	parts.Wait()
	s.close()
	if cause := context.Cause(s.life); cause != context.Canceled { //nolint:errorlint // exactly what end(nil) leaves
		return cause
	}
	return nil
}

// open connects to both sides and checks what has to be checked. What it opened stays open on an error.
func (s *session) open(ctx context.Context) (err error) {
	cfg := &s.relay.cfg
	if s.kafka, err = newKafka(cfg, s.metrics); err != nil {
		return &fatalError{err, "correct the Kafka options"}
	}
	if err = s.kafka.ping(ctx); err != nil {
		return err
	}
	if s.control, err = openControl(ctx, cfg.DatabaseURL); err != nil {
		return err
	}
	if s.shape, err = s.control.shape(ctx, cfg); err != nil {
		return err
	}
	s.checkpoints = newCheckpoints(s.kafka, s.relay, s.end)
	if err = s.makeBackfilledSlot(ctx); err != nil {
		return err
	}
	slot, err := s.relay.prepare(ctx, s.control)
	if err != nil {
		return err
	}
	s.memory = newArenas(cfg.BufferBytes)
	s.wire, err = openWire(ctx, cfg, s.memory)
	if sqlState(err) == stateObjectInUse {
		return &standbyError{slot: cfg.Slot, pid: slot.pid, err: err}
	}
	if err != nil {
		return err
	}
	if cfg.SpillDir != "" {
		if s.spill, err = newSpill(cfg.SpillDir, cfg.Slot, s.wire.server, s.metrics.spilled); err != nil {
			return err
		}
	}
	return s.beginCheckpoints(ctx)
}

// beginCheckpoints holds the slot, now that nobody else moves it, against the checkpoint.
func (s *session) beginCheckpoints(ctx context.Context) error {
	cfg := &s.relay.cfg
	if cfg.ExactlyOnce {
		if err := fence(ctx, s.kafka.client); err != nil {
			return err
		}
	}
	slot, err := s.control.slot(ctx, cfg.Slot)
	if err != nil {
		return err
	}
	position, err := pgoutput.ParseLSN(slot.confirmed)
	if err != nil {
		return fmt.Errorf("looking up slot %s: %w", cfg.Slot, err)
	}
	publication, err := s.control.publication(ctx, cfg.Publication)
	if err != nil {
		return err
	}
	if err := s.checkpoints.begin(ctx, s.wire.server, position, publication.tables); err != nil {
		return err
	}
	if cfg.ExactlyOnce {
		s.exact = newTransactional(s.kafka.client, s.checkpoints, s.life)
	}
	return nil
}

// confirmable returns the position that the server may be told.
func (s *session) confirmable() pgoutput.LSN {
	return s.checkpoints.position(s.tracker.watermark())
}

// settleAll gets everything produced acknowledged and its position ready to be confirmed.
func (s *session) settleAll(ctx context.Context) error {
	if s.exact != nil {
		return s.exact.end(ctx)
	}
	if err := s.kafka.client.Flush(ctx); err != nil {
		return err
	}
	watermark, covered := s.tracker.position()
	return s.checkpoints.settle(ctx, watermark, covered)
}

// standbyError means that another relay reads the slot.
type standbyError struct {
	slot, pid string
	polls     bool // and has no slot
	err       error
}

func (e *standbyError) Error() string {
	if e.polls {
		return fmt.Sprintf("standing by: another relay polls as %s (server process %s)", e.slot, e.pid)
	}
	return fmt.Sprintf("standing by: slot %s is read by another relay (server process %s)", e.slot, e.pid)
}

func (e *standbyError) Unwrap() error { return e.err }

// close gives back whatever is still open. Records that are buffered fail, which no longer matters.
func (s *session) close() {
	if s.wire != nil {
		s.wire.close()
	}
	if s.kafka != nil {
		s.kafka.client.Close()
	}
	s.spill.close()
	for _, c := range []*control{s.control, s.snapshot} {
		if c != nil {
			c.close()
		}
	}
}

// read is the reading goroutine: it takes messages from the wire and produces records until an error.
// After ctx ended it goes on to the end of the transaction, if that comes soon.
func (s *session) read(ctx context.Context) error {
	graceful := false
	for {
		body, in, err := s.wire.next(ctx)
		if errors.Is(err, errStopped) && !graceful && s.tracker.isOpen() {
			graceful = true
			if err := s.wire.interrupt(transactionGrace); err != nil {
				return fmt.Errorf("stopping the stream: %w", err)
			}
			continue
		}
		if err != nil {
			return err
		}
		if len(body) == 0 {
			return fmt.Errorf("%w: empty", pgoutput.ErrMalformed)
		}
		switch body[0] {
		case pgoutput.EnvelopeWAL:
			header, message, err := pgoutput.WAL(body)
			if err != nil {
				return err
			}
			if err := s.message(ctx, header, message, in); err != nil {
				return err
			}
			if graceful && message[0] == pgoutput.KindCommit {
				return errStopped
			}
		case pgoutput.EnvelopeKeepalive:
			if err := s.keepalive(body); err != nil {
				return err
			}
		}
	}
}

func (s *session) keepalive(body []byte) error {
	k, err := pgoutput.ParseKeepalive(body)
	if err != nil {
		return err
	}
	s.tracker.keepalive(k.WALEnd)
	if s.exact != nil && s.transaction == nil {
		s.exact.idle(k.WALEnd)
	}
	if k.ReplyRequested {
		return s.wire.sendStatus(s.confirmable(), false)
	}
	return nil
}

func (s *session) message(ctx context.Context, header pgoutput.Header, message []byte, in *arena) error {
	if s.spill != nil {
		if did, err := s.streamed(ctx, header, message); did {
			return err
		}
	}
	switch message[0] {
	case pgoutput.KindInsert:
		return s.insert(ctx, message, in)
	case pgoutput.KindBegin:
		begin, err := pgoutput.ParseBegin(message)
		if err != nil {
			return err
		}
		s.begin(begin, header)
	case pgoutput.KindCommit:
		commit, err := pgoutput.ParseCommit(message)
		if err != nil {
			return err
		}
		return s.commit(commit)
	case pgoutput.KindRelation:
		s.described++
		return s.relation(message, s.described)
	case pgoutput.KindMessage:
		return s.emitted(ctx, header, message, in)
	}
	return nil
}

// begin opens a transaction. What stands in it follows at once.
func (s *session) begin(begin pgoutput.Begin, header pgoutput.Header) {
	s.transaction = s.tracker.begin(begin.CommitLSN, pgoutput.Time(begin.Micros))
	if s.exact != nil {
		s.skip = s.exact.opened(begin.CommitLSN)
	}
	s.wire.lag = time.Duration(header.Micros-begin.Micros) * time.Microsecond
}

func (s *session) commit(commit pgoutput.Commit) error {
	if s.transaction == nil {
		return fmt.Errorf("%w: commit outside a transaction", pgoutput.ErrMalformed)
	}
	crash(crashCommit)
	committed, sent := s.transaction.committed, s.transaction.sent
	s.transaction = nil
	if s.exact != nil {
		s.exact.closed(commit.EndLSN, committed)
	}
	if s.tracker.commit(commit.EndLSN) && sent > 0 {
		s.metrics.commitToAck.Observe(time.Since(committed).Seconds())
	}
	return nil
}

// relation notes what a table is like, from the relation that is the described'th of the connection.
func (s *session) relation(message []byte, described uint32) error {
	relation, err := pgoutput.ParseRelation(message)
	if err != nil {
		return err
	}
	l, err := s.shape.layoutOf(relation)
	if err != nil {
		return err
	}
	l.described = described
	s.layouts[relation.ID] = l
	return nil
}

// insert publishes a row.
func (s *session) insert(ctx context.Context, message []byte, in *arena) error {
	id, err := pgoutput.ParseInsert(message, &s.tuple)
	if err != nil {
		return err
	}
	l, x := s.layouts[id], s.transaction
	if l == nil || x == nil {
		return fmt.Errorf("%w: row outside a transaction or of an unknown table", pgoutput.ErrMalformed)
	}
	return s.row(ctx, l, in)
}

// row publishes the row that was read last, unless that was done before.
func (s *session) row(ctx context.Context, l *layout, in *arena) error {
	x := s.transaction
	if x.skipped < s.skip {
		x.skipped++
		return nil
	}
	crash(crashReceived)
	if x.sent > 0 {
		crash(crashTransaction)
	}
	return s.publish(ctx, l, s.tuple, x, in)
}

// reportStatus tells the server the watermark every second, whatever the reader is doing.
func (s *session) reportStatus() error {
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	progress := stall{since: time.Now()}
	for {
		var now time.Time
		select {
		case now = <-tick.C:
			s.checkpoints.offer(s.tracker.position())
		case <-s.checkpoints.moved:
			if err := s.wire.sendStatus(s.confirmable(), false); err != nil {
				return err
			}
			continue
		case <-s.life.Done():
			return nil
		}
		silence := s.wire.silence(now)
		if silence > giveUpAfter {
			return fmt.Errorf("streaming: the server has been silent for %s: %w", silence.Round(time.Second), io.ErrNoProgress)
		}
		if err := s.wire.sendStatus(s.confirmable(), silence > askAfter); err != nil {
			return err
		}
		s.alive(now, &progress)
	}
}

// sampleSlot looks at the slot from outside, for the metrics.
func (s *session) sampleSlot() error {
	tick := time.NewTicker(sampleInterval)
	defer tick.Stop()
	for {
		slot, err := s.control.slot(s.life, s.relay.cfg.Slot)
		if err != nil {
			return err
		}
		s.metrics.observe(slot)
		select {
		case <-tick.C:
		case <-s.life.Done():
			return nil
		}
	}
}

// confirmInFront gets the records in front of a refused row acknowledged and confirmed, as far as that
// goes, so that the next attempt does not repeat them.
func (s *session) confirmInFront() {
	ctx, cancel := context.WithTimeout(s.life, s.relay.cfg.DrainTimeout)
	defer cancel()
	if s.settleAll(ctx) == nil {
		s.wire.sendStatus(s.confirmable(), false) //nolint:errcheck // the refusal is the error to report
	}
}

// drain waits for the acknowledgements of what was produced, confirms it and ends the stream.
func (s *session) drain() error {
	ctx, cancel := context.WithTimeout(s.life, s.relay.cfg.DrainTimeout)
	defer cancel()
	settled := s.settleAll(ctx)
	if err := context.Cause(s.life); err != nil {
		return err
	}
	if err := s.wire.sendStatus(s.confirmable(), false); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ErrDrainTimedOut
	}
	if settled != nil {
		return settled
	}
	return s.wire.finish(s.life, finishTimeout)
}
