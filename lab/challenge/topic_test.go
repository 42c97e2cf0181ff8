package challenge

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/lab/history"
)

func kafka(t *testing.T, topics ...string) []string {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, topics...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster.ListenAddrs()
}

func produce(t *testing.T, seeds []string, topic string, n int, prefix string) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(seeds...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for i := range n {
		record := &kgo.Record{Topic: topic, Key: fmt.Appendf(nil, "%s-%d", prefix, i%5), Value: []byte{0, 0, 0, 0, 1, byte(i)}, Headers: []kgo.RecordHeader{
			{Key: "event_id", Value: fmt.Appendf(nil, "e-%d", i)},
			{Key: "aggregate_version", Value: fmt.Append(nil, i/5+1)},
			{Key: "committed_at", Value: []byte("2026-03-01T12:00:00.5Z")},
		}}
		if err := client.ProduceSync(t.Context(), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline, ticker := time.NewTimer(20*time.Second), time.NewTicker(10*time.Millisecond)
	defer deadline.Stop()
	defer ticker.Stop()
	for !done() {
		select {
		case <-ticker.C:
		case <-deadline.C:
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func reading(t *testing.T, b *broker) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { b.read(ctx) })
	t.Cleanup(func() {
		stop()
		wg.Wait()
		b.client.Close()
	})
}

func TestRecordsAreSentAgainByteForByte(t *testing.T) {
	seeds := kafka(t, topic)
	produce(t, seeds, topic, 3, "somebody-before-this-run")
	b, err := openBroker(t.Context(), seeds, "u")
	if err != nil {
		t.Fatal(err)
	}
	reading(t, b)
	produce(t, seeds, topic, 20, "u")
	produce(t, seeds, topic, 3, "somebody-else")
	until(t, "20 records read", func() bool { return b.count() == 20 })
	n, err := b.resend(t.Context(), rand.New(rand.NewPCG(1, 1)), 0.5)
	if err != nil || n < 3 || n > 17 {
		t.Fatalf("sent %d again, error %v", n, err)
	}
	until(t, "those read too", func() bool { return b.count() == 20+n })

	b.mu.Lock()
	defer b.mu.Unlock()
	print := func(r *kgo.Record) string { return fmt.Sprintf("%d %s %x %v", r.Partition, r.Key, r.Value, r.Headers) }
	originals := map[string]bool{}
	for _, r := range b.records[:20] {
		originals[print(r)] = true
	}
	for _, r := range b.records[20:] {
		if !originals[print(r)] {
			t.Errorf("%s was never on the topic before", print(r))
		}
	}
}

func TestTheTopicIsReadAsHistory(t *testing.T) {
	seeds := kafka(t, topic)
	b, err := openBroker(t.Context(), seeds, "u")
	if err != nil {
		t.Fatal(err)
	}
	reading(t, b)
	produce(t, seeds, topic, 10, "u")
	p, err := b.positions(t.Context(), "billing")
	if err != nil {
		t.Fatal(err)
	}
	if got := p.behind(p.ends); got != 10 {
		t.Errorf("a group that never committed is %d behind, want 10", got)
	}
	until(t, "the end of the topic read", func() bool { return b.failure(p.ends) == nil })
	if got := b.history()[0]; got.EventID == "" || got.UserID == "" || got.Version != 1 || got.CommittedAt.IsZero() {
		t.Errorf("read %+v", got)
	}
	acked := []history.Write{{UserID: "u-1", Version: 2, Outcome: history.OK}, {UserID: "u-1", Version: 3, Outcome: history.OK}, {UserID: "u-1", Version: 4, Outcome: history.Unknown}}
	if got := b.missing(acked); got != 1 {
		t.Errorf("%d changes are missing, want 1", got)
	}
	p.ends[0]++
	if b.failure(p.ends) == nil {
		t.Error("a topic that was not read to its end is no failure")
	}
}

func TestDeadLettersAreReadToTheEndOfTheirTopic(t *testing.T) {
	seeds := kafka(t, topic, deadLetterTopic("billing"))
	produce(t, seeds, deadLetterTopic("billing"), 7, "u")
	produce(t, seeds, deadLetterTopic("billing"), 2, "somebody-else")
	b, err := openBroker(t.Context(), seeds, "u")
	if err != nil {
		t.Fatal(err)
	}
	defer b.client.Close()
	for service, want := range map[string]int{"billing": 7, "analytics": 0} {
		letters, err := b.deadLetters(t.Context(), seeds, service)
		if err != nil || len(letters) != want {
			t.Errorf("%s has %d dead letters, error %v; want %d", service, len(letters), err, want)
		}
	}
}
