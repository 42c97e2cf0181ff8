package prove

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	partitions = 6
	keys       = 48
	hotKeys    = 2
)

func keyName(k int) string { return "key-" + string(rune('a'+k/26)) + string(rune('a'+k%26)) }

// ledger is what was put on the topic. It goes around the leg: an outage of the members' is none of its own.
type ledger struct {
	kafka *kgo.Client
	rng   *rand.Rand
	rate  float64 // facts a second

	harmless bool // every fact is applied at once

	next   [keys]int
	recent [partitions][]*kgo.Record // the last ones, to be sent once more

	mu        sync.Mutex // guards facts
	facts     []Fact
	upstreams int // records that were sent once more
}

// write puts facts on the topic until ctx ends. What began is brought to an end, so that all is known.
func (l *ledger) write(ctx context.Context) error {
	for {
		began := time.Now()
		n := 1 + l.rng.IntN(40)
		if err := l.put(context.WithoutCancel(ctx), n); err != nil {
			return err
		}
		select {
		case <-time.After(time.Duration(float64(n)/l.rate*float64(time.Second)) - time.Since(began)):
		case <-ctx.Done():
			return l.close(context.WithoutCancel(ctx))
		}
	}
}

// put sends n new facts, and now and then a stretch of a partition's last ones once more, as a relay does that
// was killed.
func (l *ledger) put(ctx context.Context, n int) error {
	facts := make([]Fact, n)
	records := make([]*kgo.Record, n)
	for i := range facts {
		k := l.rng.IntN(keys)
		if l.rng.IntN(3) == 0 {
			k = l.rng.IntN(hotKeys)
		}
		facts[i], records[i] = l.draw(k)
	}
	return l.send(ctx, facts, records)
}

// close puts a fact on every partition that the group must take on: what it passes over moves no offset.
func (l *ledger) close(ctx context.Context) error {
	var facts []Fact
	var records []*kgo.Record
	for p := range partitions {
		fact := Fact{ID: uuid.Must(uuid.NewV7()), Key: keyName(p), Partition: int32(p), Task: Task{Seq: l.next[p], Value: 1}}
		l.next[p]++
		facts, records = append(facts, fact), append(records, record(&fact, EachType))
	}
	return l.send(ctx, facts, records)
}

func (l *ledger) send(ctx context.Context, facts []Fact, records []*kgo.Record) error {
	if err := l.kafka.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return err
	}
	l.mu.Lock()
	for i := range facts {
		facts[i].Offset = records[i].Offset
	}
	l.facts = append(l.facts, facts...)
	l.mu.Unlock()
	for _, r := range records {
		recent := append(l.recent[r.Partition], r)
		l.recent[r.Partition] = recent[max(0, len(recent)-100):]
	}
	if l.rng.IntN(24) > 0 {
		return nil
	}
	stretch := l.recent[l.rng.IntN(partitions)]
	if len(stretch) == 0 {
		return nil
	}
	var again []*kgo.Record
	for _, r := range stretch[l.rng.IntN(len(stretch)):] {
		again = append(again, &kgo.Record{Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Headers: r.Headers})
	}
	l.mu.Lock()
	l.upstreams += len(again)
	l.mu.Unlock()
	return l.kafka.ProduceSync(ctx, again...).FirstErr()
}

// draw makes a fact of the key.
func (l *ledger) draw(k int) (Fact, *kgo.Record) {
	fact := Fact{ID: uuid.Must(uuid.NewV7()), Key: keyName(k), Partition: int32(k % partitions), Task: Task{Seq: l.next[k], Value: 1 + l.rng.Int64N(1000)}}
	l.next[k]++
	kind := EachType
	if l.rng.IntN(2) == 0 {
		kind = BatchType
	}
	if l.harmless {
		return fact, record(&fact, kind)
	}
	odds := 1000
	if k < hotKeys {
		odds = 10_000 // what waits for a hot key is tried one after the other
	}
	switch n := l.rng.IntN(odds); {
	case n < 30:
		fact.How, fact.Fails = []How{Plainly, Panics, InSQL, AtCommit}[l.rng.IntN(4)], 1+l.rng.IntN(4)
	case n < 33:
		fact.How, fact.Fails = []How{Plainly, Panics, InSQL, AtCommit}[l.rng.IntN(4)], Forever
	case n < 36:
		fact.How, fact.Fails = ForGood, Forever
	case n < 38:
		fact.How = Unreadable
	case n < 40:
		fact.How = Untyped
	case n < 60:
		fact.Slow = 1 + l.rng.IntN(60)
	case n < 70:
		fact.Note = strings.Repeat("x", l.rng.IntN(50_000))
	}
	return fact, record(&fact, kind)
}

func record(fact *Fact, kind string) *kgo.Record {
	value, err := json.Marshal(fact.Task)
	if err != nil {
		panic(err) // a struct of numbers and strings
	}
	r := &kgo.Record{Topic: Topic, Partition: fact.Partition, Key: []byte(fact.Key), Value: value,
		Headers: []kgo.RecordHeader{{Key: "event_id", Value: []byte(fact.ID.String())}, {Key: "event_type", Value: []byte(kind)}}}
	switch fact.How {
	case Unreadable:
		r.Value = []byte("}")
	case Untyped:
		r.Headers = r.Headers[:1]
	}
	return r
}
