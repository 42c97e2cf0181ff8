package prove

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// trouble is something that befalls the relay besides being killed. begin returns what ends it.
type trouble struct {
	name  string
	begin func(r *run, rng *rand.Rand) (end func())
}

const (
	up   = "upstream"   // away from the relay
	down = "downstream" // towards it
)

func milliseconds(name string, least, most int) func(rng *rand.Rand) string {
	return func(rng *rand.Rand) string { return fmt.Sprintf(`{%q: %d}`, name, least+rng.IntN(most-least+1)) }
}

// onLeg is a toxic of the network between the relay and one side.
func onLeg(name, kind string, which func(r *run) *leg, attributes func(rng *rand.Rand) string) trouble {
	return trouble{name, func(r *run, rng *rand.Rand) func() {
		l := which(r)
		streams := [][]string{{up}, {down}, {up, down}}[rng.IntN(3)]
		l.poison(kind, attributes(rng), streams...)
		return l.mend
	}}
}

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
			onLeg(side+": latency", "latency", which, milliseconds("latency", 20, 800)),
			onLeg(side+": reset", "reset_peer", which, milliseconds("timeout", 0, 300)),
			onLeg(side+": half-open", "timeout", which, milliseconds("timeout", 0, 0)),
			onLeg(side+": bandwidth", "bandwidth", which, milliseconds("rate", 5, 50)), // KB/s
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
