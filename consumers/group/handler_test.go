package group_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/event"
)

func TestAPanicIsTheEventsTroubleAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.relay()
	list := facts(40, 4, 1)
	w.produce(list...)
	w.start(w.config(tally{"a", func(_ context.Context, e *event.Event) error {
		switch {
		case e.ID == list[5].id:
			panic("always")
		case e.ID == list[6].id && e.Attempt == 0:
			panic(errors.New("once"))
		}
		return nil
	}}))
	w.settled()
	w.check(list, map[uuid.UUID]bool{list[5].id: true})
	if letters := w.letters(); len(letters) != 1 || letters[list[5].id] != "retriable" {
		t.Errorf("dead letters: %v", letters)
	}
}

// A constraint that is checked at COMMIT fails the whole batch, and careful or not nobody would know whose doing it
// was: the partition would stand still.
func TestAConstraintThatIsCheckedLateIsTheEventsTroubleAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.relay()
	_, err := w.pool.Exec(t.Context(), `
CREATE TABLE accounts (key text PRIMARY KEY);
CREATE TABLE entries (key text REFERENCES accounts DEFERRABLE INITIALLY DEFERRED)`)
	must(t, err)
	list := facts(40, 4, 1)
	s := tally{name: "a"}
	cfg := w.config(s)
	cfg.Handler = event.Handler{Each: map[string]event.Each{eachKind: func(ctx context.Context, tx pgx.Tx, e *event.Event) error {
		if _, err := tx.Exec(ctx, "INSERT INTO entries VALUES ($1)", e.Key); err != nil {
			return err
		}
		if e.ID != list[9].id && (e.ID != list[10].id || e.Attempt > 0) {
			if _, err := tx.Exec(ctx, "INSERT INTO accounts VALUES ($1) ON CONFLICT DO NOTHING", e.Key); err != nil {
				return err
			}
		} else if _, err := tx.Exec(ctx, "INSERT INTO entries VALUES ('nobody')"); err != nil {
			return err
		}
		return s.each(ctx, tx, e)
	}}, Batch: map[string]event.Batch{batchKind: s.batch}}
	w.produce(list...)
	w.start(cfg)
	w.settled()
	w.check(list, map[uuid.UUID]bool{list[9].id: true})
}

// A handler may use savepoints of its own, and may fail with one open or with the transaction aborted.
func TestAHandlerMayOpenSavepointsAndLeaveThemOpen(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.relay()
	list := facts(40, 4, 1)
	s := tally{name: "a"}
	cfg := w.config(s)
	nested := func(ctx context.Context, tx pgx.Tx, e *event.Event) error {
		own, err := tx.Begin(ctx)
		if err != nil {
			return err
		}
		if err := s.each(ctx, own, e); err != nil {
			return err
		}
		seq, _ := strconv.Atoi(string(e.Value))
		switch {
		case seq%5 == 1 && e.Attempt == 0:
			return errors.New("with the savepoint open")
		case seq%5 == 2 && e.Attempt == 0:
			_, err := own.Exec(ctx, "SELECT 1 FROM nowhere") // aborts the transaction
			return err
		case seq%5 == 3:
			return nil // with the savepoint open
		}
		return own.Commit(ctx)
	}
	cfg.Handler = event.Handler{Each: map[string]event.Each{eachKind: nested, batchKind: nested}}
	w.produce(list...)
	w.start(cfg)
	w.settled()
	w.check(list, nil)
}

// A transaction of the handler's own, on another connection, commits by itself: the event's effect is not
// in it, and the contract says so. What matters is that it cannot lock the group up.
func TestAHandlerWithATransactionOfItsOwnDoesNotStopTheGroup(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.relay()
	list := facts(20, 2, 1)
	var own atomic.Int64
	w.produce(list...)
	w.start(w.config(tally{"a", func(ctx context.Context, e *event.Event) error {
		return pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
			own.Add(1)
			_, err := tx.Exec(ctx, "SELECT FROM consumer_offsets")
			return err
		})
	}}))
	w.settled()
	w.check(list, nil)
	if n := own.Load(); n != 20 {
		t.Errorf("%d transactions of the handler's", n)
	}
}

// The handler stops only when its context ends: its batch is cut off there, counts against no event, and
// comes again.
func TestAHandlerThatHangsIsCutOffAndComesAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	list := facts(20, 2, 1)
	var hung atomic.Int64
	cfg := w.config(tally{"a", func(ctx context.Context, e *event.Event) error {
		if e.ID == list[9].id && hung.Add(1) <= 2 {
			<-ctx.Done()
			return fmt.Errorf("waiting for the card: %w", ctx.Err())
		}
		return nil
	}})
	cfg.BatchTime = 200 * time.Millisecond
	w.produce(list...)
	m := w.start(cfg)
	w.settled()
	w.check(list, nil)
	w.nothingCounted()
	m.counts(t, 20, "converge_consumer_events_total", "outcome", "applied")
}

// A drain waits for the batch that has begun, and lets it commit.
func TestADrainFinishesTheBatchAtHand(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	list := facts(20, 2, 1)
	inHand, release := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	w.produce(list...)
	m := w.start(w.config(tally{"a", func(_ context.Context, e *event.Event) error {
		if e.ID == list[9].id && once.CompareAndSwap(false, true) {
			close(inHand)
			<-release
		}
		return nil
	}}))
	closed(t, "a batch is at hand", inHand)
	m.cancel()
	select {
	case <-m.done:
		t.Error("Run did not wait for its batch")
	default:
	}
	close(release)
	must(t, m.wait())
	w.check(list, nil)
	if w.stored(0) != 20 || w.kafkaHas(0) != 20 {
		t.Errorf("stored %d, Kafka has %d", w.stored(0), w.kafkaHas(0))
	}
}

func TestValuesOfAMegabyteAreAppliedRetriedAndBuried(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.relay()
	s := newScript()
	var list []fact
	var records []*kgo.Record
	for i := range 8 {
		f := newFact(fmt.Sprintf("key-%d", i), 0, eachKind, 0)
		list = append(list, f)
		r := f.record()
		r.Value = append(bytes.Repeat([]byte("0"), 1_000_000), '0') // a long way to write nought
		records = append(records, r)
	}
	s.fail(list[2], 2, errors.New("not yet"))
	s.fail(list[5], forever, event.Permanentf("never"))
	for _, r := range records {
		w.produceRecords(r)
	}
	w.start(w.config(tally{"a", s.verdict}))
	w.settled()
	w.check(list, map[uuid.UUID]bool{list[5].id: true})
	if dead := w.topicRecords(topic+"."+service+".dlq", 1); !bytes.Equal(dead[0].Value, records[5].Value) {
		t.Errorf("the dead letter has %d bytes", len(dead[0].Value))
	}
}

// All behind one head that fails twice: they wait without churn, and go in order when it does.
func TestTenThousandEventsOfOneKeyWaitAndGoInOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.relay()
	list := make([]fact, 10000)
	for i := range list {
		list[i] = newFact("key", i, batchKind, 0)
	}
	s := newScript()
	s.fail(list[0], 2, errors.New("not yet"))
	s.fail(list[7000], 1, errors.New("not yet either"))
	w.produce(list...)
	m := w.start(w.config(tally{"a", s.verdict}))
	w.settled()
	w.check(list, nil)
	if n := m.counted(t, "converge_retry_scheduled_total"); n != 3 {
		t.Errorf("%v tries were scheduled for 3 failures", n)
	}
}
