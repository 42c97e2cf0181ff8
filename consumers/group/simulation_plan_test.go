//go:build synctests

package group

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/prove"
	"converge/consumers/retry"
)

// simPlan is all that a seed decides ahead of a run.
type simPlan struct {
	seed       uint64
	partitions int32
	members    int
	policy     retry.Policy
	facts      []simFact // of a key in order
	strikes    []strike  // by time
}

// simFact is an event, and when it is emitted.
type simFact struct {
	prove.Fact
	at time.Duration
}

// Ways to refuse beside those of package prove. The first two are nobody's fault: no try is counted.
const (
	inOutage     prove.How = "outage"
	inContention prove.How = "contention"
	later        prove.How = "later" // not before a while has passed
	slowly       prove.How = "slow"
)

// strike is one trouble.
type strike struct {
	at, lasts time.Duration
	what      trouble
	who       int
}

type trouble string

const (
	crash       trouble = "crash"        // a process dies: its connections are reset
	powerCut    trouble = "power cut"    // a machine dies: its transactions stay open until the server ends them
	leave       trouble = "leave"        // and another one joins
	freeze      trouble = "freeze"       // SIGSTOP, SIGCONT
	zombie      trouble = "zombie"       // a freeze ahead of a batch, for as long as it takes others to apply it
	noDatabase  trouble = "no database"  // PostgreSQL is away
	noKafka     trouble = "no Kafka"     // Kafka is away
	noRelay     trouble = "no relay"     // nothing leaves the outbox
	lostReplies trouble = "lost replies" // COMMITs and their replies get lost
	contention  trouble = "contention"   // statements lose races
	deadWakes   trouble = "lost wake-ups"
	redrive     trouble = "redrive"
	discard     trouble = "discard"
	grow        trouble = "grow" // the topic gets one more partition
)

var troubles = []trouble{crash, crash, powerCut, leave, freeze, zombie, zombie, noDatabase, noKafka, noRelay, lostReplies, lostReplies,
	contention, deadWakes, deadWakes, redrive, redrive, redrive, discard}

// simTraffic is how long facts are emitted and troubles begin.
const simTraffic = 5 * time.Minute

func drawPlan(seed uint64) *simPlan {
	r := rand.New(rand.NewPCG(seed, 0))
	p := &simPlan{seed: seed, partitions: 1 + r.Int32N(3), members: 1 + r.IntN(4)}
	switch r.IntN(8) {
	case 0:
		p.policy.Unordered = true
	case 1, 2:
		p.policy.HoldDead = true
	}
	for range 3 + r.IntN(8) {
		s := strike{at: within(r, simTraffic), what: troubles[r.IntN(len(troubles))], who: r.IntN(100)}
		if s.lasts = within(r, 30*time.Second); r.IntN(4) == 0 {
			s.lasts *= 10
		}
		if s.what == redrive { // there is something to redrive later on, too
			s.at *= time.Duration(1 + r.IntN(20))
		}
		p.strikes = append(p.strikes, s)
	}
	grown := time.Duration(-1)
	if r.IntN(4) == 0 {
		grown = simTraffic / 4
		p.strikes = append(p.strikes, strike{at: grown, what: grow})
	}
	slices.SortStableFunc(p.strikes, func(a, b strike) int { return int(a.at - b.at) })
	keys := 2 + r.IntN(4)
	for k := range keys {
		p.drawKey(r, k, keys, grown)
	}
	slices.SortStableFunc(p.facts, func(a, b simFact) int { return int(a.at - b.at) })
	return p
}

// drawKey draws the facts of a key, in bursts: what follows a held event closely is what can go wrong. After the
// topic has grown, keys of the new partition come up; keys that move lose their order, and that is said.
func (p *simPlan) drawKey(r *rand.Rand, k, keys int, grown time.Duration) {
	key, partition, from := fmt.Sprintf("key-%d", k), int32(k)%p.partitions, time.Duration(0)
	if grown >= 0 && k == keys-1 {
		partition, from = p.partitions, grown
	}
	at := from + within(r, simTraffic/4)
	for seq := range 5 + r.IntN(15) {
		if r.IntN(4) == 0 {
			at += within(r, simTraffic/6)
		} else {
			at += within(r, 300*time.Millisecond)
		}
		f := simFact{at: at, Fact: prove.Fact{ID: drawID(r), Key: key, Partition: partition}}
		f.Task = prove.Task{Seq: seq, Value: r.Int64N(1000)}
		drawTask(r, &f.Task)
		p.facts = append(p.facts, f)
	}
}

func drawTask(r *rand.Rand, task *prove.Task) {
	tries := 1 + r.IntN(5)
	switch r.IntN(30) {
	case 0, 1, 2, 3:
		task.How, task.Fails = prove.Plainly, tries
	case 4, 5:
		task.How, task.Fails = prove.Panics, tries
	case 6:
		task.How, task.Fails = later, min(tries, 3)
	case 7:
		task.How, task.Fails = prove.Plainly, prove.Forever
	case 8, 9:
		task.How = prove.ForGood
	case 10:
		task.How, task.Slow = inOutage, tries
	case 11:
		task.How, task.Slow = inContention, tries
	case 12:
		task.How, task.Slow = slowly, r.IntN(3000)
	}
}

func drawID(r *rand.Rand) (id uuid.UUID) {
	for i := range id {
		id[i] = byte(r.Uint32())
	}
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	return id
}

func within(r *rand.Rand, d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d))) }

func (f *simFact) record() *kgo.Record {
	value, err := json.Marshal(f.Task)
	if err != nil {
		panic(err)
	}
	return &kgo.Record{Topic: prove.Topic, Partition: f.Partition, Key: []byte(f.Key), Value: value, Headers: []kgo.RecordHeader{
		{Key: "event_id", Value: []byte(f.ID.String())}, {Key: "event_type", Value: []byte(prove.EachType)}}}
}
