//go:build synctests

package group

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"converge/consumers/event"
	"converge/consumers/prove"
	"converge/consumers/retry"
)

// simulation is one run: a Kafka, tables in memory, members, a relay, all inside one bubble.
type simulation struct {
	plan    *simPlan
	policy  retry.Policy
	logger  *slog.Logger
	began   time.Time
	network kfake.VirtualNetwork
	kafka   *kfake.Cluster
	db      *memoryDB
	relay   *kgo.Client
	admin   *memory // a person's way to the tables
	members []*simMember
	born    int
	stopped sync.WaitGroup // of relay and strikes

	mu         sync.Mutex // guards the rest; db.mu may be held around it, never the other way
	random     *rand.Rand
	conns      map[*simConn]bool
	away       int // troubles that keep Kafka away; likewise the next ones
	silent     int
	lossy      int
	racy       int
	forgetful  int
	upstream   []*kgo.Record
	late       []lateRecord
	deadOnes   map[uuid.UUID]int
	calls      map[uuid.UUID]int
	mended     map[uuid.UUID]bool
	violations []string
}

type lateRecord struct {
	record *kgo.Record
	at     time.Time
}

const simPort = 19092

func newSimulation(plan *simPlan, logger *slog.Logger) (*simulation, error) {
	s := &simulation{plan: plan, policy: retry.Policy{Unordered: plan.unordered}, logger: logger, began: time.Now(), db: newMemoryDB(plan.seed),
		random: rand.New(rand.NewPCG(plan.seed, 2)), conns: map[*simConn]bool{}, deadOnes: map[uuid.UUID]int{}, calls: map[uuid.UUID]int{}, mended: map[uuid.UUID]bool{}}
	s.admin = s.db.member(retry.Ladder{Consumer: prove.Service, Policy: s.policy})
	s.db.violated = s.violated
	s.db.committed = s.committed
	s.db.commits = func() fate {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.lossy == 0 || s.random.IntN(3) > 0 {
			return told
		}
		return lostBefore + fate(s.random.IntN(3))
	}
	var err error
	if s.kafka, err = kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(simPort), kfake.ListenFn(s.network.Listen), kfake.SeedTopics(plan.partitions, prove.Topic),
		kfake.SeedTopics(1, retry.Topics(prove.Topic, prove.Service, s.policy)...)); err != nil {
		return nil, err
	}
	s.watchCommits()
	s.relay, err = kgo.NewClient(kgo.SeedBrokers(s.kafka.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0),
		kgo.MetadataMinAge(100*time.Millisecond), kgo.Dialer(func(ctx context.Context, network, address string) (net.Conn, error) {
			return s.dial(ctx, network, address, nil)
		}))
	return s, err
}

func (s *simulation) violated(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.violations = append(s.violations, fmt.Sprintf("%v: %s", time.Since(s.began), what))
}

// watchCommits holds what Kafka is told against what the tables have.
func (s *simulation) watchCommits() {
	id := s.kafka.TopicInfo(prove.Topic).TopicID
	s.kafka.ControlKey(int16(kmsg.OffsetCommit), func(request kmsg.Request) (kmsg.Response, error, bool) {
		s.kafka.KeepControl()
		s.db.mu.Lock()
		defer s.db.mu.Unlock()
		for _, t := range request.(*kmsg.OffsetCommitRequest).Topics {
			if t.Topic != prove.Topic && t.TopicID != id {
				continue
			}
			for _, p := range t.Partitions {
				if has := s.db.offsets[partition{prove.Topic, p.Partition}]; p.Offset > has {
					s.violated(fmt.Sprintf("ahead: Kafka was told %d of partition %d, the database has %d", p.Offset, p.Partition, has))
				}
			}
		}
		return nil, nil, false
	})
}

func (s *simulation) dial(ctx context.Context, network, address string, m *simMember) (net.Conn, error) {
	s.mu.Lock()
	away := s.away > 0
	s.mu.Unlock()
	if away {
		return nil, errGone
	}
	conn, err := s.network.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := &simConn{conn, s, m}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c] = true
	return c, nil
}

// cutConnections cuts a member's connections to Kafka; nil is everybody's.
func (s *simulation) cutConnections(m *simMember) {
	s.mu.Lock()
	var cut []*simConn
	for c := range s.conns {
		if m == nil || c.member == m {
			cut = append(cut, c)
		}
	}
	s.mu.Unlock()
	for _, c := range cut {
		c.Close()
	}
}

func (s *simulation) latency(statement string) (took time.Duration, lost bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	took = within(s.random, 4*time.Millisecond)
	often := 50
	if statement == "release" || statement == "wait" { // which of them comes first is what the foreign key is for
		often = 3
	}
	if s.random.IntN(often) == 0 {
		took = within(s.random, time.Second)
	}
	return took, s.racy > 0 && statement != "handler" && s.random.IntN(4) == 0
}

func (s *simulation) called(id uuid.UUID) (calls int, mended bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[id]++
	return s.calls[id], s.mended[id]
}

// tried checks that a failed event is not tried again before it is due.
func (s *simulation) tried(e *event.Event) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	if h, ok := s.db.held[holdKey{e.Topic, s.admin.ladder.KeyOf(e)}]; ok && e.Attempt > 0 && time.Now().Before(h.dueAt) {
		s.violated(fmt.Sprintf("early: %s was tried %v before it was due", e.ID, time.Until(h.dueAt)))
	}
}

// committed checks that nothing is applied past the head of a held key; db.mu is held.
func (s *simulation) committed(effects []effect) {
	if s.plan.unordered {
		return
	}
	for _, e := range effects {
		for _, w := range s.db.waiting[holdKey{prove.Topic, e.key}] {
			if f := s.fact(w.event.ID); !w.redriven && f.Seq < e.seq && !s.redriving(e.id) {
				s.violated(fmt.Sprintf("overtaken: %s/%d was applied by %s while %v waits", e.key, e.seq, e.by, &f.Fact))
			}
		}
	}
}

// redriving reports whether the event has been redriven: then it comes behind others. db.mu is held.
func (s *simulation) redriving(id uuid.UUID) bool {
	l, ok := s.db.letters[id]
	return ok && l.state != "dead"
}

func (s *simulation) fact(id uuid.UUID) *simFact {
	i := slices.IndexFunc(s.plan.facts, func(f simFact) bool { return f.ID == id })
	if i < 0 {
		return &simFact{}
	}
	return &s.plan.facts[i]
}

// carry is upstream and the relay, until ctx ends.
func (s *simulation) carry(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, r := range s.outgoing() {
			for ctx.Err() == nil {
				err := s.relay.ProduceSync(ctx, &kgo.Record{Topic: r.Topic, Partition: r.Partition, Key: r.Key, Value: r.Value, Headers: r.Headers}).FirstErr()
				if err == nil {
					break
				}
				s.relay.ForceMetadataRefresh()
				sleep(ctx, 200*time.Millisecond)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// outgoing takes what is to be sent now: some of it twice, some of it late, and of the wake-ups some never.
func (s *simulation) outgoing() (records []*kgo.Record) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.plan.facts) > len(s.upstream) && time.Since(s.began) >= s.plan.facts[len(s.upstream)].at {
		r := s.plan.facts[len(s.upstream)].record()
		s.upstream = append(s.upstream, r)
		if records = append(records, r); s.random.IntN(10) == 0 {
			records = append(records, s.upstream[max(0, len(s.upstream)-1-s.random.IntN(8))])
		}
	}
	if s.silent > 0 {
		return records
	}
	s.late = slices.DeleteFunc(s.late, func(l lateRecord) bool {
		due := time.Now().After(l.at)
		if due {
			records = append(records, l.record)
		}
		return due
	})
	for _, o := range s.db.outbox {
		r := &kgo.Record{Topic: o.topic, Key: []byte(o.key), Value: o.value}
		for k, v := range o.headers {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: k, Value: []byte(v)})
		}
		if strings.HasSuffix(o.topic, ".dlq") {
			s.deadOnes[o.id]++
		} else if s.forgetful > 0 && s.random.IntN(2) == 0 {
			continue
		}
		if s.random.IntN(8) == 0 {
			s.late = append(s.late, lateRecord{r, time.Now().Add(within(s.random, 20*time.Second))})
		} else {
			records = append(records, r)
		}
		if s.random.IntN(8) == 0 {
			records = append(records, r)
		}
	}
	s.db.outbox = nil
	return records
}

// behind says what is still to be done, "" for nothing.
func (s *simulation) behind() string {
	partitions := s.kafka.PartitionInfos(prove.Topic) // not under db.mu: Kafka waits for that in watchCommits
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.plan.facts) - len(s.upstream) + len(s.db.outbox) + len(s.late); n > 0 {
		return fmt.Sprintf("%d records are to be sent", n)
	}
	for _, p := range partitions {
		if at := s.db.offsets[partition{prove.Topic, p.Partition}]; at < p.HighWatermark {
			return fmt.Sprintf("partition %d is at %d of %d", p.Partition, at, p.HighWatermark)
		}
	}
	if n := len(s.db.held) + len(s.db.waiting); n > 0 {
		return fmt.Sprintf("%d keys are held or waited for", n)
	}
	return ""
}

func (s *simulation) grow(ctx context.Context) {
	for ctx.Err() == nil {
		if _, err := kadm.NewClient(s.relay).CreatePartitions(ctx, 1, prove.Topic); err == nil {
			return
		}
		sleep(ctx, time.Second)
	}
}
