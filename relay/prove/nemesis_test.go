package prove

import (
	"context"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"converge/internal/proof"
)

// answers are Kafka's ways to say no to whatever is produced to one of the topics. A real one cannot be told to.
func (r *run) answers() (all []proof.Trouble) {
	if r.cluster.Kafka == nil {
		return nil
	}
	for _, a := range []struct {
		name string
		no   *kerr.Error
	}{
		{"Kafka: rights withdrawn", kerr.TopicAuthorizationFailed},
		{"Kafka: too few replicas", kerr.NotEnoughReplicas},
		{"Kafka: too few replicas, noticed late", kerr.NotEnoughReplicasAfterAppend}, // it has the records
	} {
		all = append(all, proof.Trouble{Name: a.name, Begin: func(rng *rand.Rand) func() {
			return r.cluster.Kafka.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: topics[rng.IntN(len(topics))], Err: a.no, Count: -1}).Remove
		}})
	}
	return all
}

// troubles are all kinds.
func (r *run) troubles() []proof.Trouble {
	return append(append(proof.Troubles(r.server, r.cluster, allTopics(), partitions, r.failed), r.answers()...),
		proof.Trouble{Name: "PostgreSQL: reader terminated", Begin: func(*rand.Rand) func() {
			r.ask("SELECT pg_terminate_backend(pid) FROM ("+r.plan.readerSQL()+") AS reader (pid)", slot)
			return func() {}
		}},
		proof.Trouble{Name: "PostgreSQL: walsender paused", Begin: func(*rand.Rand) func() {
			var pid int
			if !r.ask(r.plan.readerSQL(), slot, &pid) {
				return func() {}
			}
			_ = syscall.Kill(pid, syscall.SIGSTOP) // it may be gone by now
			return func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
		}})
}

// ask runs a query about the slot and scans its only row. It reports whether there was one: the server may be
// away, and the slot may have no reader.
func (r *run) ask(sql, arg string, into ...any) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, r.server.URL())
	if err != nil {
		return false
	}
	defer conn.Close(ctx)
	if len(into) == 0 {
		_, err = conn.Exec(ctx, sql, arg)
	} else {
		err = conn.QueryRow(ctx, sql, arg).Scan(into...)
	}
	return err == nil
}
