package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/event"
	"converge/consumers/group"
	"converge/consumers/inbox"
	"converge/consumers/retry"
	"converge/internal/database"
	"converge/internal/pipeline"
	"converge/producers/outbox"
)

const (
	service   = "tally"
	eachType  = "Counted"
	batchType = "Summed"
	// consumerVariable makes the test binary a consumer instead.
	consumerVariable = "CONVERGE_TEST_BENCH_CONSUMER"
)

// mode is how a consumer works.
type mode string

const (
	sets      mode = "set-based handler"
	unheld    mode = "set-based handler, without order" // and so without the question whether a key is held
	each      mode = "handler per event"
	naive     mode = "transaction per event"
	naiveWide mode = "transaction per event, a worker per partition"
)

// order is what a consumer is told.
type order struct {
	Mode        mode
	Group       string
	DatabaseURL string
	Brokers     []string
	Topic       string
	Events      int // after which a naive loop ends
}

func TestMain(m *testing.M) {
	if text := os.Getenv(consumerVariable); text != "" {
		if err := consume(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func consume(text string) error {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	pool, err := database.Open(ctx, o.DatabaseURL, service, 8)
	if err != nil {
		return err
	}
	defer pool.Close()
	if o.Mode == naive || o.Mode == naiveWide {
		return o.loop(ctx, pool)
	}
	g, err := group.New(group.Config{Name: o.Group, Brokers: o.Brokers, Topics: []string{o.Topic}, Pool: pool, Handler: handler(),
		Retry: retry.Policy{Unordered: o.Mode == unheld}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		return err
	}
	return g.Run(ctx)
}

// handler writes a row for each event and emits an event for it.
func handler() event.Handler {
	return event.Handler{Each: map[string]event.Each{eachType: one}, Batch: map[string]event.Batch{batchType: many}}
}

const (
	effectSQL  = "INSERT INTO effects (event_id, key, value) VALUES ($1, $2, $3)"
	effectsSQL = "INSERT INTO effects (event_id, key, value) SELECT * FROM unnest($1::uuid[], $2::text[], $3::bytea[])"
)

func emitted(e *event.Event) outbox.Record {
	return outbox.Record{EventID: uuid.New(), Topic: "done", Key: string(e.Key), ContentType: "application/json", Value: e.Value,
		Headers: map[string]string{"causation_id": e.ID.String()}}
}

func one(ctx context.Context, tx pgx.Tx, e *event.Event) error {
	if err := pipeline.Exec(ctx, tx, effectSQL, e.ID, string(e.Key), e.Value); err != nil {
		return err
	}
	return outbox.AppendRecords(ctx, tx, emitted(e))
}

func many(ctx context.Context, tx pgx.Tx, events []*event.Event) error {
	ids, keys, values := make([]uuid.UUID, len(events)), make([]string, len(events)), make([][]byte, len(events))
	records := make([]outbox.Record, len(events))
	for i, e := range events {
		ids[i], keys[i], values[i], records[i] = e.ID, string(e.Key), e.Value, emitted(e)
	}
	if err := pipeline.Exec(ctx, tx, effectsSQL, ids, keys, values); err != nil {
		return err
	}
	return outbox.AppendRecords(ctx, tx, records...)
}

// loop is what everybody writes first, and what the Kafka client's examples show: poll, a transaction for each
// event, with an inbox at least, and a commit to Kafka behind the poll. It says how long it took.
func (o order) loop(ctx context.Context, pool *pgxpool.Pool) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(o.Brokers...), kgo.ConsumerGroup(o.Group), kgo.ConsumeTopics(o.Topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll())
	if err != nil {
		return err
	}
	defer client.CloseAllowingRebalance()
	var began time.Time
	for done := 0; done < o.Events; {
		fetches := client.PollRecords(ctx, 2000)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if began.IsZero() {
			began = time.Now()
		}
		var workers sync.WaitGroup
		var mu sync.Mutex
		var failed error
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			work := func() {
				for _, r := range p.Records {
					if err := o.apply(ctx, pool, r); err != nil {
						mu.Lock()
						failed = err
						mu.Unlock()
						return
					}
				}
			}
			if o.Mode == naiveWide {
				workers.Go(work)
			} else {
				work()
			}
		})
		workers.Wait()
		if failed != nil {
			return failed
		}
		done += fetches.NumRecords()
		if err := client.CommitRecords(ctx, fetches.Records()...); err != nil {
			return err
		}
		client.AllowRebalance()
		if done >= o.Events {
			return json.NewEncoder(os.Stdout).Encode(float64(done) / time.Since(began).Seconds())
		}
	}
	return nil
}

func (o order) apply(ctx context.Context, pool *pgxpool.Pool, r *kgo.Record) error {
	e := &event.Event{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Key: r.Key, Value: r.Value}
	for _, h := range r.Headers {
		e.Headers = append(e.Headers, event.Header{Key: h.Key, Value: h.Value})
	}
	e.Identify()
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		fresh, err := inbox.Once(ctx, tx, o.Group, inbox.Entry{ID: e.ID, Day: inbox.Day(e.ID, e.OccurredAt)})
		if err != nil || !fresh {
			return err
		}
		return one(ctx, tx, e)
	})
}
