package proof

import (
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"converge/internal/nettest"
)

// Trouble is something that befalls the subject besides being killed. Begin returns what ends it.
type Trouble struct {
	Name  string
	Begin func(rng *rand.Rand) (end func())
}

// None is no trouble at all.
var None = Trouble{"none", func(*rand.Rand) func() { return func() {} }}

// Troubles are those of the engines and of the ways to them, in a fixed order. topics, each with so many
// partitions, change their leaders. failed hears what a run cannot go on with.
func Troubles(s *Server, c *Cluster, topics []string, partitions int, failed func(error)) []Trouble {
	var all []Trouble
	for _, side := range []struct {
		name string
		leg  *Leg
	}{{"Kafka", c.Leg}, {"PostgreSQL", s.Leg}} {
		all = append(all,
			onLeg(side.name+": latency", side.leg, slow),
			onLeg(side.name+": bandwidth", side.leg, narrow),
			onLeg(side.name+": half-open", side.leg, silent),
			Trouble{side.name + ": reset", func(rng *rand.Rand) func() {
				side.leg.Reset(time.Duration(rng.IntN(301)) * time.Millisecond)
				return side.leg.Mend
			}},
			Unreachable(side.name+": unreachable", side.leg))
	}
	if c.Kafka != nil { // a real one is a single broker
		all = append(all, Trouble{"Kafka: leader change", func(rng *rand.Rand) func() {
			for _, topic := range topics {
				for p := range int32(partitions) {
					// A topic that is not made yet has no leader to change.
					_ = c.Kafka.MoveTopicPartition(topic, p, int32(rng.IntN(Brokers)))
				}
			}
			return func() {}
		}})
	}
	return append(all,
		Trouble{"Kafka: restart", func(*rand.Rand) func() { return c.Restart() }},
		Trouble{"PostgreSQL: restart", func(*rand.Rand) func() {
			failed(s.Stop(syscall.SIGINT))
			return s.Again
		}},
		Trouble{"PostgreSQL: crash", func(*rand.Rand) func() {
			failed(s.Stop(syscall.SIGQUIT))
			return s.Again
		}},
		Trouble{"PostgreSQL: postmaster paused", func(*rand.Rand) func() {
			failed(s.Postgres.Signal(syscall.SIGSTOP))
			return func() { failed(s.Postgres.Signal(syscall.SIGCONT)) }
		}})
}

// Unreachable is a side that refuses connections and drops those that there are.
func Unreachable(name string, leg *Leg) Trouble {
	return Trouble{name, func(*rand.Rand) func() {
		leg.Cut()
		return leg.Mend
	}}
}

// onLeg is a trouble of the network between the subject and one side, in one direction or both.
func onLeg(name string, leg *Leg, toxic func(rng *rand.Rand) nettest.Toxic) Trouble {
	return Trouble{name, func(rng *rand.Rand) func() {
		directions := [][]nettest.Direction{{nettest.Up}, {nettest.Down}, {nettest.Up, nettest.Down}}[rng.IntN(3)]
		leg.Poison(toxic(rng), directions...)
		return leg.Mend
	}}
}

func slow(rng *rand.Rand) nettest.Toxic {
	return nettest.Toxic{Latency: time.Duration(20+rng.IntN(781)) * time.Millisecond}
}
func narrow(rng *rand.Rand) nettest.Toxic { return nettest.Toxic{Rate: (5 + rng.IntN(46)) << 10} }
func silent(*rand.Rand) nettest.Toxic     { return nettest.Toxic{Silent: true} }

// Choose leaves those named, and None if it is.
func Choose(all []Trouble, only []string) []Trouble {
	return slices.DeleteFunc(append(all, None), func(t Trouble) bool { return !slices.Contains(only, t.Name) })
}
