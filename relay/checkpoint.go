package relay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"converge/relay/pgoutput"
)

// A checkpoint says, in Kafka, up to where the WAL is in Kafka. A slot alone cannot be trusted with that: it
// can be advanced by hand, dropped and made anew, restored with its database or left behind by a failover,
// and the server that is then asked for the next row skips ahead without a word.
//
// What is told to the server follows what is written, so a slot that is ahead of its checkpoint was moved by
// someone else:
//
//	rows up to P are acknowledged
//	            │  once a second, and when draining
//	            ▼
//	 checkpoint P is written ──── crash: slot and checkpoint are behind, rows up to P come again
//	            │  acknowledged by all in-sync replicas
//	            ▼
//	 P may be confirmed ───────── crash: the checkpoint is ahead of the slot, rows up to P come again
//	            │  with the next status
//	            ▼
//	 the slot stands at P ─────── crash: they agree
//
// Nobody waits for the writing but a drain. While Kafka does not answer, the status goes on with the position
// that was confirmed last.
//
// A missing slot that is made with a backfill adds a flag, so that no crash makes it look finished:
//
//	checkpoint: pending ──▶ slot is made ──▶ rows are sent ──▶ all acknowledged ──▶ checkpoint: done ──▶ streaming
//	   ▲  crash before it: no slot, made anew       │ crash: pending and a slot: all rows are sent again,
//	   │                                            ▼        as a new look at the tables finds them
//	   └────────────────────────────────────────────┘
//
// A relay that lost its slot to another may have a checkpoint on its way. It is told from the other's by
// Session, which grows with each session that reads the slot.
type checkpoint struct {
	identity
	Confirmed   pgoutput.LSN `json:"confirmed_lsn"`
	Publication string       `json:"publication"`
	Tables      []string     `json:"tables"`
	At          time.Time    `json:"at"` // when it was written
	// Covered is when the last transaction before Confirmed committed that had rows, zero if none is known:
	// rows behind Confirmed committed later.
	Covered time.Time `json:"covered_at,omitzero"`
	Session int64     `json:"session"`
	// Pending means that rows older than the slot are not all sent.
	Pending bool `json:"backfill_pending,omitempty"`
	// Open is the commit record of the transaction behind Confirmed of which the first Ordinal rows are on
	// their topics, too, with [Config.ExactlyOnce].
	Open    pgoutput.LSN `json:"open_commit_lsn,omitempty"`
	Ordinal int64        `json:"ordinal,omitempty"`
}

// checkpoints writes the checkpoints of a session. load, begin and mark belong to the goroutine that opens
// the session; the rest is safe from any.
type checkpoints struct {
	kafka *kafka
	cfg   *Config
	log   *slog.Logger
	topic string
	fail  func(error) // ends the session

	// off means that there is no topic and that none may be made.
	off bool
	// last is what was found, exists says whether anything was.
	last   checkpoint
	loaded bool
	exists bool
	// next is what the next checkpoint says, but for its position. It is constant once begin has returned.
	next checkpoint

	pending atomic.Bool // a backfill is; until it is done there is no position
	writing atomic.Bool
	// Invariant: confirmed is in an acknowledged checkpoint, or was the slot's own when the session began.
	confirmed atomic.Uint64
	// moved holds a token when confirmed has changed.
	moved chan struct{}
}

func newCheckpoints(k *kafka, r *Relay, fail func(error)) *checkpoints {
	return &checkpoints{kafka: k, cfg: &r.cfg, log: r.log, topic: r.cfg.Slot + checkpointSuffix, fail: fail,
		moved: make(chan struct{}, 1)}
}

// checkpointSuffix makes the topic's name of the slot's.
const checkpointSuffix = ".relay.checkpoint"

// load makes sure of the topic and reads the latest checkpoint. Called again it does nothing.
func (c *checkpoints) load(ctx context.Context) error {
	if c.loaded {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	err := c.kafka.ensure(ctx, c.topic, c.kafka.createCompacted)
	if c.kafka.missing(err) {
		if c.cfg.ExactlyOnce {
			return &fatalError{err, "create topic " + c.topic + " with one partition and cleanup.policy=compact: publishing exactly once needs it"}
		}
		c.off, c.loaded = true, true
		c.log.Warn("no topic for checkpoints: a slot that somebody moves is not found out", slog.String(keyTopic, c.topic))
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking up the checkpoint: %w", err)
	}
	if c.last, c.exists, err = readCheckpoint(ctx, c.cfg, c.topic); err != nil {
		return err
	}
	c.loaded = true
	return nil
}

// begin holds the slot, which is ours by now, against the latest checkpoint, and writes the session's first.
//
// The slot was looked at before the checkpoint is read: whoever had it before us wrote the checkpoint before
// the slot moved, so the other order would find a slot ahead that is not.
func (c *checkpoints) begin(ctx context.Context, server identity, slot pgoutput.LSN, tables []string) error {
	if err := c.load(ctx); err != nil {
		return err
	}
	c.confirmed.Store(uint64(slot))
	if c.off {
		return nil
	}
	c.next = checkpoint{identity: server, Confirmed: slot, Publication: c.cfg.Publication, Tables: tables, Session: 1}
	if c.exists {
		if err := c.judge(server, slot); err != nil {
			return err
		}
		c.next.Session, c.next.Pending = c.last.Session+1, c.last.Pending
		if c.last.identity == server && c.last.Confirmed >= slot {
			c.next.Confirmed, c.next.Covered = c.last.Confirmed, c.last.Covered
			c.next.Open, c.next.Ordinal = c.last.Open, c.last.Ordinal
		}
	}
	c.pending.Store(c.next.Pending)
	return c.writeNow(ctx, c.next)
}

// mark writes that a backfill is pending, before there is a slot.
func (c *checkpoints) mark(ctx context.Context) error {
	if err := c.load(ctx); err != nil {
		return err
	}
	if c.off {
		return &fatalError{fmt.Errorf("topic %s does not exist", c.topic),
			"create it with one partition and cleanup.policy=compact: without it nobody would know of a backfill that was not finished"}
	}
	c.next = checkpoint{Publication: c.cfg.Publication, Tables: c.cfg.Tables, Session: 1, Pending: true}
	if c.exists {
		c.next.Session = c.last.Session + 1
	}
	if err := c.writeNow(ctx, c.next); err != nil {
		return err
	}
	c.last, c.exists = c.next, true
	return nil
}

// judge says whether the slot may be read on from where it stands.
func (c *checkpoints) judge(server identity, slot pgoutput.LSN) error {
	last := &c.last
	attributes := []any{slog.String(keySlot, c.cfg.Slot), slog.String(keyFrom, last.Confirmed.String()), slog.String(keyTo, slot.String())}
	accepted := c.cfg.AcceptGap != ""
	if accepted {
		at, err := pgoutput.ParseLSN(c.cfg.AcceptGap)
		accepted = err == nil && at == slot
	}
	accept := "; to go on without them, start with --accept-gap " + slot.String()
	switch {
	case last.Pending:
		// Whatever stands in the tables is sent now; what the slot has missed of it does not matter.
		if c.cfg.OnMissingSlot != BackfillMissingSlot {
			return &fatalError{fmt.Errorf("slot %s was made with a backfill that was not finished", c.cfg.Slot),
				"start with --on-missing-slot backfill, or drop the slot and topic " + c.topic + " if the older rows need not be sent"}
		}
	case last.System != server.System:
		if !accepted {
			return &fatalError{fmt.Errorf("the database belongs to system %s, what is on the topics came from system %s (a restored dump, another server?)", server.System, last.System),
				"name the right database, or give this one's relay a slot of another name; rows that are in this database and on no topic are sent by converge relay replay" + accept}
		}
		c.log.Warn("another server is accepted", append(attributes, slog.String(keySystem, server.System))...)
	case slot > last.Confirmed:
		if !accepted {
			return &fatalError{fmt.Errorf("slot %s stands at %s, the relay has read to %s: somebody advanced the slot or made it anew, and rows committed from %s to %s are on no topic",
				c.cfg.Slot, slot, last.Confirmed, last.Confirmed, slot),
				"send them again with converge relay replay" + last.since() + accept}
		}
		c.log.Warn("a gap is accepted: rows in it are on no topic", attributes...)
	case last.Timeline != server.Timeline:
		c.log.Warn("the server is on another timeline, as after a failover: events of transactions that it has lost may be on the topics, and rows may be repeated",
			append(attributes, slog.Int(keyTimeline, server.Timeline))...)
	case slot < last.Confirmed:
		c.log.Info("the checkpoint is ahead of the slot: rows in between are read again", attributes...)
	}
	return nil
}

// replayMargin allows for transactions that began before the ones that committed before them.
const replayMargin = time.Hour

// since is the flag that bounds a replay of what is behind the checkpoint.
func (c *checkpoint) since() string {
	if c.Covered.IsZero() {
		return " --all"
	}
	return " --from " + c.Covered.Add(-replayMargin).UTC().Format(time.RFC3339) + " (an hour earlier, for transactions that took long)"
}

// finished writes that the backfill is done.
func (c *checkpoints) finished(ctx context.Context) error {
	done := c.next
	done.Pending = false
	if err := c.writeNow(ctx, done); err != nil {
		return err
	}
	c.pending.Store(false)
	return nil
}

// position returns what may be confirmed. With checkpoints off it is the watermark.
func (c *checkpoints) position(watermark pgoutput.LSN) pgoutput.LSN {
	if c.off {
		return watermark
	}
	return pgoutput.LSN(c.confirmed.Load())
}

// offer writes a checkpoint in the background, if the watermark has moved and none is on its way.
func (c *checkpoints) offer(watermark pgoutput.LSN, covered time.Time) {
	if c.off || c.cfg.ExactlyOnce || c.pending.Load() || watermark <= pgoutput.LSN(c.confirmed.Load()) || !c.writing.CompareAndSwap(false, true) {
		return
	}
	c.write(watermark, covered, func(err error) {
		c.writing.Store(false)
		if err != nil {
			c.fail(err)
		}
	})
}

// settle writes a checkpoint and returns when the position may be confirmed.
func (c *checkpoints) settle(ctx context.Context, watermark pgoutput.LSN, covered time.Time) error {
	if c.off || c.cfg.ExactlyOnce || c.pending.Load() || watermark <= pgoutput.LSN(c.confirmed.Load()) {
		return nil
	}
	done := make(chan error, 1)
	c.write(watermark, covered, func(err error) { done <- err })
	return c.await(ctx, done)
}

// writeNow writes a checkpoint while nothing else is produced, and returns when it is acknowledged.
func (c *checkpoints) writeNow(ctx context.Context, next checkpoint) error {
	if c.cfg.ExactlyOnce {
		if err := c.kafka.client.BeginTransaction(); err != nil {
			return fmt.Errorf("writing a checkpoint: %w", err)
		}
	}
	done := make(chan error, 1)
	c.produce(next, func(err error) { done <- err })
	if err := c.await(ctx, done); err != nil || !c.cfg.ExactlyOnce {
		return err
	}
	if err := c.kafka.client.EndTransaction(ctx, kgo.TryCommit); err != nil {
		return fmt.Errorf("writing a checkpoint: %w", err)
	}
	return nil
}

func (c *checkpoints) await(ctx context.Context, done <-chan error) error {
	c.kafka.push()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("writing a checkpoint: %w", context.Cause(ctx))
	}
}

func (c *checkpoints) write(position pgoutput.LSN, covered time.Time, done func(error)) {
	next := c.next
	next.Pending = false // it was when the session began, and is not now that there is a position
	if next.Confirmed = max(next.Confirmed, position); !covered.IsZero() {
		next.Covered = covered
	}
	c.produce(next, func(err error) {
		if err == nil {
			crash(crashCheckpoint)
			c.confirm(position)
		}
		done(err)
	})
}

// confirm notes that a checkpoint of the position is durable.
func (c *checkpoints) confirm(position pgoutput.LSN) {
	for {
		old := c.confirmed.Load()
		if uint64(position) <= old {
			return
		}
		if c.confirmed.CompareAndSwap(old, uint64(position)) {
			break
		}
	}
	select {
	case c.moved <- struct{}{}:
	default:
	}
}

// produce hands a checkpoint to the client. It does not block.
func (c *checkpoints) produce(next checkpoint, done func(error)) {
	next.At = time.Now().UTC()
	value, err := json.Marshal(next)
	if err != nil {
		done(fmt.Errorf("writing a checkpoint: %w", err))
		return
	}
	record := &kgo.Record{Topic: c.topic, Key: []byte(c.cfg.Slot), Value: value}
	c.kafka.client.Produce(context.Background(), record, func(_ *kgo.Record, err error) {
		if err != nil {
			err = fmt.Errorf("writing a checkpoint to topic %s: %w", c.topic, err)
		}
		done(err)
	})
}

// errNoCheckpoint means that something else is in the topic.
var errNoCheckpoint = errors.New("a record that is no checkpoint")
