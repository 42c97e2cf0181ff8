package relay

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
)

// Status is one look at a relay from outside: what the database says of its slot. Sizes are bytes of WAL.
type Status struct {
	Source Source `json:"source"`
	Slot   string `json:"slot"`
	Exists bool   `json:"exists"`
	// Active means that a relay reads the slot, or polls, now; Reader is the name it gives itself, and PID the server process that serves it.
	Active bool   `json:"active"`
	Reader string `json:"reader,omitempty"`
	PID    int    `json:"pid,omitempty"`
	// InactiveSince is when the slot was last read, from PostgreSQL 17 on.
	InactiveSince *time.Time `json:"inactive_since,omitempty"`

	// WALStatus is reserved or extended while all is well, unreserved when the slot is about to be lost,
	// lost when it is.
	WALStatus string `json:"wal_status,omitempty"`
	// From Restart on the server keeps WAL for the slot; up to Confirmed everything is on its topic;
	// Current is where the server writes.
	Restart   string `json:"restart_lsn,omitempty"`
	Confirmed string `json:"confirmed_flush_lsn,omitempty"`
	Current   string `json:"current_lsn,omitempty"`
	// LagBytes is from Confirmed to Current. WAL that has nothing to do with outboxes counts too.
	LagBytes int64 `json:"lag_bytes"`
	// RetainedBytes is from Restart to Current.
	RetainedBytes int64 `json:"retained_wal_bytes"`
	// SafeBytes can still be written before the slot is invalidated; nil: no limit is set.
	SafeBytes *int64 `json:"safe_wal_bytes,omitempty"`

	// Backlog is how many rows wait, and Oldest when the first of them was created, with [SourcePolling]. There
	// is no slot then, and nothing about WAL.
	Backlog *int64     `json:"backlog_rows,omitempty"`
	Oldest  *time.Time `json:"oldest_created_at,omitempty"`

	// Checkpoint is what the relay last wrote of itself into Kafka, nil when there is none.
	Checkpoint *Checkpoint `json:"checkpoint,omitempty"`

	// Problems are why the relay is not healthy, each with its fix; none: it is.
	Problems []Finding `json:"problems"`
}

// Checkpoint says, in Kafka, up to where the WAL is in Kafka.
type Checkpoint struct {
	Confirmed string `json:"confirmed_lsn"`
	System    string `json:"system_identifier"`
	Timeline  int    `json:"timeline"`
	// At is when it was written, Covered when the last transaction before it committed that had rows, zero
	// if none is known.
	At      time.Time `json:"at"`
	Covered time.Time `json:"covered_at,omitzero"`
	// Pending means that a backfill is not finished.
	Pending bool `json:"backfill_pending,omitempty"`
}

// Healthy reports whether a relay reads the slot and the slot can be read on.
func (s Status) Healthy() bool { return len(s.Problems) == 0 }

const inactiveSinceVersion = 170000

const inactiveSinceSQL = `
SELECT extract(epoch FROM inactive_since)
FROM pg_replication_slots
WHERE slot_name = $1`

// Inspect looks at the slot of the configuration. It changes nothing, and the relay does not notice. The role
// needs no more than to connect; with [SourcePolling] it needs SELECT on the tables, whose waiting rows are counted.
//
// The error is that the database cannot be asked; a slot that is missing or lost is a problem of the Status.
func Inspect(ctx context.Context, cfg Config) (Status, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return Status{}, fmt.Errorf("configuring the relay: %w", err)
	}
	c, err := openControl(ctx, cfg.DatabaseURL)
	if err != nil {
		return Status{}, fixed(err)
	}
	defer c.close()
	server, err := c.server(ctx)
	if err != nil {
		return Status{}, err
	}
	if err := server.checkPrimary(); err != nil {
		return Status{}, err
	}
	if cfg.Source == SourcePolling {
		return inspectPolling(ctx, c, &cfg)
	}
	slot, err := c.slot(ctx, cfg.Slot)
	if err != nil {
		return Status{}, err
	}
	s := slot.status(cfg.Slot)
	s.Source = cfg.Source
	if slot.exists && !slot.active && server.version >= inactiveSinceVersion {
		rows, err := c.rows(ctx, inactiveSinceSQL, cfg.Slot)
		if err != nil {
			return Status{}, fmt.Errorf("looking up slot %s: %w", cfg.Slot, err)
		}
		if len(rows) > 0 {
			if seconds, err := strconv.ParseFloat(rows[0][0], 64); err == nil {
				since := time.UnixMicro(int64(seconds * 1e6)).UTC()
				s.InactiveSince = &since
			}
		}
	}
	s.addCheckpoint(ctx, cfg)
	return s, nil
}

// addCheckpoint reads the checkpoint; a Kafka that cannot be asked is a problem.
func (s *Status) addCheckpoint(ctx context.Context, cfg Config) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	last, exists, err := readCheckpoint(ctx, &cfg, cfg.Slot+checkpointSuffix)
	switch {
	case errors.Is(err, kerr.UnknownTopicOrPartition):
	case err != nil:
		x := &examination{}
		x.note("kafka", unreached(kafkaRefused(err), unreachedKafka), "")
		s.Problems = append(s.Problems, x.findings...)
	case exists:
		s.Checkpoint = &Checkpoint{Confirmed: last.Confirmed.String(), System: last.System, Timeline: last.Timeline,
			At: last.At, Covered: last.Covered, Pending: last.Pending}
	}
}

func (s slotState) status(name string) Status {
	status := Status{Slot: name, Exists: s.exists, Problems: []Finding{}}
	if s.exists {
		status.Active, status.Reader, status.WALStatus = s.active, s.application, s.walStatus
		status.PID, _ = strconv.Atoi(s.pid) // "" while nobody reads
		status.Restart, status.Confirmed, status.Current = s.restart, s.confirmed, s.current
		status.LagBytes, status.RetainedBytes = int64(s.behindBytes), int64(s.retainedBytes)
		if s.safeBytes >= 0 {
			safe := int64(s.safeBytes)
			status.SafeBytes = &safe
		}
	}
	x := &examination{}
	if x.note("slot", s.check(name, false), "") {
		x.note("wal_status", s.checkRoom(), "")
		x.note("reader", s.checkRead(name), "")
	}
	status.add(x)
	return status
}

// add takes over what is not as it should be.
func (s *Status) add(x *examination) {
	for _, f := range x.findings {
		if f.Level != OK {
			s.Problems = append(s.Problems, f)
		}
	}
}

// checkRead returns an advice while nobody reads the slot.
func (s slotState) checkRead(name string) error {
	if s.active {
		return nil
	}
	return &advice{fmt.Errorf("nobody reads slot %s: rows wait, and the server keeps their WAL", name), "start the relay, or see its log for why it does not stream"}
}
