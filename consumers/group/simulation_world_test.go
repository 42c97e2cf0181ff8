//go:build synctests

package group

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
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
	sending    int           // taken from the outbox, and not on its topic yet
	released   chan struct{} // closed when a key is about to be released, and made anew
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
	s := &simulation{plan: plan, logger: logger, began: time.Now(), db: newMemoryDB(plan.seed),
		random: rand.New(rand.NewPCG(plan.seed, 2)), conns: map[*simConn]bool{}, released: make(chan struct{}), calls: map[uuid.UUID]int{}, mended: map[uuid.UUID]bool{}}
	s.admin = s.db.member(retry.Ladder{Consumer: prove.Service, Policy: s.plan.policy})
	s.db.violated = s.violated
	s.db.committed = s.committed
	s.db.diesAgain = func(id uuid.UUID, before letter) {
		if before.state != "redriving" {
			s.violated(fmt.Sprintf("undecided: %v died again, and as a letter it was %s", &s.fact(id).Fact, before.state))
		}
	}
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
		kfake.SeedTopics(1, append(retry.Topics(prove.Topic, prove.Service, plan.policy), prove.EchoTopic)...)); err != nil {
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
	if len(s.violations) < 20 { // a broken run may say the same at every COMMIT
		s.violations = append(s.violations, fmt.Sprintf("%v: %s", time.Since(s.began), what))
	}
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

// meet has a follower that is about to wait for its key meet the key's release, most of the time: which of them
// comes first is what the foreign key is for.
func (s *simulation) meet(ctx context.Context, statement string) {
	released := s.meets(statement)
	if released == nil || !s.heldSoon() {
		return
	}
	select {
	case <-released:
	case <-time.After(7 * time.Second): // the retry may have to wait for a fetch that is under way, of 5 s
	case <-ctx.Done():
	}
}

// meets returns what is closed ahead of the next release, nil for a statement that does not wait for it.
func (s *simulation) meets(statement string) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if statement == "release" {
		close(s.released)
		s.released = make(chan struct{})
	}
	if statement != "wait" || s.random.IntN(3) == 0 {
		return nil
	}
	return s.released
}

// heldSoon reports whether a key is held that is due soon.
func (s *simulation) heldSoon() bool {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	for _, h := range s.db.held {
		if !h.blocked && time.Until(h.dueAt) < 2*time.Second {
			return true
		}
	}
	return false
}

func (s *simulation) latency(statement string) (took time.Duration, lost bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	took = within(s.random, 4*time.Millisecond)
	if s.random.IntN(50) == 0 {
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

// committed checks that what waits is held, and that nothing is applied past the head of a held key; db.mu is held.
func (s *simulation) committed(effects []effect) {
	for k := range s.db.waiting {
		if _, held := s.db.held[k]; !held {
			s.violated(fmt.Sprintf("orphaned: %v waits behind %s, and nobody holds it", &s.fact(s.db.waiting[k][0].event.ID).Fact, k.key))
		}
	}
	if s.plan.policy.Unordered {
		return
	}
	for _, e := range effects {
		for _, w := range s.db.waiting[holdKey{prove.Topic, e.key}] {
			if f := s.fact(w.event.ID); f.Seq < e.seq && (s.plan.policy.HoldDead || !w.redriven && !s.redriving(e.id)) {
				s.violated(fmt.Sprintf("overtaken: %s/%d was applied by %s while %v waits", e.key, e.seq, e.by, &f.Fact))
			}
		}
		if s.plan.policy.HoldDead {
			s.behindDead(e)
		}
	}
}

// behindDead checks that somebody has decided about the dead letters in front of an effect, and that what they
// decided is done.
func (s *simulation) behindDead(e effect) {
	for id, l := range s.db.letters {
		if f := s.fact(id); l.key == e.key && f.Seq < e.seq && (l.state == "dead" || l.state == "redriving") {
			s.violated(fmt.Sprintf("overtaken: %s/%d was applied by %s while %v is %s", e.key, e.seq, e.by, &f.Fact, l.state))
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
			s.mu.Lock()
			s.sending--
			s.mu.Unlock()
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
	defer func() { s.sending = len(records) }()
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
		if s.forgetful > 0 && strings.Contains(o.topic, ".retry.") && s.random.IntN(2) == 0 {
			continue
		}
		r := &kgo.Record{Topic: o.topic, Key: []byte(o.key), Value: o.value, Headers: []kgo.RecordHeader{{Key: "event_id", Value: []byte(o.id.String())}}}
		for k, v := range o.headers {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: k, Value: []byte(v)})
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
	if n := len(s.plan.facts) - len(s.upstream) + len(s.db.outbox) + len(s.late) + s.sending; n > 0 {
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

// published reads back what the relay has put on the topics of echoes and dead letters.
func (s *simulation) published(h *prove.History) error {
	topics := retry.Topics(prove.Topic, prove.Service, s.plan.policy)
	left := map[string]int64{}
	for _, topic := range []string{prove.EchoTopic, topics[len(topics)-1]} {
		if end := s.kafka.PartitionInfo(topic, 0).HighWatermark; end > 0 {
			left[topic] = end
		}
	}
	reader, err := kgo.NewClient(kgo.SeedBrokers(s.kafka.ListenAddrs()...), kgo.Dialer(s.network.DialContext),
		kgo.ConsumeTopics(slices.Collect(maps.Keys(left))...), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer reader.Close()
	for len(left) > 0 {
		fetches := reader.PollFetches(context.Background())
		if err := fetches.Err(); err != nil {
			return err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if left[r.Topic]--; left[r.Topic] == 0 {
				delete(left, r.Topic)
			}
			var id, cause uuid.UUID
			for _, header := range r.Headers {
				switch header.Key {
				case "event_id":
					id, _ = uuid.ParseBytes(header.Value)
				case "causation_id":
					cause, _ = uuid.ParseBytes(header.Value)
				}
			}
			if r.Topic == prove.EchoTopic {
				h.Echoes = append(h.Echoes, prove.Echo{ID: id, Cause: cause})
			} else {
				h.DeadRecords[id]++
			}
		})
	}
	return nil
}

// evictGhosts does what Apache Kafka does by itself: kfake counts a member's session from the answer to its join, and
// one that died before the answer keeps its partitions for ever.
func (s *simulation) evictGhosts(ctx context.Context) {
	alive := map[string]bool{}
	for _, m := range s.members {
		id, _ := m.group.client.GroupMetadata()
		alive[id] = true
	}
	groups, err := kadm.NewClient(s.relay).DescribeGroups(ctx, prove.Service)
	if err != nil {
		return
	}
	leave := kmsg.NewPtrLeaveGroupRequest()
	leave.Group = prove.Service
	for _, member := range groups[prove.Service].Members {
		if !alive[member.MemberID] {
			ghost := kmsg.NewLeaveGroupRequestMember()
			ghost.MemberID = member.MemberID
			leave.Members = append(leave.Members, ghost)
		}
	}
	if len(leave.Members) > 0 {
		s.logger.Info("ghosts are evicted", "members", len(leave.Members))
		_, _ = leave.RequestWith(ctx, s.relay) // it is looked at again
	}
}
