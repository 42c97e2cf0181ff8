package group_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/event"
	"converge/consumers/retry"
)

// script says what becomes of events, and remembers how often each was tried alone or in a batch.
type script struct {
	mu    sync.Mutex // guards all below
	left  map[uuid.UUID]int
	what  map[uuid.UUID]error
	tries map[uuid.UUID]int
	// attempts is the Attempt of each event's last try.
	attempts map[uuid.UUID]int
}

func newScript() *script {
	return &script{left: map[uuid.UUID]int{}, what: map[uuid.UUID]error{}, tries: map[uuid.UUID]int{}, attempts: map[uuid.UUID]int{}}
}

const forever = 1 << 30

// fail makes the next n tries of the event fail with err. A try in a batch that is rolled back and the
// try alone that follows are one: only a try alone counts, by the Attempt that the runtime says.
func (s *script) fail(f fact, n int, err error) { s.left[f.id], s.what[f.id] = n, err }

func (s *script) verdict(_ context.Context, e *event.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tries[e.ID]++
	s.attempts[e.ID] = e.Attempt
	if e.Attempt < s.left[e.ID] {
		return s.what[e.ID]
	}
	return nil
}

func (s *script) attempt(f fact) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.attempts[f.id]
}

// topicRecords waits until the topic holds n records and returns them.
func (w *world) topicRecords(name string, n int) []*kgo.Record {
	w.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(w.kafka.ListenAddrs()...), kgo.ConsumeTopics(name),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))
	must(w.t, err)
	defer client.Close()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	var records []*kgo.Record
	for len(records) < n {
		records = append(records, client.PollFetches(ctx).Records()...)
		if ctx.Err() != nil {
			w.t.Fatalf("%s holds %d records, want %d", name, len(records), n)
		}
	}
	return records
}

func header(r *kgo.Record, key string) string {
	for _, h := range r.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

func TestAPermanentErrorIsADeadLetterAndThePartitionGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.relay()
	list := facts(40, 4, 1)
	s := newScript()
	dead := map[uuid.UUID]bool{}
	for _, i := range []int{0, 7, 21, 39} {
		s.fail(list[i], forever, event.Permanentf("order %d makes no sense", i))
		dead[list[i].id] = true
	}
	w.produce(list...)
	w.start(w.config(tally{"a", s.verdict}))
	w.settled()
	w.check(list, dead)
	letters := w.letters()
	if len(letters) != len(dead) {
		t.Errorf("%d dead letters, want %d: %v", len(letters), len(dead), letters)
	}
	for id := range dead {
		if letters[id] != "permanent" {
			t.Errorf("event %s is %q", id, letters[id])
		}
	}
	records := w.topicRecords(topic+"."+service+".dlq", len(dead))
	if len(records) != len(dead) {
		t.Errorf("%d records on the dead-letter topic", len(records))
	}
	for _, r := range records {
		if id := uuid.MustParse(header(r, "event_id")); !dead[id] {
			t.Errorf("%s is on the dead-letter topic", id)
		}
		if header(r, "error_class") != "permanent" || header(r, "origin_topic") != topic || header(r, "event_type") == "" {
			t.Errorf("the dead letter's headers do not tell: %v", r.Headers)
		}
	}
	if n := ask[int](w, "SELECT count(*) FROM outbox WHERE topic LIKE '%.retry.%'"); n != 0 {
		t.Errorf("%d wake-ups for events that no retry mends", n)
	}
}

// The letter, its record for Kafka, the inbox row and the offset are one transaction's.
func TestADeadLetterIsWrittenWithItsRecordOrNotAtAll(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	f := newFact("k", 0, eachKind, 0)
	w.produce(f)
	if _, err := w.pool.Exec(t.Context(), "ALTER TABLE outbox RENAME TO outbox_away"); err != nil {
		t.Fatal(err)
	}
	s := newScript()
	s.fail(f, forever, event.Permanentf("no"))
	m := w.start(w.config(tally{"a", s.verdict}))
	eventually(t, "the group waits", func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.tries[f.id] < 4 {
			return errors.New("not tried often enough")
		}
		return nil
	})
	if m.Ready() == nil {
		t.Error("a group that cannot bury is ready")
	}
	if n := ask[int](w, "SELECT (SELECT count(*) FROM dead_letters) + (SELECT count(*) FROM inbox)"); n != 0 || w.stored(0) != 0 {
		t.Errorf("%d rows without the record, stored offset %d", n, w.stored(0))
	}
	if _, err := w.pool.Exec(t.Context(), "ALTER TABLE outbox_away RENAME TO outbox"); err != nil {
		t.Fatal(err)
	}
	w.settled()
	if n := ask[int](w, "SELECT count(*) FROM outbox WHERE event_id = $1", f.id); n != 1 || len(w.letters()) != 1 {
		t.Errorf("%d records, %d letters", n, len(w.letters()))
	}
}

func TestRubbishIsADeadLetterAndThePartitionGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.relay()
	good := facts(4, 2, 1)
	typed := func(value, kind string, more ...kgo.RecordHeader) *kgo.Record {
		return &kgo.Record{Topic: topic, Key: []byte("k"), Value: []byte(value),
			Headers: append([]kgo.RecordHeader{{Key: "event_type", Value: []byte(kind)}}, more...)}
	}
	rubbish := []*kgo.Record{
		{Topic: topic, Value: []byte("no headers, no key")},
		{Topic: topic, Key: []byte{0, 0xff, 0}, Value: []byte{0, 1, 2, 0xfe}},
		{Topic: topic, Key: []byte{}, Value: []byte{}},
		typed("\x00\xff", eachKind),
		typed("not a number", batchKind),
		typed("x", eachKind, kgo.RecordHeader{Key: "\xff\x00", Value: []byte("\x00")}, kgo.RecordHeader{Key: "event_id", Value: []byte("\x00\xff")}),
		typed("y", batchKind, kgo.RecordHeader{Key: "occurred_at", Value: []byte("9999-12-31T23:59:59Z")}, kgo.RecordHeader{Key: "content-type", Value: []byte("\x00")}),
		typed("z", eachKind, kgo.RecordHeader{Key: "occurred_at", Value: []byte("0000-01-01T00:00:00Z")}),
		typed("u", eachKind, kgo.RecordHeader{Key: "event_id", Value: []byte("ffffffff-ffff-7fff-bfff-ffffffffffff")}),
		{Topic: topic, Value: []byte("from the far future"), Timestamp: time.UnixMilli(1 << 62)},
		{Topic: topic, Value: []byte("from before PostgreSQL's time"), Timestamp: time.UnixMilli(-3e14)},
	}
	w.produce(good[:2]...)
	for _, r := range rubbish {
		w.produceRecords(r) // each a batch, whose timestamps count from its first record's
	}
	w.produce(good[2:]...)
	w.start(w.config(tally{name: "a"}))
	w.settled()
	w.check(good, nil)
	if got := len(w.letters()); got != len(rubbish) {
		t.Errorf("%d dead letters of %d", got, len(rubbish))
	}
	records := w.topicRecords(topic+"."+service+".dlq", len(rubbish))
	kept := map[string]bool{}
	for _, r := range records {
		kept[string(r.Value)] = true
	}
	for _, r := range rubbish {
		if !kept[string(r.Value)] {
			t.Errorf("the bytes %q are lost", r.Value)
		}
	}
}

func TestAnEventThatFailsForAWhileClimbsTheLadderAndIsAppliedInItsPlace(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.relay()
	list := facts(60, 3, 1)
	s := newScript()
	s.fail(list[3], 1, errors.New("no stock"))    // key-0, second event
	s.fail(list[4], 3, errors.New("no stock"))    // key-1, second event
	s.fail(list[40], 2, errors.New("no carrier")) // key-1 again, much later
	w.produce(list...)
	m := w.start(w.config(tally{"a", s.verdict}))
	w.settled()
	w.check(list, nil)
	if letters := w.letters(); len(letters) != 0 {
		t.Errorf("dead letters: %v", letters)
	}
	for i, want := range map[int]int{3: 1, 4: 3, 40: 2, 5: 0} {
		if got := s.attempt(list[i]); got != want {
			t.Errorf("event %d was applied at attempt %d, want %d", i, got, want)
		}
	}
	// 1, 3 and 2 failures: three of them are first ones; the last rung serves for all that follow the second.
	for rung, want := range map[string]float64{"10ms": 3, "30ms": 3} {
		m.counts(t, want, "converge_retry_scheduled_total", "rung", rung)
	}
	for _, r := range w.topicRecords(topic+"."+service+".retry.10ms", 3) {
		if header(r, "error") == "" || header(r, "attempt") != "1" || header(r, "not_before") == "" || header(r, "event_id") == "" {
			t.Errorf("the record does not say what waits and why: %v", r.Headers)
		}
	}
}

func TestAnEventThatFailsAtEveryRungIsADeadLetterAndItsFollowersGoOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.relay()
	list := facts(30, 3, 1)
	s := newScript()
	s.fail(list[6], forever, errors.New("no stock, ever"))
	w.produce(list...)
	w.start(w.config(tally{"a", s.verdict}))
	w.settled()
	dead := map[uuid.UUID]bool{list[6].id: true}
	w.check(list, dead)
	letters, err := retry.List(t.Context(), w.pool, retry.Filter{Consumer: service})
	must(t, err)
	if len(letters) != 1 || letters[0].EventID != list[6].id || letters[0].Attempts != quick.MaxAttempts || letters[0].ErrorClass != "retriable" {
		t.Errorf("dead letters: %+v", letters)
	}
	if got := s.attempt(list[6]); got != quick.MaxAttempts-1 {
		t.Errorf("the last try was attempt %d", got)
	}
}

func TestARedrivenDeadLetterIsAppliedByTheGroup(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.relay()
	list := facts(6, 2, 1)
	s := newScript()
	s.fail(list[0], 1, event.Permanentf("a bug"))
	w.produce(list...)
	m := w.start(w.config(tally{"a", s.verdict}))
	w.settled()
	w.check(list, map[uuid.UUID]bool{list[0].id: true})
	s.mu.Lock()
	s.fail(list[0], 0, nil) // the bug is mended
	s.mu.Unlock()
	ladder := retry.Ladder{Consumer: service, Policy: quick}
	if ids, err := ladder.Redrive(t.Context(), w.pool, topic, "key-0", retry.Decision{}); len(ids) != 1 || err != nil {
		t.Fatalf("redriving: %v, %v", ids, err)
	}
	w.settled()
	if found := w.effects(); len(found) != len(list) || found[len(found)-1].ID != list[0].id {
		t.Errorf("effects: %v", found)
	}
	letter, err := retry.Show(t.Context(), w.pool, service, list[0].id)
	must(t, err)
	if letter.State != "resolved" {
		t.Errorf("the letter is %s", letter.State)
	}
	m.counts(t, 1, "converge_dlq_redrives_total", "outcome", "applied")
}

// Nothing else of a batch may suffer from the one event that its set-based handler refuses.
func TestOneRefusedEventOfABatchLeavesTheOthersApplied(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.relay()
	var list []fact
	for i := range 200 {
		list = append(list, newFact(fmt.Sprintf("key-%d", i), 0, batchKind, 0))
	}
	s := newScript()
	s.fail(list[120], forever, event.Permanentf("no"))
	s.fail(list[130], 1, errors.New("not yet"))
	w.produce(list...)
	w.start(w.config(tally{"a", s.verdict}))
	w.settled()
	w.check(list, map[uuid.UUID]bool{list[120].id: true})
}

// The partition of the retry topic is paused until the call is due. What resumes it must not then wait for
// a fetch that is under way for other partitions.
func TestARetryOnAnIdleTopicIsNotLate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.relay()
	f := newFact("k", 0, eachKind, 0)
	w.produce(f)
	var mu sync.Mutex
	var tries []time.Time // each is two calls: in the batch, and alone
	cfg := w.config(tally{"a", func(_ context.Context, e *event.Event) error {
		mu.Lock()
		defer mu.Unlock()
		tries = append(tries, time.Now())
		if e.Attempt < 3 {
			return event.RetryAfter(errors.New("busy"), 100*time.Millisecond)
		}
		return nil
	}})
	cfg.Client = nil
	w.start(cfg)
	w.settled()
	w.check([]fact{f}, nil)
	quickest := patience
	for i := 2; i < len(tries); i += 2 {
		quickest = min(quickest, tries[i].Sub(tries[i-1]))
	}
	if len(tries) != 7 || quickest < 100*time.Millisecond || quickest > time.Second {
		t.Errorf("%d tries, the quickest retry after %v", len(tries), quickest)
	}
}

// PostgreSQL refuses a NUL in a text with SQLSTATE 22021, in whatever statement of the handler's: that is
// the event's trouble for good, and not the database's.
func TestDataThatTheDatabaseCannotHoldIsADeadLetter(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.relay()
	list := []fact{newFact("a", 0, eachKind, 0), newFact("nul\x00", 0, eachKind, 0), newFact("nul\x00", 1, batchKind, 0), newFact("a", 1, batchKind, 0)}
	w.produce(list...)
	w.start(w.config(tally{name: "a"}))
	w.settled()
	w.check(list, map[uuid.UUID]bool{list[1].id: true, list[2].id: true})
	if letters := w.letters(); letters[list[1].id] != "permanent" || letters[list[2].id] != "permanent" {
		t.Errorf("dead letters: %v", letters)
	}
}

// The key is held in one batch; its later events come in others, while the head waits long enough for all
// of them to have overtaken it.
func TestLaterEventsWaitBehindAHeldKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.relay()
	list := facts(60, 2, 1)
	m := w.start(w.config(tally{"a", func(_ context.Context, e *event.Event) error {
		if e.ID == list[0].id && e.Attempt == 0 {
			return event.RetryAfter(errors.New("busy"), 400*time.Millisecond)
		}
		return nil
	}}))
	w.produce(list[:10]...)
	m.counts(t, 1, "converge_consumer_events_total", "outcome", "retried")
	w.produce(list[10:]...)
	w.settled()
	w.check(list, nil)
}
func TestAnIDThatDiesTwiceDoesNotStopThePartition(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.relay()
	id := uuid.New().String()
	for _, day := range []string{"2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"} {
		w.produceRecords(&kgo.Record{Topic: topic, Key: []byte("k"), Value: []byte("rubbish"), Headers: []kgo.RecordHeader{
			{Key: "event_type", Value: []byte(eachKind)}, {Key: "event_id", Value: []byte(id)}, {Key: "occurred_at", Value: []byte(day)}}})
	}
	good := facts(2, 1, 1)
	w.produce(good...)
	cfg := w.config(tally{name: "a"})
	cfg.MaxEvents = 1 // in one batch the second is a duplicate of the first
	w.start(cfg)
	w.settled()
	w.check(good, nil)
	letters, err := retry.List(t.Context(), w.pool, retry.Filter{Consumer: service})
	must(t, err)
	if len(letters) != 1 || letters[0].Deaths != 2 {
		t.Errorf("dead letters: %+v", letters)
	}
}
