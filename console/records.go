package console

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// fetcher reads single records by plain fetch requests: no consumer, no group, nothing read ahead. It is
// safe for concurrent use.
type fetcher struct {
	client *kgo.Client
	admin  *kadm.Client

	mu      sync.Mutex
	leaders map[string]map[int32]int32
	askedAt time.Time
}

func newFetcher(client *kgo.Client) *fetcher {
	return &fetcher{client: client, admin: kadm.NewClient(client)}
}

// clientVersions keeps fetch requests at the last version that names topics by name (KIP-516 went on to
// ids).
func clientVersions() *kversion.Versions {
	v := kversion.Stable()
	v.SetMaxKeyVersion(int16(kmsg.Fetch), 12)
	return v
}

const (
	// fetchBytes is asked of each partition when several are asked together.
	fetchBytes = 16 << 10
	// leadersFor is how long leaders are believed; an error asks again at once.
	leadersFor = 30 * time.Second
)

// first returns the first record at or after each position. Positions that could not be read are absent.
func (f *fetcher) first(ctx context.Context, keys []recordKey) map[recordKey]*kgo.Record {
	found := map[recordKey]*kgo.Record{}
	if len(keys) == 0 {
		return found
	}
	take := func(key recordKey, records []*kgo.Record) {
		if len(records) > 0 {
			found[key] = records[0]
		}
	}
	byLeader, err := f.byLeader(ctx, keys)
	if err != nil {
		return found
	}
	for leader, keys := range byLeader {
		f.ask(ctx, leader, fetchBytes, keys, take)
		// A broker sends a batch above the limit only for the first partition of a request.
		for _, key := range keys {
			if _, ok := found[key]; !ok && ctx.Err() == nil {
				f.ask(ctx, leader, fetchBytes, []recordKey{key}, take)
			}
		}
	}
	return found
}

// ask sends one fetch request to one broker.
func (f *fetcher) ask(ctx context.Context, leader, bytes int32, keys []recordKey, take func(recordKey, []*kgo.Record)) {
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes = 100, 1, 4<<20
	byTopic := map[string][]recordKey{}
	for _, key := range keys {
		byTopic[key.topic] = append(byTopic[key.topic], key)
	}
	asked := map[partitionKey]recordKey{}
	for topic, keys := range byTopic {
		t := kmsg.NewFetchRequestTopic()
		t.Topic = topic
		for _, key := range keys {
			// Several groups may stand at different offsets of one partition, and a request names a
			// partition once.
			id := partitionKey{"", key.topic, key.partition}
			if _, twice := asked[id]; twice {
				continue
			}
			asked[id] = key
			p := kmsg.NewFetchRequestTopicPartition()
			p.Partition, p.FetchOffset, p.PartitionMaxBytes, p.CurrentLeaderEpoch = key.partition, key.offset, bytes, -1
			t.Partitions = append(t.Partitions, p)
		}
		req.Topics = append(req.Topics, t)
	}
	answer, err := f.client.Broker(int(leader)).RetriableRequest(ctx, req)
	if err != nil {
		f.forgetLeaders()
		return
	}
	for _, t := range answer.(*kmsg.FetchResponse).Topics {
		for _, p := range t.Partitions {
			key, ok := asked[partitionKey{"", t.Topic, p.Partition}]
			if !ok {
				continue
			}
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				if kerr.IsRetriable(err) {
					f.forgetLeaders()
				}
				continue
			}
			fetched, _ := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
				Offset: key.offset, Topic: t.Topic, Partition: p.Partition,
			}, &p, kgo.DefaultDecompressor(), nil)
			take(key, fetched.Records)
		}
	}
}

func (f *fetcher) byLeader(ctx context.Context, keys []recordKey) (map[int32][]recordKey, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	by := map[int32][]recordKey{}
	for range 2 {
		clear(by)
		complete := true
		for _, key := range keys {
			if leader, ok := f.leaders[key.topic][key.partition]; ok {
				by[leader] = append(by[leader], key)
			} else {
				complete = false
			}
		}
		if complete && time.Since(f.askedAt) < leadersFor {
			return by, nil
		}
		if err := f.askLeaders(ctx); err != nil {
			return nil, err
		}
	}
	return by, nil
}

// askLeaders is called with the mutex held: readers wait for the one answer.
func (f *fetcher) askLeaders(ctx context.Context) error {
	metadata, err := f.admin.Metadata(ctx)
	if err != nil {
		return fmt.Errorf("asking for partition leaders: %w", err)
	}
	f.leaders = map[string]map[int32]int32{}
	f.askedAt = time.Now()
	for name, topic := range metadata.Topics {
		f.leaders[name] = map[int32]int32{}
		for id, p := range topic.Partitions {
			if p.Err == nil && p.Leader >= 0 {
				f.leaders[name][id] = p.Leader
			}
		}
	}
	return nil
}

func (f *fetcher) forgetLeaders() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leaders = nil
}

// errNoTopic says that the topic does not exist.
var errNoTopic = errors.New("no such topic")

// recent returns the youngest records of a topic, the youngest first, at most limit.
func (f *fetcher) recent(ctx context.Context, topic string, limit int) ([]*kgo.Record, error) {
	starts, err := f.admin.ListStartOffsets(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("listing start offsets: %w", err)
	}
	ends, err := f.admin.ListEndOffsets(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("listing end offsets: %w", err)
	}
	if errors.Is(ends.Error(), kerr.UnknownTopicOrPartition) {
		return nil, fmt.Errorf("reading %s: %w", topic, errNoTopic)
	}
	if err := errors.Join(starts.Error(), ends.Error()); err != nil {
		return nil, fmt.Errorf("reading the offsets of %s: %w", topic, err)
	}
	var records []*kgo.Record
	for p, end := range ends[topic] {
		start, _ := starts.Lookup(topic, p)
		// The fetch returns whole batches from the position on, until the bytes run out or the end.
		for at := max(start.Offset, end.Offset-int64(limit)); at < end.Offset && ctx.Err() == nil; {
			got, err := f.from(ctx, recordKey{topic, p, at})
			if err != nil {
				return nil, err
			}
			if len(got) == 0 {
				break
			}
			records = append(records, got...)
			at = got[len(got)-1].Offset + 1
		}
	}
	slices.SortFunc(records, func(a, b *kgo.Record) int {
		return cmp.Or(b.Timestamp.Compare(a.Timestamp), cmp.Compare(a.Partition, b.Partition), cmp.Compare(b.Offset, a.Offset))
	})
	return records[:min(len(records), limit)], nil
}

func (f *fetcher) from(ctx context.Context, key recordKey) ([]*kgo.Record, error) {
	byLeader, err := f.byLeader(ctx, []recordKey{key})
	if err != nil {
		return nil, err
	}
	var records []*kgo.Record
	for leader, keys := range byLeader {
		f.ask(ctx, leader, 256<<10, keys, func(_ recordKey, got []*kgo.Record) { records = got })
	}
	return records, nil
}
