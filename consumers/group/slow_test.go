package group_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"converge/consumers/event"
)

// slow takes its time over every event, as long as it is given.
func slow(s tally, takes time.Duration) event.Handler {
	each := func(ctx context.Context, tx pgx.Tx, e *event.Event) error {
		if _, err := tx.Exec(ctx, "SELECT pg_sleep($1)", takes.Seconds()); err != nil {
			return err
		}
		return s.each(ctx, tx, e)
	}
	return event.Handler{Each: map[string]event.Each{eachKind: each, batchKind: each}}
}

// A handler may need longer for a poll's events than a transaction may take. It is given fewer, and no event is to
// blame.
func TestABatchThatTakesTooLongComesAgainInParts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	list := facts(60, 4, 1)
	cfg := w.config(tally{name: "a"})
	cfg.Handler, cfg.BatchTime = slow(tally{name: "a"}, 40*time.Millisecond), 800*time.Millisecond
	w.produce(list...)
	w.start(cfg)
	w.settled()
	w.check(list, nil)
	w.nothingCounted()
}

// The same goes for what waits behind a held key; and while that is run, which takes longer than a poll may, the
// group goes on with all else.
func TestALongDrainLetsOthersHaveTheirTurn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.relay()
	var list []fact
	for i := range 150 {
		list = append(list, newFact("key-0", i, eachKind, 0))
	}
	s := newScript()
	s.fail(list[0], 1, event.RetryAfter(fmt.Errorf("not yet"), 300*time.Millisecond))
	cfg := w.config(tally{"a", s.verdict})
	cfg.Handler, cfg.BatchTime = slow(tally{"a", s.verdict}, 40*time.Millisecond), 800*time.Millisecond
	w.produce(list...)
	m := w.start(cfg)
	m.counts(t, 1, "converge_consumer_events_total", "outcome", "retried")
	eventually(t, "the drain has begun", func() error {
		if n := len(w.effects()); n < 10 {
			return fmt.Errorf("%d effects", n)
		}
		return nil
	})
	other := newFact("key-1", 0, eachKind, 1)
	w.produce(other)
	w.settled()
	w.check(append(list, other), nil)
	effects := w.effects()
	if last := effects[len(effects)-1]; last.ID == other.id {
		t.Error("the other key's event waited for the whole drain")
	}
}
