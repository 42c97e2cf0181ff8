// Command member is the consumer that the proof kills: the runtime with a handler that does what each task says.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/event"
	"converge/consumers/group"
	"converge/consumers/prove"
	"converge/internal/database"
	"converge/internal/pipeline"
	"converge/producers/outbox"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	var cfg prove.MemberConfig
	if err := json.Unmarshal([]byte(os.Getenv(prove.MemberVariable)), &cfg); err != nil {
		return fmt.Errorf("reading %s: %w", prove.MemberVariable, err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	fmt.Println(prove.Begun)
	pool, err := database.Open(ctx, cfg.DatabaseURL, prove.Service, 12)
	if err != nil {
		return err
	}
	defer pool.Close()
	m := member(cfg.Name)
	handler := event.Handler{Each: map[string]event.Each{prove.EachType: m.each}, Batch: map[string]event.Batch{prove.BatchType: m.batch}}
	most := 100 // so that there are batches in plenty
	if cfg.Quick {
		handler, most = event.Handler{Each: map[string]event.Each{prove.EachType: m.apply, prove.BatchType: m.apply}}, 0
	}
	g, err := group.New(group.Config{Name: prove.Service, Brokers: cfg.Brokers, Topics: []string{prove.Topic}, Pool: pool,
		Handler: handler, Retry: prove.Policy(), BatchTime: 3 * time.Second, MaxEvents: most, Guard: group.Guard{Keys: -1},
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Client: []kgo.Opt{kgo.SessionTimeout(prove.SessionTime), kgo.HeartbeatInterval(prove.SessionTime / 5), kgo.RebalanceTimeout(10 * time.Second),
			kgo.MetadataMinAge(100 * time.Millisecond), kgo.MetadataMaxAge(2 * time.Second), kgo.DialTimeout(2 * time.Second)}})
	if err != nil {
		return err
	}
	return g.Run(ctx)
}

type member string

// outage is what a handler returns when something that it needs is away.
type outage struct{ error }

func (outage) Infrastructure() bool { return true }

const effectSQL = `
INSERT INTO effects (event_id, key, seq, attempt, member)
VALUES ($1, $2, $3, $4, $5)`

// apply writes all that there is to write.
func (m member) apply(ctx context.Context, tx pgx.Tx, e *event.Event) error {
	var task prove.Task
	if err := json.Unmarshal(e.Value, &task); err != nil {
		return event.Permanent(err)
	}
	key := string(e.Key)
	if err := pipeline.Exec(ctx, tx, effectSQL, e.ID, key, task.Seq, e.Attempt, string(m)); err != nil {
		return err
	}
	if err := pipeline.Exec(ctx, tx, prove.FoldSQL, key, task.Value); err != nil {
		return err
	}
	id := uuid.New()
	return outbox.AppendRecords(ctx, tx, outbox.Record{EventID: id, Topic: prove.EchoTopic, Key: key, ContentType: "text/plain", Value: []byte("done"),
		Headers: map[string]string{"event_id": id.String(), "causation_id": e.ID.String()}})
}

// each writes first and then does what the task says, so that a refusal has something to undo.
func (m member) each(ctx context.Context, tx pgx.Tx, e *event.Event) error {
	var task prove.Task
	if err := m.apply(ctx, tx, e); err != nil {
		return err
	}
	if err := json.Unmarshal(e.Value, &task); err != nil {
		return event.Permanent(err)
	}
	var mended, away bool
	if err := tx.QueryRow(ctx, "SELECT mended, away FROM switches, pg_sleep($1)", float64(task.Slow)/1000).Scan(&mended, &away); err != nil {
		return err
	}
	switch {
	case away:
		return outage{errors.New("what the handler needs is away")}
	case mended && task.Fails >= prove.Forever, e.Attempt >= task.Fails:
		return nil
	}
	return refuse(ctx, tx, e, task)
}

func refuse(ctx context.Context, tx pgx.Tx, e *event.Event, task prove.Task) error {
	switch task.How {
	case prove.Panics:
		panic("as the task says")
	case prove.InSQL:
		_, err := tx.Exec(ctx, "DO $$ BEGIN RAISE EXCEPTION 'as the task says'; END $$")
		return err
	case prove.AtCommit:
		_, err := tx.Exec(ctx, "INSERT INTO late VALUES ($1)", e.ID)
		return err
	case prove.ForGood:
		return event.Permanentf("as the task says")
	default:
		return errors.New("as the task says")
	}
}

func (m member) batch(ctx context.Context, tx pgx.Tx, events []*event.Event) error {
	for _, e := range events {
		if err := m.each(ctx, tx, e); err != nil {
			return err
		}
	}
	return nil
}
