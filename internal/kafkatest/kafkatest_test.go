package kafkatest

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const topic = "kafkatest-survives"

func client(t *testing.T, b *Broker, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	c, err := kgo.NewClient(append(opts, kgo.SeedBrokers(strings.Split(b.Brokers(), ",")...))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// read returns the values of the topic's first n records, by offset.
func read(t *testing.T, b *Broker, n int) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := client(t, b, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	var values []string
	for len(values) < n {
		fetches := c.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			t.Fatalf("after %d of %d records: %v", len(values), n, err)
		}
		fetches.EachRecord(func(r *kgo.Record) { values = append(values, string(r.Value)) })
	}
	return values
}

func TestKafkaKeepsWhatItAcknowledgedThroughKillNine(t *testing.T) {
	b := Start(t)
	if !b.Own() {
		t.Skip("KAFKA_BROKERS names a cluster that is not this test's to kill")
	}
	c := client(t, b, kgo.RequiredAcks(kgo.AllISRAcks()))
	if _, err := kadm.NewClient(c).CreateTopic(t.Context(), 1, 1, nil, topic); err != nil {
		t.Fatal(err)
	}
	before := b.Brokers()
	const records = 2000
	produced := 0
	for round, end := range []func(){b.Kill, b.Stop} {
		batch := make([]*kgo.Record, records)
		for i := range batch {
			batch[i] = &kgo.Record{Topic: topic, Value: []byte(strconv.Itoa(produced + i))}
		}
		if err := c.ProduceSync(t.Context(), batch...).FirstErr(); err != nil {
			t.Fatalf("after record %d: %v", produced, err)
		}
		produced += records
		end()
		if l, err := net.Listen("tcp", before); err != nil {
			t.Errorf("round %d: the broker is still there: %v", round, err)
		} else {
			l.Close()
		}
		b.Restart()
		if b.Brokers() != before {
			t.Fatalf("it was at %s and is at %s now", before, b.Brokers())
		}
		for i, value := range read(t, b, produced) {
			if value != strconv.Itoa(i) {
				t.Fatalf("round %d: offset %d holds %q", round, i, value)
			}
		}
	}
}

func TestKafkaOfTheClusterGivenIsLeftAsItWas(t *testing.T) {
	b := Start(t)
	if !b.Own() {
		t.Skip("this test makes the cluster that it gives")
	}
	admin := kadm.NewClient(client(t, b))
	if _, err := admin.CreateTopic(t.Context(), 1, 1, nil, "theirs"); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KAFKA_BROKERS", b.Brokers())
	t.Run("borrower", func(t *testing.T) {
		given := Start(t)
		if given.Own() || given.Brokers() != b.Brokers() {
			t.Fatalf("Start gave %s (own: %t), want the cluster of KAFKA_BROKERS", given.Brokers(), given.Own())
		}
		c := client(t, given, kgo.ConsumerGroup("ours"), kgo.ConsumeTopics(topic))
		if _, err := kadm.NewClient(c).CreateTopic(t.Context(), 1, 1, nil, topic); err != nil {
			t.Fatal(err)
		}
		if err := c.ProduceSync(t.Context(), &kgo.Record{Topic: topic}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for { // a topic goes a moment after its deletion was answered
		topics, groups, err := inventory(b.Brokers())
		if err == nil && fmt.Sprint(topics, groups) == "[theirs] []" {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("left behind: topics %q, groups %q (%v), want theirs only", topics, groups, err)
		}
	}
}
