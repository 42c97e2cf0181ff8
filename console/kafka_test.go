package console

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// noon is when the planted records' time begins; ages are exact against it.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// broker is an embedded Kafka with topics of two partitions.
type broker struct {
	t       *testing.T
	client  *kgo.Client
	admin   *kadm.Client
	address []string
}

func newBroker(t *testing.T, topics ...string) *broker {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, topics...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	client, err := kgo.NewClient(append(clientOptions(cluster.ListenAddrs()), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return &broker{t, client, kadm.NewClient(client), cluster.ListenAddrs()}
}

// write produces one record per second of noon's minute to the partition.
func (b *broker) write(topic string, partition int32, seconds ...int) {
	b.t.Helper()
	for _, s := range seconds {
		record := &kgo.Record{
			Topic: topic, Partition: partition, Timestamp: noon.Add(time.Duration(s) * time.Second), Key: []byte("key"),
			Value:   fmt.Appendf(nil, `{"second": %d}`, s),
			Headers: []kgo.RecordHeader{{Key: "event_type", Value: []byte("OrderPlaced")}, {Key: "event_id", Value: fmt.Appendf(nil, "id-%d", s)}},
		}
		if err := b.client.ProduceSync(b.t.Context(), record).FirstErr(); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *broker) commit(group, topic string, partition int32, offset int64) {
	b.t.Helper()
	offsets := kadm.Offsets{}
	offsets.Add(kadm.Offset{Topic: topic, Partition: partition, At: offset, LeaderEpoch: -1})
	if err := b.admin.CommitAllOffsets(b.t.Context(), group, offsets); err != nil {
		b.t.Fatal(err)
	}
}

// look samples as if it were so many seconds past noon.
func look(t *testing.T, k *kafkaSource, seconds float64) *kafkaSample {
	t.Helper()
	at := noon.Add(time.Duration(seconds * float64(time.Second)))
	s, err := k.sample(t.Context(), func() time.Time { return at })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *kafkaSample) find(t *testing.T, group, topic string, partition int) PartitionLag {
	t.Helper()
	for _, g := range s.groups {
		for _, gt := range g.Topics {
			if g.Name == group && gt.Topic == topic && partition < len(gt.Partitions) {
				return gt.Partitions[partition]
			}
		}
	}
	t.Fatalf("no %s on %s/%d in %+v", group, topic, partition, s.groups)
	return PartitionLag{}
}

func TestLagSecondsIsTheAgeOfTheRecordAtTheCommittedOffset(t *testing.T) {
	b := newBroker(t, "orders")
	b.write("orders", 0, 0, 10, 20, 30)
	b.commit("inventory", "orders", 0, 2)
	got := look(t, newKafkaSource(b.client), 42.5).find(t, "inventory", "orders", 0)
	want := PartitionLag{
		Partition: 0, Committed: new(int64(2)), Start: new(int64(0)), End: new(int64(4)),
		Messages: new(int64(2)), Seconds: new(22.5), Verdict: Lagging,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("partition (-want +got):\n%s", diff)
	}
}

func TestNothingToReadIsZeroSecondsHoweverOldTheCommit(t *testing.T) {
	b := newBroker(t, "orders")
	b.write("orders", 0, 0, 1)
	b.commit("inventory", "orders", 0, 2)
	k := newKafkaSource(b.client)
	for _, at := range []float64{2, 60, 86400} {
		got := look(t, k, at).find(t, "inventory", "orders", 0)
		if got.Seconds == nil || *got.Seconds != 0 || *got.Messages != 0 || got.Verdict != OK {
			t.Errorf("after %v s: %+v, want zero lag and OK", at, got)
		}
	}
}

func TestQuietPartitionIsNotStoppedByItsFirstRecord(t *testing.T) {
	b := newBroker(t, "orders")
	b.write("orders", 0, 0)
	b.commit("inventory", "orders", 0, 1)
	k := newKafkaSource(b.client)
	look(t, k, 1)
	b.write("orders", 0, 2)
	if got := look(t, k, 3).find(t, "inventory", "orders", 0); got.Verdict != OK || *got.Messages != 1 || *got.Seconds != 1 {
		t.Errorf("one second after the record: %+v, want OK with one record of one second", got)
	}
}

func TestStoppedGroupIsSeenAndItsLagGrowsByTheSecond(t *testing.T) {
	b := newBroker(t, "orders")
	b.write("orders", 1, 0, 1, 2)
	b.commit("inventory", "orders", 1, 1)
	k := newKafkaSource(b.client)
	for s := 3; s <= 20; s++ {
		got := look(t, k, float64(s)).find(t, "inventory", "orders", 1)
		if *got.Seconds != float64(s-1) {
			t.Fatalf("at %d s: lag %v s, want %d", s, *got.Seconds, s-1)
		}
		if stopped := got.Verdict == Stopped; stopped != (s >= 13) {
			t.Errorf("at %d s the verdict is %s; ten seconds of standing still end at 13 s", s, got.Verdict)
		}
	}
}

func TestRewoundGroupIsRewoundUntilItIsBack(t *testing.T) {
	b := newBroker(t, "orders")
	b.write("orders", 0, 0, 1, 2, 3, 4)
	k := newKafkaSource(b.client)
	steps := []struct {
		at      float64
		commit  int64
		verdict Verdict
	}{{5, 4, Lagging}, {5.5, 5, OK}, {6, 1, Rewound}, {7, 3, Rewound}, {8, 5, OK}}
	for _, step := range steps {
		b.commit("inventory", "orders", 0, step.commit)
		if step.at == 5 {
			step.verdict = OK // the record at offset 4 is one second old
		}
		if got := look(t, k, step.at).find(t, "inventory", "orders", 0); got.Verdict != step.verdict {
			t.Errorf("commit %d at %v s: %s, want %s", step.commit, step.at, got.Verdict, step.verdict)
		}
	}
}

func TestWaitingOnARetryTopicIsNotStanding(t *testing.T) {
	const topic = "orders.inventory.retry.1m"
	b := newBroker(t, topic)
	b.write(topic, 0, 0)
	b.commit("inventory.retry", topic, 0, 0)
	k := newKafkaSource(b.client)
	for s := 1; s <= 75; s++ {
		got := look(t, k, float64(s)).find(t, "inventory.retry", topic, 0)
		want := OK
		switch {
		case s >= 71:
			want = Stopped // watched for a minute and ten seconds
		case s >= 62:
			want = Lagging
		}
		if got.Verdict != want {
			t.Fatalf("after %d s: %s, want %s", s, got.Verdict, want)
		}
	}
}

func TestGroupsAtDifferentOffsetsOfOnePartitionHaveTheirOwnAges(t *testing.T) {
	b := newBroker(t, "orders")
	b.write("orders", 0, 0, 10, 20)
	for i, group := range []string{"inventory", "orderviews", "learner"} {
		b.commit(group, "orders", 0, int64(i))
	}
	s := look(t, newKafkaSource(b.client), 30)
	for i, group := range []string{"inventory", "orderviews", "learner"} {
		if got, want := *s.find(t, group, "orders", 0).Seconds, float64(30-10*i); got != want {
			t.Errorf("%s: %v s, want %v", group, got, want)
		}
	}
	if s.groups[2].Name != "learner" || s.groups[2].Known {
		t.Errorf("groups %v: the pipeline's own come first", s.groups)
	}
}

func TestGroupThatNeverCommittedIsBehindByTheWholeTopic(t *testing.T) {
	b := newBroker(t, "orders")
	b.write("orders", 0, 0, 1)
	b.write("orders", 1, 5)
	b.commit("inventory", "orders", 0, 2)
	got := look(t, newKafkaSource(b.client), 10).find(t, "inventory", "orders", 1)
	if got.Committed != nil || *got.Messages != 1 || *got.Seconds != 5 {
		t.Errorf("partition 1: %+v, want no commit, one record, five seconds", got)
	}
}

func TestRatesAreOffsetsPerSecond(t *testing.T) {
	b := newBroker(t, "orders")
	b.write("orders", 0, 0)
	b.commit("inventory", "orders", 0, 0)
	k := newKafkaSource(b.client)
	if got := look(t, k, 1).topics[0].RatePerSecond; got != nil {
		t.Errorf("rate after one look is %v, want unknown", *got)
	}
	b.write("orders", 0, 1, 1, 2)
	b.write("orders", 1, 2)
	b.commit("inventory", "orders", 0, 2)
	s := look(t, k, 3)
	if got := *s.topics[0].RatePerSecond; got != 2 {
		t.Errorf("topic's rate is %v, want 4 records in 2 s", got)
	}
	if got := *s.groups[0].Topics[0].RatePerSecond; got != 1 {
		t.Errorf("group's rate is %v, want 2 records in 2 s", got)
	}
}

// A member that joined and commits nothing owns what it does not read, in either of Kafka's two group
// protocols: the classic one and that of KIP-848.
func TestOwnedPartitionThatStandsIsStalled(t *testing.T) {
	for protocol, option := range map[string]kgo.Opt{"classic": kgo.Balancers(kgo.RangeBalancer()), "KIP-848": kgo.ServerSideBalancer()} {
		t.Run(protocol, func(t *testing.T) {
			b := newBroker(t, "orders")
			b.write("orders", 0, 0, 1)
			member, err := kgo.NewClient(kgo.SeedBrokers(b.address...), kgo.ConsumerGroup("inventory"), kgo.ConsumeTopics("orders"),
				kgo.DisableAutoCommit(), kgo.ClientID("sleeper"), option)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(member.Close)
			poll, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if fetches := member.PollFetches(poll); fetches.NumRecords() == 0 {
				t.Fatalf("the member got nothing: %v", fetches.Err())
			}
			k := newKafkaSource(b.client)
			look(t, k, 2)
			look(t, k, 7)
			s := look(t, k, 12)
			got := s.find(t, "inventory", "orders", 0)
			if got.Verdict != Stalled || got.Member != "sleeper" || s.groups[0].Members != 1 {
				t.Errorf("after ten seconds: %s owned by %q in %+v, want STALLED owned by sleeper", got.Verdict, got.Member, s.groups[0])
			}
		})
	}
}

func TestTopicNamesAreRead(t *testing.T) {
	for name, want := range map[string]topicName{
		"orders":                      {kind: kindEvent},
		"orders.inventory.retry.10s":  {kindRetry, "orders", "inventory", 10 * time.Second},
		"identity.billing.dlq":        {kindDLQ, "identity", "billing", 0},
		"orders.my.own.group.dlq":     {kindDLQ, "orders", "my.own.group", 0},
		"a.b.reader.retry.1m":         {kindRetry, "a.b", "reader", time.Minute},
		"orders.inventory.retry.soon": {kind: kindOther},
		".dlq":                        {kind: kindOther},
		"letters":                     {kind: kindOther},
	} {
		if got := parseTopic(name); got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}
