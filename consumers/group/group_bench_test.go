package group_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/event"
	"converge/consumers/inbox"
	"converge/consumers/retry"
)

const (
	benchEvents     = 40000
	benchNaive      = 4000 // the naive loop's share, so that it does not take all the time
	benchPartitions = 4
)

// One run, side by side: what a consumer makes of the same events with a set-based handler, with a handler
// per event, when all are duplicates, and as the loop that everybody writes first, a transaction per event.
// Every effect is one row. The numbers of one run compare; those of two machines do not.
func BenchmarkConsumers(b *testing.B) {
	w := newWorld(b, benchPartitions)
	list := make([]fact, benchEvents)
	for kind, name := range map[string]string{eachKind: topic, batchKind: topic + ".sets"} {
		if name != topic {
			must(b, w.kafka.CreateTopic(name, benchPartitions, nil))
		}
		records := make([]*kgo.Record, len(list))
		for i := range list {
			k := i % 100
			records[i] = newFact(fmt.Sprintf("key-%d", k), i/100, kind, int32(k%benchPartitions)).record()
			records[i].Topic = name
		}
		w.produceRecords(records...)
	}
	rates := map[string]float64{}
	var runs float64
	for b.Loop() {
		runs++
		rates["naive"] += w.naiveRate(fmt.Sprintf("naive-%v", runs))
		rates["each"] += w.groupRate(fmt.Sprintf("each-%v", runs), topic)
		sets := fmt.Sprintf("batch-%v", runs)
		rates["batch"] += w.groupRate(sets, topic+".sets")
		if _, err := w.pool.Exec(b.Context(), "UPDATE consumer_offsets SET next_offset = 0 WHERE consumer = $1", sets); err != nil {
			b.Fatal(err)
		}
		rates["duplicates"] += w.groupRate(sets, topic+".sets")
	}
	for name, sum := range rates {
		b.ReportMetric(sum/runs, name+"_events/s")
		if name != "naive" {
			b.ReportMetric(sum/rates["naive"], name+"/naive")
		}
	}
	b.ReportMetric(0, "ns/op")
}

// groupRate runs a group over the topic and returns events per second, from its first commit to its last.
func (w *world) groupRate(name, from string) float64 {
	w.t.Helper()
	for _, t := range retry.Topics(from, name, quick) {
		if w.kafka.TopicInfo(t) == nil {
			must(w.t, w.kafka.CreateTopic(t, 1, nil))
		}
	}
	cfg := w.config(tally{name: name})
	cfg.Name, cfg.Topics, cfg.Logger = name, []string{from}, slog.New(slog.NewTextHandler(io.Discard, nil))
	m := w.start(cfg)
	defer m.stop()
	var first, at int64
	var began time.Time
	eventually(w.t, "all is applied", func() error {
		at = ask[int64](w, "SELECT coalesce(sum(next_offset), 0)::bigint FROM consumer_offsets WHERE consumer = $1", name)
		if first == 0 && at > 0 {
			first, began = at, time.Now()
		}
		if at < benchEvents {
			return fmt.Errorf("%d of %d", at, benchEvents)
		}
		return nil
	})
	return float64(at-first) / time.Since(began).Seconds()
}

// naiveRate is the loop that everybody writes first: poll, and a transaction per event.
func (w *world) naiveRate(name string) float64 {
	w.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(w.kafka.ListenAddrs()...), kgo.ConsumerGroup(name), kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit())
	must(w.t, err)
	defer client.Close()
	ctx := w.t.Context()
	var began time.Time
	done := 0
	for done < benchNaive {
		fetches := client.PollRecords(ctx, 500)
		if began.IsZero() {
			began = time.Now()
		}
		for _, r := range fetches.Records() {
			must(w.t, pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error { return applyNaively(ctx, tx, name, r) }))
			done++
		}
		must(w.t, client.CommitRecords(ctx, fetches.Records()...))
	}
	return float64(done) / time.Since(began).Seconds()
}

func applyNaively(ctx context.Context, tx pgx.Tx, name string, r *kgo.Record) error {
	e := event.Event{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Key: r.Key, Value: r.Value}
	for _, h := range r.Headers {
		e.Headers = append(e.Headers, event.Header{Key: h.Key, Value: h.Value})
	}
	e.Identify()
	fresh, err := inbox.Once(ctx, tx, name, inbox.Entry{ID: e.ID, Day: inbox.Day(e.ID, e.OccurredAt)})
	if err != nil || !fresh {
		return err
	}
	seq, err := strconv.Atoi(string(e.Value))
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, effectSQL, e.ID, string(e.Key), seq, name)
	return err
}
