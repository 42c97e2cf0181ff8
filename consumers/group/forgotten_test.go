package group_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/inbox"
	"converge/consumers/retry"
	"converge/internal/partitions"
)

// dated is the fact's record with an id that tells no time, and a header that does.
func dated(f fact, at time.Time) *kgo.Record {
	r := f.record()
	r.Headers = append(r.Headers, kgo.RecordHeader{Key: "occurred_at", Value: []byte(at.Format(time.RFC3339Nano))})
	return r
}

// What comes after its day was forgotten may have been applied: a person decides, and is obeyed.
func TestAnEventOlderThanTheInboxRemembersIsForAPersonToDecide(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.relay()
	list := facts(4, 1, 1)
	for i := range list {
		list[i].id = uuid.New()
	}
	old := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	days := inbox.Days{Pool: w.pool, Retention: 16 * partitions.Day}
	must(t, days.Make(t.Context(), old))
	w.produceRecords(dated(list[0], old))
	m := w.start(w.config(tally{name: "a"}))
	w.settled()
	dropped, err := days.Prune(t.Context(), old.AddDate(0, 0, 18))
	must(t, err)
	if len(dropped) == 0 {
		t.Fatal("no day was forgotten")
	}
	w.produceRecords(
		dated(list[0], old), // again
		dated(list[1], old), // the first time, of the same key
		dated(list[2], old.AddDate(0, 0, 5)),
		dated(list[1], old)) // again: it is under review
	w.settled()
	review := map[uuid.UUID]bool{list[1].id: true}
	w.check(list[:3], review)
	eventually(t, "both old events are dead letters", func() error {
		if letters := w.letters(); len(letters) != 2 || letters[list[0].id] != "permanent" || letters[list[1].id] != "permanent" {
			return fmt.Errorf("dead letters: %v", letters)
		}
		return nil
	})
	m.counts(t, 2, "converge_consumer_events_total", "outcome", "dead")
	for _, r := range w.topicRecords(topic+"."+service+".dlq", 2) {
		if header(r, "error") != inbox.ErrForgotten.Error() {
			t.Errorf("the dead letter says %q", header(r, "error"))
		}
	}

	// A person looks, discards the one that was applied and redrives the other.
	ladder := retry.Ladder{Consumer: service, Policy: quick}
	must(t, ladder.Discard(t.Context(), w.pool, list[0].id, retry.Decision{}))
	if n, err := ladder.Redrive(t.Context(), w.pool, topic, "key-0", retry.Decision{}); len(n) != 1 || err != nil {
		t.Fatalf("redriving: %v, %v", n, err)
	}
	eventually(t, "the redriven event is applied", func() error {
		if letter, err := retry.Show(t.Context(), w.pool, service, list[1].id); err != nil || letter.State != "resolved" {
			return errors.Join(err, fmt.Errorf("it is %s", letter.State))
		}
		return nil
	})
	w.produceRecords(dated(list[1], old), list[3].record()) // and yet again
	w.settled()
	if got := len(w.effects()); got != 4 {
		t.Errorf("%d effects, want 4: %+v", got, w.effects())
	}
	if letters := w.letters(); len(letters) != 0 {
		t.Errorf("undecided letters: %v", letters)
	}
}
