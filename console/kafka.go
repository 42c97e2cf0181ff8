package console

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/schemas"
)

// kafkaSource measures topics and groups. It belongs to one goroutine.
type kafkaSource struct {
	admin *kadm.Client
	fetch *fetcher

	progress map[partitionKey]*progress
	read     map[groupTopicKey]*meter
	written  map[string]*meter
	stamps   map[recordKey]time.Time // timestamps of the records at committed offsets
}

type partitionKey struct {
	group, topic string
	partition    int32
}

type groupTopicKey struct{ group, topic string }

type recordKey struct {
	topic     string
	partition int32
	offset    int64
}

// kafkaSample is one look at Kafka. It is not changed after it was made.
type kafkaSample struct {
	at     time.Time
	topics []Topic
	groups []Group
}

func newKafkaSource(client *kgo.Client) *kafkaSource {
	return &kafkaSource{
		admin: kadm.NewClient(client), fetch: newFetcher(client),
		progress: map[partitionKey]*progress{}, read: map[groupTopicKey]*meter{},
		written: map[string]*meter{}, stamps: map[recordKey]time.Time{},
	}
}

// sample looks once. The order matters: commits are read before end offsets, so that a group that reads
// meanwhile looks a little behind rather than ahead of the end.
func (k *kafkaSource) sample(ctx context.Context, now func() time.Time) (*kafkaSample, error) {
	groups, err := viewGroups(ctx, k.admin)
	if err != nil {
		return nil, err
	}
	starts, err := k.admin.ListStartOffsets(ctx)
	if err := whole(err); err != nil {
		return nil, fmt.Errorf("listing start offsets: %w", err)
	}
	ends, err := k.admin.ListEndOffsets(ctx)
	if err := whole(err); err != nil {
		return nil, fmt.Errorf("listing end offsets: %w", err)
	}

	lags := make(map[string]kadm.GroupLag, len(groups))
	for _, g := range groups {
		if g.err == nil {
			lags[g.name] = g.lag(starts, ends)
		}
	}
	stamps := k.stampsAt(ctx, lags)
	s := &kafkaSample{at: now()}
	s.topics = k.topics(s.at, starts, ends)
	for _, g := range groups {
		s.groups = append(s.groups, k.group(s.at, g, lags[g.name], stamps))
	}
	k.forget(lags, ends)
	return s, nil
}

// whole passes over errors of single brokers: what the others said is worth showing.
func whole(err error) error {
	var shards *kadm.ShardErrors
	if errors.As(err, &shards) && !shards.AllFailed {
		return nil
	}
	return err
}

func (k *kafkaSource) topics(at time.Time, starts, ends kadm.ListedOffsets) []Topic {
	var topics []Topic
	for name, partitions := range ends {
		if strings.HasPrefix(name, "__") {
			continue
		}
		parsed := parseTopic(name)
		t := Topic{Name: name, Kind: parsed.kind, Of: parsed.of, Group: parsed.group, DelaySeconds: parsed.delay.Seconds()}
		var written int64
		complete := true
		for p, end := range partitions {
			start, ok := starts.Lookup(name, p)
			if end.Err != nil || !ok || start.Err != nil {
				complete = false
				continue
			}
			t.Partitions++
			t.Records += max(0, end.Offset-start.Offset)
			written += end.Offset
		}
		if complete {
			m := entry(k.written, name)
			m.add(at, written)
			t.RatePerSecond = m.perSecond()
		}
		topics = append(topics, t)
	}
	slices.SortFunc(topics, func(a, b Topic) int { return strings.Compare(a.Name, b.Name) })
	return topics
}

func (k *kafkaSource) group(at time.Time, v groupView, lag kadm.GroupLag, stamps map[recordKey]time.Time) Group {
	g := Group{Name: v.name, State: v.state, Members: v.members, Known: slices.Contains(schemas.Readers(), v.name), Topics: []GroupTopic{}}
	if v.err != nil {
		g.Error = v.err.Error()
		return g
	}
	for topic, partitions := range lag {
		parsed := parseTopic(topic)
		t := GroupTopic{Topic: topic, Kind: parsed.kind, Verdict: Unknown}
		limits := limitsFor(parsed.delay)
		for _, l := range partitions {
			t.Partitions = append(t.Partitions, k.partition(at, v, l, limits, stamps))
		}
		slices.SortFunc(t.Partitions, func(a, b PartitionLag) int { return cmp.Compare(a.Partition, b.Partition) })
		t.sum()
		if position, ok := position(partitions); ok {
			m := entry(k.read, groupTopicKey{v.name, topic})
			m.add(at, position)
			t.RatePerSecond = m.perSecond()
		}
		g.Topics = append(g.Topics, t)
	}
	slices.SortFunc(g.Topics, func(a, b GroupTopic) int {
		return cmp.Or(cmp.Compare(kindOrder(a.Kind), kindOrder(b.Kind)), strings.Compare(a.Topic, b.Topic))
	})
	return g
}

func kindOrder(kind string) int {
	return slices.Index([]string{kindEvent, kindOther, kindRetry, kindDLQ}, kind)
}

func (k *kafkaSource) partition(at time.Time, v groupView, l kadm.GroupMemberLag, limits Limits, stamps map[recordKey]time.Time) PartitionLag {
	owner, owned := v.owner(l.Topic, l.Partition)
	p := PartitionLag{Partition: l.Partition, Member: owner}
	o := observation{at: at, committed: l.Commit.At, lag: -1, seconds: -1, owned: owned}
	if l.Commit.At >= 0 {
		p.Committed = new(l.Commit.At)
	}
	if l.Start.Err == nil {
		p.Start = new(l.Start.Offset)
	}
	if l.End.Err == nil {
		p.End = new(l.End.Offset)
	}
	if l.Err == nil && l.Lag >= 0 {
		o.lag = l.Lag
		p.Messages = new(l.Lag)
		if l.Lag == 0 {
			o.seconds = 0
		} else if stamp, ok := stamps[nextRecord(l)]; ok {
			o.seconds = max(0, at.Sub(stamp).Seconds())
		}
	}
	if o.seconds >= 0 {
		p.Seconds = new(o.seconds)
	}
	watched := entry(k.progress, partitionKey{v.name, l.Topic, l.Partition})
	watched.observe(o, limits)
	p.Verdict = watched.verdict(limits)
	return p
}

// nextRecord is the first record that the group has not read: at its commit, or at the log's start when
// there is no commit or retention has overtaken it.
func nextRecord(l kadm.GroupMemberLag) recordKey {
	offset := l.Commit.At
	if l.Start.Err == nil {
		offset = max(offset, l.Start.Offset)
	}
	return recordKey{l.Topic, l.Partition, max(offset, 0)}
}

// stampsAt returns the timestamps of the records at the lagging commits. A commit that stands still costs
// no fetch; a record that could not be had is absent.
func (k *kafkaSource) stampsAt(ctx context.Context, lags map[string]kadm.GroupLag) map[recordKey]time.Time {
	wanted := map[recordKey]time.Time{}
	var missing []recordKey
	for _, lag := range lags {
		for _, partitions := range lag {
			for _, l := range partitions {
				key := nextRecord(l)
				if _, seen := wanted[key]; l.Err != nil || l.Lag <= 0 || seen {
					continue
				}
				stamp, known := k.stamps[key]
				wanted[key] = stamp
				if !known {
					missing = append(missing, key)
				}
			}
		}
	}
	for key, record := range k.fetch.first(ctx, missing) {
		wanted[key] = record.Timestamp
	}
	for key, stamp := range wanted {
		if stamp.IsZero() {
			delete(wanted, key)
		}
	}
	k.stamps = wanted
	return wanted
}

// forget drops what is remembered of groups and topics that are gone.
func (k *kafkaSource) forget(lags map[string]kadm.GroupLag, ends kadm.ListedOffsets) {
	for key := range k.progress {
		if _, ok := lags[key.group].Lookup(key.topic, key.partition); !ok {
			delete(k.progress, key)
		}
	}
	for key := range k.read {
		if _, ok := lags[key.group][key.topic]; !ok {
			delete(k.read, key)
		}
	}
	for topic := range k.written {
		if _, ok := ends[topic]; !ok {
			delete(k.written, topic)
		}
	}
}

// sum fills the topic's numbers from its partitions. One unknown partition makes a sum unknown, for a sum
// of the rest would look like less lag than there is; the worst age and verdict are of those known.
func (t *GroupTopic) sum() {
	messages := new(int64)
	for _, p := range t.Partitions {
		if p.Messages == nil {
			messages = nil
		} else if messages != nil {
			*messages += *p.Messages
		}
		if p.Seconds != nil && (t.Seconds == nil || *p.Seconds > *t.Seconds) {
			t.Seconds = p.Seconds
		}
		if p.Verdict.worse(t.Verdict) {
			t.Verdict = p.Verdict
		}
	}
	if len(t.Partitions) > 0 {
		t.Messages = messages
	}
}

// position is how far the group has come on a topic, over all partitions; not ok when something is
// unknown.
func position(partitions map[int32]kadm.GroupMemberLag) (int64, bool) {
	var sum int64
	for _, l := range partitions {
		if l.Err != nil {
			return 0, false
		}
		sum += max(0, l.Commit.At)
	}
	return sum, len(partitions) > 0
}

// entry returns the map's value for the key, made when it is missing.
func entry[K comparable, V any](m map[K]*V, key K) *V {
	v, ok := m[key]
	if !ok {
		v = new(V)
		m[key] = v
	}
	return v
}
