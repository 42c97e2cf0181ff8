package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"converge/relay/pgoutput"
)

// publisher makes records of rows and follows them until they are durable. It is the part of a session
// that does not care where the rows come from. publish, push and await belong to one goroutine.
type publisher struct {
	relay   *Relay
	log     *slog.Logger
	metrics *metrics

	kafka   *kafka
	tracker *tracker
	exact   *transactional // nil: records stand for themselves

	// life ends with the first error of any part; its cause is that error. The records carry a context
	// of their own that never ends: a record that Kafka may have must not be given up halfway.
	life context.Context
	end  context.CancelCauseFunc

	acknowledged atomic.Int64 // records, for telling a stall from an idle stream

	shape     *shape
	names     names
	topicName []byte // scratch
	lastTopic *topic
	unpushed  bool   // records were produced since the last push
	mark      []byte // of the replay header; nil for rows that are sent for the first time, which have none
	polled    bool   // rows have a number of their table's, seq, behind their columns, and no place in the WAL

	// What earlier sessions learnt of rows that were refused; they do not change.
	suspects suspects
	doomed   map[eventID]*refusal
}

// newPublisher returns the publisher of a session; the caller sets kafka and calls end.
func newPublisher(ctx context.Context, r *Relay) *publisher {
	p := &publisher{relay: r, log: r.log, metrics: r.metrics, tracker: new(tracker), shape: &r.cfg.shape, names: make(names)}
	p.life, p.end = context.WithCancelCause(context.WithoutCancel(ctx))
	p.suspects, p.doomed = r.verdicts()
	return p
}

// publish makes a record of a row and produces it, or its dead letter. The row lies in the arena.
func (p *publisher) publish(ctx context.Context, l *layout, tuple pgoutput.Tuple, x *transaction, in *arena) error {
	if err := l.values(tuple); err != nil {
		return err
	}
	r := in.nextRow(p.newRow)
	r.layout, r.arena, r.transaction = l, in, x
	if err := p.compose(ctx, r, tuple); err != nil {
		var no *refusal
		if !errors.As(err, &no) || !no.poison() {
			return err
		}
		if err := p.bury(ctx, r, tuple, no); err != nil {
			return err
		}
	}
	x.sent++
	p.unpushed = true
	if p.exact == nil {
		p.kafka.client.Produce(context.Background(), &r.record, r.promise)
	} else if err := p.exact.produce(r); err != nil {
		return err
	}
	crash(crashProduced)
	if p.alone(r) {
		return p.await(ctx)
	}
	return nil
}

// compose makes the row's record, or returns its [refusal] or why that cannot be told.
func (p *publisher) compose(ctx context.Context, r *row, tuple pgoutput.Tuple) error {
	l := r.layout
	r.dead = false
	r.id = l.identity(tuple)
	if l.unreadable != nil {
		return l.refuse(tuple, reasonMessage, l.unreadable)
	}
	if no, doomed := p.doomed[r.id]; doomed {
		return no
	}
	if err := p.chooseTopic(ctx, l.topicOf(&p.topicName, tuple)); err != nil {
		if errors.Is(context.Cause(ctx), errStopped) {
			return errStopped
		}
		if refused(err) {
			return l.refuse(tuple, reason(err), err)
		}
		return err
	}
	r.topic = p.lastTopic
	if err := l.fill(r, tuple, r.transaction, p.names); err != nil {
		return l.refuse(tuple, reasonHeaders, err)
	}
	if p.mark != nil {
		r.headers = append(r.headers, header(headerReplay, p.mark))
		r.record.Headers = r.headers
	}
	if size := recordSize(&r.record); size > r.topic.limit {
		return l.refuse(tuple, reasonTooLarge, fmt.Errorf("the record takes up to %d bytes, the topic takes %d", size, r.topic.limit))
	}
	return nil
}

// push lets what was produced go.
func (p *publisher) push() {
	if p.unpushed {
		p.unpushed = false
		p.kafka.push()
	}
}

// await returns when everything produced is acknowledged or refused.
func (p *publisher) await(ctx context.Context) error {
	if p.kafka.client.Flush(ctx) != nil {
		return context.Cause(ctx)
	}
	return nil
}

func (p *publisher) chooseTopic(ctx context.Context, name []byte) (err error) {
	if p.lastTopic != nil && p.lastTopic.name == string(name) {
		return nil
	}
	var t *topic
	if t, err = p.kafka.topic(ctx, name); err == nil {
		p.lastTopic = t
	}
	return err
}

func (p *publisher) newRow() *row {
	r := &row{headers: make([]kgo.RecordHeader, 0, usualHeaders)}
	r.promise = func(_ *kgo.Record, err error) { p.settle(r, err) }
	return r
}

// settle is the promise of every record. The Kafka client calls it for one record at a time; it must
// not block. Once both counts are taken down the row may be reused, so nothing of it is read after.
//
// A refused record is never counted, so the watermark stays in front of its transaction for good; the
// session ends and everything behind it is sent again. The client has failed what it had buffered for
// the partition by then, and forgets its sequence: a row of the same key that the reader hands over
// between that moment and this call could overtake. Known causes are met by the reader before anything
// behind them is sent (size, names, missing topics), which leaves rights withdrawn and brokers that
// change their mind, where what comes behind is refused alike.
func (p *publisher) settle(r *row, err error) {
	if err != nil {
		if p.life.Err() == nil {
			p.end(p.refuse(r, err))
		}
		return
	}
	if r.dead {
		crash(crashDeadLetter)
		p.relay.buried(r.id)
	}
	x, in, committed := r.transaction, r.arena, r.record.Timestamp
	r.topic.published.Inc()
	p.acknowledged.Add(1)
	if x.acknowledge() {
		p.metrics.commitToAck.Observe(time.Since(committed).Seconds())
	}
	in.acknowledge()
	crash(crashAcknowledged)
}

// stalledAfter is how long Kafka may acknowledge nothing before the relay is not ready.
const stalledAfter = 5 * time.Second

// alive notes, once a second, that the session lives and whether Kafka answers it.
func (p *publisher) alive(now time.Time, progress *stall) {
	p.relay.steady()
	p.metrics.heartbeat.Set(float64(now.UnixMilli()) / 1000)
	p.metrics.lag.Set(0)
	if committed := p.tracker.oldest(); !committed.IsZero() {
		p.metrics.lag.Set(max(0, now.Sub(committed).Seconds()))
	}
	p.relay.kafkaStalled(progress.observe(now, p.acknowledged.Load(), p.kafka.client.BufferedProduceRecords()), p.kafka)
}

// stall tells a Kafka that does not answer from a stream that is idle.
type stall struct {
	count int64
	since time.Time
}

// observe returns how long records have been waiting without any being acknowledged, 0 while it is
// less than stalledAfter.
func (p *stall) observe(now time.Time, acknowledged, buffered int64) time.Duration {
	if acknowledged != p.count || buffered == 0 {
		p.count, p.since = acknowledged, now
	}
	if d := now.Sub(p.since); d >= stalledAfter {
		return d
	}
	return 0
}
