package console

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"converge/schemas"
)

// Names of the headline's series in history.
const (
	seriesOrders      = "orders"
	seriesConsistency = "consistency"
	seriesLagMessages = "lag_messages"
	seriesLagSeconds  = "lag_seconds"
	seriesDead        = "dead_letters"
	seriesWAL         = "wal"
)

// compose joins the sources' last samples into a snapshot and keeps what is new in history.
func (c *Console) compose(now time.Time, metrics *metricsSource) *Snapshot {
	c.mu.Lock()
	kafka, database := c.kafka, c.database
	c.mu.Unlock()

	s := &Snapshot{
		At: now, Topics: []Topic{}, Groups: []Group{}, ReadModels: []ReadModel{},
		Services: []Service{}, Slots: []Slot{}, Sagas: []SagaState{},
	}
	s.Headline.Relay, s.Headline.Verdict = relayUnknown, Unknown
	s.Sources.Kafka = Source{Configured: len(c.cfg.Brokers) > 0, Error: text(kafka.err)}
	s.Sources.Postgres = Source{Configured: c.pool != nil, Error: text(database.err)}
	s.Sources.Metrics = Source{Configured: c.cfg.Gatherer != nil}
	if k := kafka.sample; k != nil {
		s.Sources.Kafka.AgeSeconds = age(now, k.at)
		s.Topics, s.Groups = append(s.Topics, k.topics...), append(s.Groups, k.groups...)
		s.lagHeadline()
	}
	s.readModels()
	if d := database.sample; d != nil {
		s.Sources.Postgres.AgeSeconds = age(now, d.at)
		s.Sources.Postgres.Error = cmp.Or(s.Sources.Postgres.Error, text(d.err))
		s.Services, s.Slots = append(s.Services, d.services...), append(s.Slots, d.slots...)
		s.databaseHeadline(d.orders)
	}
	if metrics != nil {
		m, err := metrics.sample(now)
		s.Sources.Metrics.Error = text(err)
		if m != nil {
			s.Sources.Metrics.AgeSeconds = age(now, m.at)
			s.Headline.ConsistencyKnown, s.Headline.ConsistencyP50, s.Headline.ConsistencyP99 = m.known, m.p50, m.p99
			s.Sagas = append(s.Sagas, m.sagas...)
		}
	}
	c.keep(s, kafka.sample, database.sample)
	return s
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func age(now, at time.Time) *float64 { return new(max(0, now.Sub(at).Seconds())) }

// lagHeadline sums the pipeline's own groups over event topics. A group of somebody else's that stopped
// long ago is on the Lag page and does not colour the whole.
func (s *Snapshot) lagHeadline() {
	h := &s.Headline
	var waiting int64
	for _, g := range s.Groups {
		for _, t := range g.Topics {
			if t.Kind == kindRetry && t.Messages != nil {
				waiting += *t.Messages
			}
			if !g.Known || t.Kind != kindEvent {
				continue
			}
			if t.Messages != nil {
				h.LagMessages = new(*t.Messages + value(h.LagMessages))
			}
			if t.Seconds != nil && *t.Seconds >= value(h.LagSeconds) {
				h.LagSeconds = t.Seconds
			}
			if t.Verdict.worse(h.Verdict) {
				h.Verdict = t.Verdict
			}
		}
	}
	h.Waiting = &waiting
}

func value[T int64 | float64](p *T) T {
	if p == nil {
		return 0
	}
	return *p
}

// readModels says for each read model how old the oldest event is that its group has not taken in, over
// the topics that the topology gives it.
func (s *Snapshot) readModels() {
	for group, name := range schemas.ReadModels() {
		m := ReadModel{Name: name, Group: group, Verdict: Unknown}
		topics, _ := schemas.ReadBy(group)
		for _, topic := range topics {
			t := s.groupTopic(group, topic)
			if t == nil || t.Seconds == nil || t.Messages == nil {
				m.OldestUnapplied, m.Verdict = nil, Unknown
				break
			}
			m.OldestUnapplied = new(max(*t.Seconds, value(m.OldestUnapplied)))
			if t.Verdict.worse(m.Verdict) {
				m.Verdict = t.Verdict
			}
		}
		s.ReadModels = append(s.ReadModels, m)
	}
	slices.SortFunc(s.ReadModels, func(a, b ReadModel) int { return strings.Compare(a.Name, b.Name) })
}

func (s *Snapshot) groupTopic(group, topic string) *GroupTopic {
	for i := range s.Groups {
		if s.Groups[i].Name != group {
			continue
		}
		for j := range s.Groups[i].Topics {
			if s.Groups[i].Topics[j].Topic == topic {
				return &s.Groups[i].Topics[j]
			}
		}
	}
	return nil
}

// What the database says of the relay, by its slot.
const (
	relayUnknown   = "unknown"
	relayNoSlot    = "no slot"
	relayStreaming = "streaming"
	relayInactive  = "inactive"
	relayLost      = "lost"
)

func (s *Snapshot) databaseHeadline(orders *float64) {
	h := &s.Headline
	h.OrdersPerSecond = orders
	for _, service := range s.Services {
		if service.DeadLetters != nil {
			h.DeadLetters = new(*service.DeadLetters + value(h.DeadLetters))
		}
		if service.HeldKeys != nil {
			h.HeldKeys = new(*service.HeldKeys + value(h.HeldKeys))
		}
	}
	h.Relay = relayNoSlot
	for i, slot := range s.Slots {
		state := relayInactive
		if slot.Active {
			state = relayStreaming
		}
		if slot.WALStatus == "lost" {
			state = relayLost
		}
		if i == 0 || state != relayStreaming {
			h.Relay = state
		}
		if slot.RetainedBytes != nil && *slot.RetainedBytes >= value(h.WALBytes) {
			h.WALBytes = slot.RetainedBytes
		}
	}
}

// keep writes samples that are new into history; an outage leaves a gap.
func (c *Console) keep(s *Snapshot, kafka *kafkaSample, database *databaseSample) {
	h := c.history
	if kafka != nil && kafka.at.After(c.kept.kafka) {
		c.kept.kafka = kafka.at
		h.add(seriesKey{name: seriesLagMessages, partition: allPartitions}, kafka.at, whole64(s.Headline.LagMessages))
		h.add(seriesKey{name: seriesLagSeconds, partition: allPartitions}, kafka.at, s.Headline.LagSeconds)
		// Topics before partitions: when there are more series than are kept, the sums are.
		for _, g := range kafka.groups {
			for _, t := range g.Topics {
				h.add(seriesKey{seriesLagMessages, g.Name, t.Topic, allPartitions}, kafka.at, whole64(t.Messages))
				h.add(seriesKey{seriesLagSeconds, g.Name, t.Topic, allPartitions}, kafka.at, t.Seconds)
			}
		}
		for _, g := range kafka.groups {
			for _, t := range g.Topics {
				for _, p := range t.Partitions {
					h.add(seriesKey{seriesLagMessages, g.Name, t.Topic, p.Partition}, kafka.at, whole64(p.Messages))
					h.add(seriesKey{seriesLagSeconds, g.Name, t.Topic, p.Partition}, kafka.at, p.Seconds)
				}
			}
		}
	}
	if database != nil && database.at.After(c.kept.database) {
		c.kept.database = database.at
		h.add(seriesKey{name: seriesOrders, partition: allPartitions}, database.at, s.Headline.OrdersPerSecond)
		h.add(seriesKey{name: seriesDead, partition: allPartitions}, database.at, whole64(s.Headline.DeadLetters))
		h.add(seriesKey{name: seriesWAL, partition: allPartitions}, database.at, whole64(s.Headline.WALBytes))
	}
	h.add(seriesKey{name: seriesConsistency, partition: allPartitions}, s.At, s.Headline.ConsistencyP99)
}

func whole64(n *int64) *float64 {
	if n == nil {
		return nil
	}
	return new(float64(*n))
}
