package history

import "time"

// Outcome is what the writer of a change learned about it.
type Outcome string

const (
	OK      Outcome = "ok"      // acknowledged: it must take effect everywhere
	Unknown Outcome = "unknown" // no answer, or a 5xx: it may or may not have happened
	Failed  Outcome = "failed"  // refused: it must not have happened
)

// Write is one change that was sent to the source of truth.
type Write struct {
	UserID  string    `json:"user_id"`
	Version int64     `json:"version"` // acknowledged; the one it would have become when not OK
	EventID string    `json:"event_id,omitempty"`
	SentAt  time.Time `json:"sent_at"`
	AckedAt time.Time `json:"acked_at,omitzero"` // zero unless OK
	Outcome Outcome   `json:"outcome"`
	Status  int       `json:"status,omitempty"` // of the HTTP reply; 0 when there was none
}

// Record is one record of the topic, as an independent reader found it. An event that was delivered
// twice has two records.
type Record struct {
	EventID     string    `json:"event_id"`
	UserID      string    `json:"user_id"` // the record's key
	Version     int64     `json:"version"`
	Partition   int32     `json:"partition"`
	Offset      int64     `json:"offset"`
	CommittedAt time.Time `json:"committed_at,omitzero"` // as the relay says
	At          time.Time `json:"at"`                    // the record's own time
}

// Effect is one row of a consumer's journal: the consumer acted on an event.
type Effect struct {
	Service    string    `json:"service"`
	EventID    string    `json:"event_id"`
	UserID     string    `json:"user_id"`
	Version    int64     `json:"version"`
	Superseded bool      `json:"superseded"` // a newer version was there already: nothing was changed
	AppliedAt  time.Time `json:"applied_at"` // effects of one transaction may share it
}

// View is what a service believed of a user after the end.
type View struct {
	Service string `json:"service"`
	UserID  string `json:"user_id"`
	Version int64  `json:"version"` // 0: it knows nothing of the user
	Content string `json:"content"` // what it holds, in any form that is equal when the content is
}

// FaultKind says what was done.
type FaultKind string

const (
	Down   FaultKind = "down"   // a consumer's process was killed and stayed away until To
	Crash  FaultKind = "crash"  // a process was killed and started again at once
	Resend FaultKind = "resend" // records were put on the topic again, byte for byte
)

// Fault is one thing that was done to the pipeline.
type Fault struct {
	Kind    FaultKind `json:"kind"`
	Service string    `json:"service,omitempty"` // whom it befell; "" when everybody
	What    string    `json:"what"`              // in words
	From    time.Time `json:"from"`
	To      time.Time `json:"to"` // when the process was started again, or the last record sent
	// CaughtUp is when the service had nothing left to read, zero when that never came about. Down only.
	CaughtUp time.Time `json:"caught_up,omitzero"`
	// Left is how many records it had left to read when the observer gave up. Down only.
	Left int64 `json:"left,omitempty"`
}

// DeadLetter is one record of a dead letter topic.
type DeadLetter struct {
	Service   string    `json:"service"`
	EventID   string    `json:"event_id"`
	UserID    string    `json:"user_id"`
	Error     string    `json:"error"`
	Partition int32     `json:"partition"`
	Offset    int64     `json:"offset"`
	At        time.Time `json:"at"`
}

// Source says how the reading of one kind of evidence ended.
type Source struct {
	Name string `json:"name"` // see SourceTopic and the functions beside it
	Rows int    `json:"rows"`
	Err  string `json:"err,omitempty"` // "" when it was read to its end
}

// SourceTopic is the name of the source of Records.
const SourceTopic = "topic"

// SourceJournal is the name of the source of a service's Effects.
func SourceJournal(service string) string { return "journal " + service }

// SourceViews is the name of the source of a service's Views.
func SourceViews(service string) string { return "views " + service }

// SourceDeadLetters is the name of the source of a service's DeadLetters.
func SourceDeadLetters(service string) string { return "dead letters " + service }

// Plan is what the run set out to do: the judge's measure.
type Plan struct {
	Name     string   `json:"name"`
	Mode     string   `json:"mode"` // how long the outage was, in words: the verdict repeats it
	Seed     uint64   `json:"seed"`
	Truth    string   `json:"truth"`    // the service that takes the writes
	Services []string `json:"services"` // the consumers that must agree with it
	// Grace is how long after its acknowledgement an event may reach a service that is not down, even
	// when the outage of another one ends meanwhile.
	Grace time.Duration `json:"grace"`
	// CatchUpBound is how long a service may take from its start to having nothing left to read.
	CatchUpBound time.Duration `json:"catch_up_bound"`
	// Poisons are the ids of events that belong into the dead letters.
	Poisons []string `json:"poisons,omitempty"`
	// ClockError bounds how far times that were not read from the database's clock may be off it.
	ClockError time.Duration `json:"clock_error"`
}

// History is everything that was recorded of one run. It is not safe for concurrent use.
type History struct {
	Plan        Plan
	Writes      []Write
	Records     []Record
	Effects     []Effect
	Views       []View
	Faults      []Fault
	DeadLetters []DeadLetter
	Sources     []Source
}
