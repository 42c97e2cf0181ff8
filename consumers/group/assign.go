package group

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// adjust decides where the partitions just assigned are read from: event topics from the database's
// offset, which wins over Kafka's, retry topics from Kafka's, or the start. It tries until it knows or
// the session ends.
func (g *Group) adjust(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	var outage backoff
	for {
		adjusted, err := g.decideOffsets(ctx, offsets)
		if err == nil {
			return adjusted, nil
		}
		if errors.Is(err, ErrOffsetBeyondEnd) {
			g.stop(err)
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		g.notReady("cannot find out where to read from: " + err.Error())
		if outage.begins() {
			g.cfg.Logger.Warn("consumer waits: its offsets cannot be read", "group", g.cfg.Name, "error", err)
		}
		outage.wait(ctx)
	}
}

func (g *Group) decideOffsets(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	var topics []string
	for topic := range offsets {
		topics = append(topics, topic)
	}
	if len(topics) == 0 {
		return offsets, nil
	}
	starts, ends, err := logs(ctx, kadm.NewClient(g.client), topics)
	if err != nil {
		return nil, err
	}
	// Before the first batch: a row that goes to the default partition while its day's is made is refused.
	g.makeDays(ctx)
	var events []partition
	for topic, ids := range offsets {
		for id := range ids {
			if !g.wakes[topic] {
				events = append(events, partition{topic, id})
			}
		}
	}
	stored, err := g.store.readStored(ctx, events)
	if err != nil {
		return nil, err
	}
	adjusted := map[string]map[int32]kgo.Offset{}
	for topic, ids := range offsets {
		adjusted[topic] = map[int32]kgo.Offset{}
		for id, committed := range ids {
			start, _ := starts.Lookup(topic, id)
			end, _ := ends.Lookup(topic, id)
			at := committed.EpochOffset().Offset
			if !g.wakes[topic] {
				if at = stored[partition{topic, id}]; at > end.Offset {
					return nil, g.beyondEnd(partition{topic, id}, at, end.Offset)
				}
				if at > 0 && at < start.Offset {
					g.cfg.Logger.Error("records are gone from the topic before they were read: its retention is too short", "group", g.cfg.Name,
						"topic", topic, "partition", id, "stored", at, "start", start.Offset)
				}
			} else if at > end.Offset {
				at = start.Offset // wake-ups that are stale say so by their token
			}
			adjusted[topic][id] = kgo.NewOffset().At(max(at, start.Offset))
		}
	}
	g.own(stored, offsets)
	return adjusted, nil
}

func (g *Group) beyondEnd(p partition, stored, end int64) error {
	return fmt.Errorf("group %s, topic %s, partition %d, stored %d, end %d: %w: was the topic made anew? converge group reset says where reading is to go on",
		g.cfg.Name, p.topic, p.id, stored, end, ErrOffsetBeyondEnd)
}

// stop makes Run return err.
func (g *Group) stop(err error) {
	g.notReady("stopped: " + err.Error())
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fatal = err
}

// checkEnd is for records from below the stored offset. Somebody else may have moved it on, which is
// harmless. Otherwise the log has shrunk, or is another one, and what it takes on next would be passed
// over as done.
func (g *Group) checkEnd(ctx context.Context, p partition, stored int64) error {
	ends, err := kadm.NewClient(g.client).ListEndOffsets(ctx, p.topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("listing where the log of %s ends: %w", p.topic, err)
	}
	if end, ok := ends.Lookup(p.topic, p.id); ok && stored > end.Offset {
		err := g.beyondEnd(p, stored, end.Offset)
		g.stop(err)
		return err
	}
	return nil
}

// own takes the positions of partitions just assigned, and corrects Kafka's: the owner before may have got
// further than it could tell. The group is ready again.
func (g *Group) own(stored map[partition]int64, committed map[string]map[int32]kgo.Offset) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for p, offset := range stored {
		g.owned[p] = position{stored: offset}
		if offset > 0 && offset != committed[p.topic][p.id].EpochOffset().Offset {
			g.hints[p] = offset
		}
	}
	g.reason.Store(nil)
}

const storedSQL = `
WITH asked AS (
    SELECT topic, partition
    FROM unnest($2::text[], $3::int[]) AS u (topic, partition)),
made AS (
    INSERT INTO consumer_offsets (consumer, topic, partition, next_offset)
    SELECT $1, topic, partition, 0
    FROM asked
    ORDER BY topic, partition
    ON CONFLICT DO NOTHING)
SELECT a.topic, a.partition, coalesce(o.next_offset, 0)
FROM asked a
LEFT JOIN consumer_offsets o ON (o.consumer, o.topic, o.partition) = ($1, a.topic, a.partition)`

// It waits for a batch that is open on one of them: the INSERT meets the row that the batch has updated.
func (t tables) readStored(ctx context.Context, partitions []partition) (map[partition]int64, error) {
	stored := make(map[partition]int64, len(partitions))
	if len(partitions) == 0 {
		return stored, nil
	}
	topics, ids := make([]string, len(partitions)), make([]int32, len(partitions))
	for i, p := range partitions {
		topics[i], ids[i] = p.topic, p.id
	}
	rows, err := t.pool.Query(ctx, storedSQL, t.Consumer, topics, ids)
	if err != nil {
		return nil, fmt.Errorf("reading stored offsets: %w", err)
	}
	var p partition
	var offset int64
	if _, err := pgx.ForEachRow(rows, []any{&p.topic, &p.id, &offset}, func() error { stored[p] = offset; return nil }); err != nil {
		return nil, fmt.Errorf("reading stored offsets: %w", err)
	}
	return stored, nil
}

const movedBackSQL = `
SELECT o.topic, o.partition, o.next_offset
FROM consumer_offsets o
JOIN unnest($2::text[], $3::int[], $4::bigint[]) AS known (topic, partition, stored)
    ON (o.topic, o.partition) = (known.topic, known.partition)
WHERE o.consumer = $1 AND o.next_offset < known.stored`

// lookBack notes the partitions whose stored offset somebody has moved back, for the next poll: while nothing
// arrives, no fence tells.
func (g *Group) lookBack(ctx context.Context) error {
	known := map[partition]int64{}
	g.mu.Lock()
	for p, at := range g.owned {
		known[p] = at.stored
	}
	g.mu.Unlock()
	back, err := g.store.movedBack(ctx, known)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.back = back
	return nil
}

func (t tables) movedBack(ctx context.Context, known map[partition]int64) (map[partition]int64, error) {
	var topics []string
	var ids []int32
	var stored []int64
	for p, at := range known {
		topics, ids, stored = append(topics, p.topic), append(ids, p.id), append(stored, at)
	}
	rows, err := t.pool.Query(ctx, movedBackSQL, t.Consumer, topics, ids, stored)
	if err != nil {
		return nil, fmt.Errorf("reading stored offsets: %w", err)
	}
	back := map[partition]int64{}
	var p partition
	var at int64
	if _, err := pgx.ForEachRow(rows, []any{&p.topic, &p.id, &at}, func() error { back[p] = at; return nil }); err != nil {
		return nil, fmt.Errorf("reading stored offsets: %w", err)
	}
	return back, nil
}

// goBack reads on from where partitions were moved back to.
func (g *Group) goBack() {
	to := map[string]map[int32]kgo.EpochOffset{}
	g.mu.Lock()
	for p, at := range g.back {
		if owned, ok := g.owned[p]; !ok || owned.stored <= at {
			continue
		}
		g.owned[p] = position{stored: at}
		g.hints[p] = at
		if to[p.topic] == nil {
			to[p.topic] = map[int32]kgo.EpochOffset{}
		}
		to[p.topic][p.id] = kgo.EpochOffset{Epoch: -1, Offset: at}
		g.cfg.Logger.Info("partition was moved back", "group", g.cfg.Name, "topic", p.topic, "partition", p.id, "offset", at)
	}
	g.back = nil
	g.mu.Unlock()
	if len(to) > 0 {
		g.client.SetOffsets(to)
	}
}

// commit tells Kafka the offsets and waits for its answer.
func commit(ctx context.Context, client *kgo.Client, offsets map[string]map[int32]kgo.EpochOffset) error {
	var failed error
	client.CommitOffsetsSync(ctx, offsets, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, _ *kmsg.OffsetCommitResponse, err error) {
		failed = err
	})
	return failed
}
