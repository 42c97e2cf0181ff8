package challenge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/lab/history"
)

// The names below are the contract between the services, see schemas/topology.go. They are written out
// because a judge that asks the judged for the names would follow it into a mistake.
const topic = "identity"

var consumers = []string{"billing", "analytics"}

func deadLetterTopic(service string) string { return topic + "." + service + ".dlq" }

// broker is the challenge's own way to Kafka: it reads the topic as it grows, sends records again, and
// asks how far a consumer group has come.
type broker struct {
	client *kgo.Client
	admin  *kadm.Client
	run    string // the prefix of this run's users: others are none of its business

	mu      sync.Mutex
	records []*kgo.Record
	seen    map[string]int  // records of each user and version
	next    map[int32]int64 // how far the topic was read
	err     error           // of the last fetch
	options []kgo.Opt       // of every client
}

func openBroker(ctx context.Context, seeds []string, run string, options ...kgo.Opt) (*broker, error) {
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(seeds...), kgo.RecordPartitioner(kgo.ManualPartitioner())}, options...)...)
	if err != nil {
		return nil, fmt.Errorf("reading the broker addresses: %w", err)
	}
	b := &broker{client: client, admin: kadm.NewClient(client), run: run, seen: map[string]int{}, next: map[int32]int64{}, options: options}
	// From the end, on a cluster that has a past; on a new topic that is the start.
	ends, err := b.admin.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		client.Close()
		return nil, fmt.Errorf("finding the end of topic %s: %w", topic, err)
	}
	from := map[int32]kgo.Offset{}
	ends.Each(func(o kadm.ListedOffset) {
		from[o.Partition], b.next[o.Partition] = kgo.NewOffset().At(o.Offset), o.Offset
	})
	client.AddConsumePartitions(map[string]map[int32]kgo.Offset{topic: from})
	return b, nil
}

// read collects the topic's records until ctx ends.
func (b *broker) read(ctx context.Context) {
	for {
		fetches := b.client.PollFetches(ctx)
		if ctx.Err() != nil || fetches.IsClientClosed() {
			return
		}
		b.mu.Lock()
		b.err = nil
		fetches.EachRecord(func(r *kgo.Record) {
			b.next[r.Partition] = r.Offset + 1
			if !strings.HasPrefix(string(r.Key), b.run) {
				return
			}
			b.records = append(b.records, r)
			b.seen[fmt.Sprintf("%s/%s", r.Key, header(r, "aggregate_version"))]++
		})
		// Errors of a fetch are tried again by the client; what stays unread shows as missing records.
		fetches.EachError(func(_ string, _ int32, err error) { b.err = err })
		b.mu.Unlock()
	}
}

func (b *broker) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.records)
}

// failure says why the topic could not be read to its end, nil when it was.
func (b *broker) failure(ends map[int32]int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for partition, end := range ends {
		if b.next[partition] < end {
			return errors.Join(fmt.Errorf("partition %d was read to offset %d of %d", partition, b.next[partition], end), b.err)
		}
	}
	return nil
}

// missing counts the writes that have no record on the topic yet.
func (b *broker) missing(writes []history.Write) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, w := range writes {
		if w.Outcome == history.OK && b.seen[fmt.Sprintf("%s/%d", w.UserID, w.Version)] == 0 {
			n++
		}
	}
	return n
}

// resend puts a share of the records that are on the topic there once more: the same partition, key,
// value and headers, as an upstream does that never saw its acknowledgement.
func (b *broker) resend(ctx context.Context, rng *rand.Rand, share float64) (int, error) {
	b.mu.Lock()
	var again []*kgo.Record
	for _, r := range b.records {
		if rng.Float64() < share {
			again = append(again, &kgo.Record{Topic: topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Headers: r.Headers, Timestamp: r.Timestamp})
		}
	}
	b.mu.Unlock()
	if err := b.client.ProduceSync(ctx, again...).FirstErr(); err != nil {
		return 0, fmt.Errorf("sending records again: %w", err)
	}
	return len(again), nil
}

// positions is what a group has committed and where the log ends, by partition.
type positions struct{ committed, ends map[int32]int64 }

func (b *broker) positions(ctx context.Context, group string) (positions, error) {
	ends, err := b.admin.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return positions{}, fmt.Errorf("asking for the end of topic %s: %w", topic, err)
	}
	commits, err := b.admin.FetchOffsetsForTopics(ctx, group, topic)
	if err != nil && !errors.Is(err, kerr.GroupIDNotFound) { // a group that doesn't exist has read nothing
		return positions{}, fmt.Errorf("asking how far group %s has come: %w", group, err)
	}
	p := positions{map[int32]int64{}, map[int32]int64{}}
	ends.Each(func(o kadm.ListedOffset) { p.ends[o.Partition] = o.Offset })
	commits.Each(func(o kadm.OffsetResponse) { p.committed[o.Partition] = max(0, o.At) })
	return p, nil
}

// behind is how many records the group had left up to ends.
func (p positions) behind(ends map[int32]int64) int64 {
	var left int64
	for partition, end := range ends {
		left += max(0, end-p.committed[partition])
	}
	return left
}

// history returns what was read of the topic.
func (b *broker) history() []history.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	records := make([]history.Record, 0, len(b.records))
	for _, r := range b.records {
		version, _ := strconv.ParseInt(header(r, "aggregate_version"), 10, 64)
		committed, _ := time.Parse(time.RFC3339Nano, header(r, "committed_at"))
		records = append(records, history.Record{EventID: header(r, "event_id"), UserID: string(r.Key), Version: version,
			Partition: r.Partition, Offset: r.Offset, CommittedAt: committed, At: r.Timestamp})
	}
	return records
}

// deadLetters reads a service's dead letters of this run's users to the end of their topic.
func (b *broker) deadLetters(ctx context.Context, seeds []string, service string) ([]history.DeadLetter, error) {
	name := deadLetterTopic(service)
	starts, err := b.admin.ListStartOffsets(ctx, name)
	if err == nil {
		err = starts.Error()
	}
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return nil, nil // nobody ever made the topic: there are none
	}
	if err != nil {
		return nil, fmt.Errorf("finding the start of topic %s: %w", name, err)
	}
	ends, err := b.admin.ListEndOffsets(ctx, name)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("finding the end of topic %s: %w", name, err)
	}
	from := map[int32]kgo.Offset{}
	left := map[int32]int64{} // the end of each partition that has something
	starts.Each(func(o kadm.ListedOffset) {
		end, _ := ends.Lookup(name, o.Partition)
		if o.Offset < end.Offset {
			from[o.Partition], left[o.Partition] = kgo.NewOffset().At(o.Offset), end.Offset
		}
	})
	if len(left) == 0 {
		return nil, nil
	}
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(seeds...), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{name: from})}, b.options...)...)
	if err != nil {
		return nil, fmt.Errorf("reading topic %s: %w", name, err)
	}
	defer client.Close()
	var letters []history.DeadLetter
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("reading topic %s: %w", name, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if strings.HasPrefix(string(r.Key), b.run) {
				letters = append(letters, history.DeadLetter{Service: service, EventID: header(r, "event_id"), UserID: string(r.Key),
					Error: header(r, "error"), Partition: r.Partition, Offset: r.Offset, At: r.Timestamp})
			}
			if end, ok := left[r.Partition]; ok && r.Offset+1 >= end {
				delete(left, r.Partition)
			}
		})
	}
	return letters, nil
}

func header(r *kgo.Record, key string) string {
	for i := len(r.Headers) - 1; i >= 0; i-- {
		if r.Headers[i].Key == key {
			return string(r.Headers[i].Value)
		}
	}
	return ""
}
