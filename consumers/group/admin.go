package group

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Position is where a consumer group is in one partition. Offsets are those of the record to read next.
type Position struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Stored    int64  `json:"stored"`    // in the database, which decides; -1: the group has not been there
	Committed int64  `json:"committed"` // in Kafka, a hint; -1: none
	Start     int64  `json:"start"`     // of the log
	End       int64  `json:"end"`       // of the log
	Lag       int64  `json:"lag"`       // records between Stored, or Start, and End
	Held      int64  `json:"held"`      // events of the partition that wait behind a held key
	Member    string `json:"member"`    // client id and host of who reads it; "" for nobody
}

const positionsSQL = `
SELECT topic, partition, next_offset, 0
FROM consumer_offsets
WHERE consumer = $1
UNION ALL
SELECT topic, partition, -1, count(*)
FROM held_events
WHERE consumer = $1
GROUP BY topic, partition`

// Positions returns where the group is in every partition of the topics, in order.
func Positions(ctx context.Context, pool *pgxpool.Pool, client *kgo.Client, name string, topics ...string) ([]Position, error) {
	admin := kadm.NewClient(client)
	starts, ends, err := logs(ctx, admin, topics)
	if err != nil {
		return nil, err
	}
	lags, err := admin.Lag(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("asking Kafka about group %s: %w", name, err)
	}
	lag := lags[name]
	found := map[partition]*Position{}
	ends.Each(func(end kadm.ListedOffset) {
		start, _ := starts.Lookup(end.Topic, end.Partition)
		p := &Position{Topic: end.Topic, Partition: end.Partition, Stored: -1, Committed: -1, Start: start.Offset, End: end.Offset}
		if member, ok := lag.Lag.Lookup(end.Topic, end.Partition); ok {
			p.Committed = member.Commit.At
			if member.Member != nil {
				p.Member = member.Member.ClientID + member.Member.ClientHost
			}
		}
		found[partition{end.Topic, end.Partition}] = p
	})
	rows, err := pool.Query(ctx, positionsSQL, name)
	if err != nil {
		return nil, fmt.Errorf("reading stored offsets: %w", err)
	}
	var at partition
	var stored, held int64
	if _, err := pgx.ForEachRow(rows, []any{&at.topic, &at.id, &stored, &held}, func() error {
		if p := found[at]; p != nil {
			p.Stored, p.Held = max(p.Stored, stored), p.Held+held
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("reading stored offsets: %w", err)
	}
	positions := make([]Position, 0, len(found))
	for _, p := range found {
		p.Lag = max(0, p.End-max(p.Stored, p.Start))
		positions = append(positions, *p)
	}
	slices.SortFunc(positions, func(a, b Position) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	return positions, nil
}

func logs(ctx context.Context, admin *kadm.Client, topics []string) (starts, ends kadm.ListedOffsets, err error) {
	if starts, err = admin.ListStartOffsets(ctx, topics...); err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("listing where the logs start: %w", err)
	}
	if ends, err = admin.ListEndOffsets(ctx, topics...); err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("listing where the logs end: %w", err)
	}
	return starts, ends, nil
}

// ErrNoSuchOffset means that a position cannot be set to an offset that the log does not have.
var ErrNoSuchOffset = errors.New("the log has no such offset")

const resetSQL = `
INSERT INTO consumer_offsets (consumer, topic, partition, next_offset)
SELECT $1, topic, partition, next_offset
FROM unnest($2::text[], $3::int[], $4::bigint[]) AS u (topic, partition, next_offset)
ORDER BY topic, partition
ON CONFLICT (consumer, topic, partition) DO UPDATE
SET next_offset = excluded.next_offset`

// Reset sets the positions of a group in the database, all or none, and tells Kafka; [ErrNoSuchOffset] when one
// is outside its log. The group may be at work: a batch under way is rolled back, and its members go on from
// the new positions within seconds. Events that were taken on before are duplicates and change nothing when
// they are read again; those that are passed over are never read.
func Reset(ctx context.Context, pool *pgxpool.Pool, client *kgo.Client, name string, to map[string]map[int32]int64) error {
	admin := kadm.NewClient(client)
	starts, ends, err := logs(ctx, admin, slices.Collect(maps.Keys(to)))
	if err != nil {
		return err
	}
	var topics []string
	var ids []int32
	var offsets []int64
	var commits kadm.Offsets
	for topic, partitions := range to {
		for id, at := range partitions {
			start, _ := starts.Lookup(topic, id)
			end, ok := ends.Lookup(topic, id)
			if !ok || at < start.Offset || at > end.Offset {
				return fmt.Errorf("setting %s/%d to %d, where the log is %d to %d: %w", topic, id, at, start.Offset, end.Offset, ErrNoSuchOffset)
			}
			topics, ids, offsets = append(topics, topic), append(ids, id), append(offsets, at)
			commits.AddOffset(topic, id, at, -1)
		}
	}
	if _, err := pool.Exec(ctx, resetSQL, name, topics, ids, offsets); err != nil {
		return fmt.Errorf("setting stored offsets: %w", err)
	}
	described, err := admin.DescribeGroups(ctx, name)
	if err != nil {
		return fmt.Errorf("the stored offsets are set; asking Kafka about group %s: %w", name, err)
	}
	if len(described[name].Members) > 0 {
		return nil // they tell it themselves, and nobody else may
	}
	if err := admin.CommitAllOffsets(ctx, name, commits); err != nil {
		return fmt.Errorf("the stored offsets are set; telling Kafka: %w", err)
	}
	return nil
}
