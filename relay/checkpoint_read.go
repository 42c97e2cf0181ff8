package relay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// checkpointSettings keep the topic small, and reading it fast: a broker compacts only what is no longer
// written to, and a checkpoint comes every second.
var checkpointSettings = map[string]*string{
	"cleanup.policy": kadm.StringPtr("compact"),
	"segment.ms":     kadm.StringPtr("3600000"),
}

func (k *kafka) createCompacted(ctx context.Context, name string) error {
	return k.createTopicOf(ctx, name, 1, checkpointSettings)
}

// missing reports whether err says that a topic is not there and may not be made.
func (k *kafka) missing(err error) bool {
	return !k.create && errors.Is(err, kerr.UnknownTopicOrPartition)
}

// tail is how many records from the end are looked at first. The latest checkpoint is the last record, but
// for what a transaction leaves behind it and what a relay that lost its slot had on its way.
const tail = 100

// readCheckpoint returns the latest checkpoint among committed records. It asks with a client of its own,
// which is gone when it returns.
func readCheckpoint(ctx context.Context, cfg *Config, topic string) (last checkpoint, exists bool, err error) {
	client, err := kgo.NewClient(append(append([]kgo.Opt{kgo.DialTimeout(connectTimeout)}, cfg.KafkaOptions...),
		kgo.ClientID("converge-relay"), kgo.SeedBrokers(cfg.Brokers...), kgo.DisableClientMetrics())...)
	if err != nil {
		return last, false, fmt.Errorf("making a Kafka client: %w", err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	starts, err := admin.ListStartOffsets(ctx, topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return last, false, fmt.Errorf("reading topic %s: %w", topic, err)
	}
	ends, err := admin.ListCommittedOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return last, false, fmt.Errorf("reading topic %s: %w", topic, err)
	}
	for _, reach := range []int64{tail, 1 << 62} {
		from, to := make(map[int32]int64), make(map[int32]int64)
		whole := true
		starts.Each(func(o kadm.ListedOffset) {
			end, _ := ends.Lookup(topic, o.Partition)
			if end.Offset > o.Offset {
				from[o.Partition], to[o.Partition] = max(o.Offset, end.Offset-reach), end.Offset
				whole = whole && from[o.Partition] == o.Offset
			}
		})
		if last, exists, err = readBetween(ctx, cfg, topic, from, to); err != nil || exists || whole {
			return last, exists, err
		}
	}
	return last, exists, nil
}

// readBetween returns the latest of the checkpoints at the offsets of each partition from from to to.
func readBetween(ctx context.Context, cfg *Config, topic string, from, to map[int32]int64) (last checkpoint, exists bool, err error) {
	if len(from) == 0 {
		return last, false, nil
	}
	at := make(map[int32]kgo.Offset)
	for partition, offset := range from {
		at[partition] = kgo.NewOffset().At(offset)
	}
	client, err := kgo.NewClient(append(append([]kgo.Opt{kgo.DialTimeout(connectTimeout)}, cfg.KafkaOptions...),
		kgo.ClientID("converge-relay"), kgo.SeedBrokers(cfg.Brokers...), kgo.DisableClientMetrics(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: at}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// The last records may be a transaction's end, which says that nothing more comes.
		kgo.KeepControlRecords())...)
	if err != nil {
		return last, false, fmt.Errorf("making a Kafka client: %w", err)
	}
	defer client.Close()
	for len(to) > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return last, false, fmt.Errorf("reading topic %s: %w", topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset+1 >= to[r.Partition] {
				delete(to, r.Partition)
			}
			if r.Attrs.IsControl() || string(r.Key) != cfg.Slot {
				return
			}
			var found checkpoint
			if wrong := json.Unmarshal(r.Value, &found); wrong != nil {
				err = &fatalError{fmt.Errorf("topic %s, offset %d: %w: %w", topic, r.Offset, errNoCheckpoint, wrong),
					"find out who else writes there; a topic that is deleted begins anew, without the checks"}
				return
			}
			if !exists || found.follows(&last) {
				last, exists = found, true
			}
		})
		if err != nil {
			return last, false, err
		}
	}
	return last, exists, nil
}

// follows reports whether c, which stands behind before on the topic, is also the later one.
func (c *checkpoint) follows(before *checkpoint) bool {
	if c.Session != before.Session {
		return c.Session > before.Session
	}
	return c.Confirmed >= before.Confirmed
}
