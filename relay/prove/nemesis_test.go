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

	"converge/internal/nettest"
)

// trouble is something that befalls the relay besides being killed. begin returns what ends it.
type trouble struct {
	name  string
	begin func(r *run, rng *rand.Rand) (end func())
}

// onLeg is a trouble of the network between the relay and one side, in one direction or both.
func onLeg(name string, which func(r *run) *leg, toxic func(rng *rand.Rand) nettest.Toxic) trouble {
	return trouble{name, func(r *run, rng *rand.Rand) func() {
		l := which(r)
		directions := [][]nettest.Direction{{nettest.Up}, {nettest.Down}, {nettest.Up, nettest.Down}}[rng.IntN(3)]
		l.poison(toxic(rng), directions...)
		return l.mend
	}}
}

func slow(rng *rand.Rand) nettest.Toxic {
	return nettest.Toxic{Latency: time.Duration(20+rng.IntN(781)) * time.Millisecond}
}
func narrow(rng *rand.Rand) nettest.Toxic { return nettest.Toxic{Rate: (5 + rng.IntN(46)) << 10} }
func silent(*rand.Rand) nettest.Toxic     { return nettest.Toxic{Silent: true} }

// answers is Kafka's no to whatever is produced to one of the topics.
func answers(name string, no *kerr.Error) trouble {
	return trouble{name, func(r *run, rng *rand.Rand) func() {
		return r.cluster.kafka.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: topics[rng.IntN(len(topics))], Err: no, Count: -1}).Remove
	}}
}

// troubles are all kinds.
func troubles() []trouble {
	var all []trouble
	for side, which := range map[string]func(r *run) *leg{
		"PostgreSQL": func(r *run) *leg { return r.server.leg },
		"Kafka":      func(r *run) *leg { return r.cluster.leg },
	} {
		all = append(all,
			onLeg(side+": latency", which, slow),
			onLeg(side+": bandwidth", which, narrow),
			onLeg(side+": half-open", which, silent),
			trouble{side + ": reset", func(r *run, rng *rand.Rand) func() {
				which(r).reset(time.Duration(rng.IntN(301)) * time.Millisecond)
				return which(r).mend
			}},
			trouble{side + ": unreachable", func(r *run, _ *rand.Rand) func() {
				which(r).cut()
				return which(r).mend
			}})
	}
	return append(all,
		trouble{"Kafka: restart", func(r *run, _ *rand.Rand) func() {
			r.cluster.kafka.Close()
			return r.cluster.start
		}},
		trouble{"Kafka: leader change", func(r *run, rng *rand.Rand) func() {
			for _, topic := range allTopics() {
				for p := range int32(partitions) {
					// A topic that is not made yet has no leader to change.
					_ = r.cluster.kafka.MoveTopicPartition(topic, p, int32(rng.IntN(brokers)))
				}
			}
			return func() {}
		}},
		answers("Kafka: rights withdrawn", kerr.TopicAuthorizationFailed),
		answers("Kafka: too few replicas", kerr.NotEnoughReplicas),
		answers("Kafka: too few replicas, noticed late", kerr.NotEnoughReplicasAfterAppend), // it has the records
		trouble{"PostgreSQL: restart", func(r *run, _ *rand.Rand) func() {
			r.failed(r.server.stop(syscall.SIGINT))
			return r.server.again
		}},
		trouble{"PostgreSQL: crash", func(r *run, _ *rand.Rand) func() {
			r.failed(r.server.stop(syscall.SIGQUIT))
			return r.server.again
		}},
		trouble{"PostgreSQL: reader terminated", func(r *run, _ *rand.Rand) func() {
			r.ask("SELECT pg_terminate_backend(pid) FROM ("+r.plan.readerSQL()+") AS reader (pid)", slot)
			return func() {}
		}},
		trouble{"PostgreSQL: walsender paused", func(r *run, _ *rand.Rand) func() {
			var pid int
			if !r.ask(r.plan.readerSQL(), slot, &pid) {
				return func() {}
			}
			_ = syscall.Kill(pid, syscall.SIGSTOP) // it may be gone by now
			return func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
		}},
		trouble{"PostgreSQL: postmaster paused", func(r *run, _ *rand.Rand) func() {
			r.failed(r.server.postgres.Signal(syscall.SIGSTOP))
			return func() { r.failed(r.server.postgres.Signal(syscall.SIGCONT)) }
		}},
	)
}

// ask runs a query about the slot and scans its only row. It reports whether there was one: the server may be
// away, and the slot may have no reader.
func (r *run) ask(sql, arg string, into ...any) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, r.server.url())
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
