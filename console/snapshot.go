package console

import (
	"time"
)

// Snapshot is everything the console knows at one moment: what GET /console/api/snapshot answers. A nil
// pointer (null in JSON) is unknown, which is not zero.
type Snapshot struct {
	At         time.Time   `json:"at"`
	Sources    Sources     `json:"sources"`
	Headline   Headline    `json:"headline"`
	Topics     []Topic     `json:"topics"`
	Groups     []Group     `json:"groups"`
	ReadModels []ReadModel `json:"read_models"`
	Services   []Service   `json:"services"`
	Slots      []Slot      `json:"slots"`
	Sagas      []SagaState `json:"sagas"`
}

// Sources says how fresh each part of a snapshot is.
type Sources struct {
	Kafka    Source `json:"kafka"`
	Postgres Source `json:"postgres"`
	Metrics  Source `json:"metrics"`
}

// Source is one place that is measured. AgeSeconds is null until it was reached once, and for a source
// that is not configured. Error is why the last attempt did not succeed, "" when it did.
type Source struct {
	Configured bool     `json:"configured"`
	AgeSeconds *float64 `json:"age_seconds"`
	Error      string   `json:"error"`
}

// fresh reports whether the source's numbers are of now.
func (s Source) fresh() bool { return s.AgeSeconds != nil && *s.AgeSeconds <= staleAfter.Seconds() }

// staleAfter is the age from which numbers are shown as old and no longer exported.
const staleAfter = 5 * time.Second

// Headline is the row of numbers on top of the Flow page.
type Headline struct {
	OrdersPerSecond *float64 `json:"orders_per_second"`
	// Time to consistency, seconds from commit to the slowest read model, over the last minute; null
	// when nothing finished in it.
	ConsistencyP50 *float64 `json:"consistency_p50_seconds"`
	ConsistencyP99 *float64 `json:"consistency_p99_seconds"`
	// ConsistencyKnown says whether this process measures time to consistency at all.
	ConsistencyKnown bool `json:"consistency_known"`

	LagMessages *int64   `json:"lag_messages"` // of the pipeline's groups on event topics
	LagSeconds  *float64 `json:"lag_seconds"`  // the worst of them
	Verdict     Verdict  `json:"verdict"`      // the worst of them
	Waiting     *int64   `json:"retry_waiting"`
	DeadLetters *int64   `json:"dead_letters"`
	HeldKeys    *int64   `json:"held_keys"`
	WALBytes    *int64   `json:"slot_retained_wal_bytes"`
	Relay       string   `json:"relay"` // streaming, inactive, lost, no slot, unknown
}

// Topic is one topic as a whole. Kind is event, retry, dlq or other; Of and Group say whose retry or dead
// letters it holds.
type Topic struct {
	Name          string   `json:"name"`
	Kind          string   `json:"kind"`
	Of            string   `json:"of,omitempty"`
	Group         string   `json:"group,omitempty"`
	DelaySeconds  float64  `json:"delay_seconds,omitempty"`
	Partitions    int      `json:"partitions"`
	Records       int64    `json:"records"` // between the start and the end offsets; an upper bound on a compacted topic
	RatePerSecond *float64 `json:"rate_per_second"`
}

// Group is a consumer group. State is Kafka's own word (Stable, Empty, …).
type Group struct {
	Name    string       `json:"name"`
	State   string       `json:"state"`
	Members int          `json:"members"`
	Known   bool         `json:"known"` // a service of the topology
	Error   string       `json:"error,omitempty"`
	Topics  []GroupTopic `json:"topics"`
}

// GroupTopic is a group's position on one topic: sums over the partitions, the worst age and verdict.
type GroupTopic struct {
	Topic         string         `json:"topic"`
	Kind          string         `json:"kind"`
	Messages      *int64         `json:"lag_messages"`
	Seconds       *float64       `json:"lag_seconds"`
	Verdict       Verdict        `json:"verdict"`
	RatePerSecond *float64       `json:"rate_per_second"` // records the commit moves over
	Partitions    []PartitionLag `json:"partitions,omitempty"`
}

// PartitionLag is a group's position on one partition.
type PartitionLag struct {
	Partition int32    `json:"partition"`
	Committed *int64   `json:"committed_offset"`
	Start     *int64   `json:"start_offset"`
	End       *int64   `json:"end_offset"`
	Messages  *int64   `json:"lag_messages"`
	Seconds   *float64 `json:"lag_seconds"`
	Verdict   Verdict  `json:"verdict"`
	Member    string   `json:"member"` // "" when nobody owns the partition
}

// ReadModel is what a group builds. OldestUnapplied is the age in seconds of the oldest event that it has
// not taken in.
type ReadModel struct {
	Name            string   `json:"name"`
	Group           string   `json:"group"`
	OldestUnapplied *float64 `json:"oldest_unapplied_seconds"`
	Verdict         Verdict  `json:"verdict"`
}

// Service is what one service's schema says.
type Service struct {
	Name            string   `json:"name"`
	OutboxPerSecond *float64 `json:"outbox_rows_per_second"`
	DeadLetters     *int64   `json:"dead_letters"`
	HeldKeys        *int64   `json:"held_keys"`
}

// Slot is one logical replication slot of the database.
type Slot struct {
	Name             string `json:"name"`
	Active           bool   `json:"active"`
	WALStatus        string `json:"wal_status"` // reserved, extended, unreserved, lost
	RetainedBytes    *int64 `json:"retained_wal_bytes"`
	UnconfirmedBytes *int64 `json:"unconfirmed_wal_bytes"`
	SafeBytes        *int64 `json:"safe_wal_bytes"` // null: no limit is set
}

// SagaState is how many sagas are in one state.
type SagaState struct {
	State string `json:"state"`
	Count int64  `json:"count"`
}

// withoutPartitions is the snapshot for the Flow page: the same without the long part.
func (s *Snapshot) withoutPartitions() *Snapshot {
	short := *s
	short.Groups = make([]Group, len(s.Groups))
	for i, g := range s.Groups {
		topics := make([]GroupTopic, len(g.Topics))
		for j, t := range g.Topics {
			t.Partitions = nil
			topics[j] = t
		}
		g.Topics = topics
		short.Groups[i] = g
	}
	return &short
}
