package prove

import (
	"strconv"

	"github.com/google/uuid"
)

// Task is the payload of a fact: what it is, and what its handler is to do about it.
type Task struct {
	Seq   int    `json:"seq"`   // of the key, from 0
	Value int64  `json:"value"` // for the fold
	Fails int    `json:"fails"` // tries that fail before one succeeds; Forever is all of them, until the run mends them
	How   How    `json:"how,omitempty"`
	Slow  int    `json:"slow,omitempty"` // milliseconds that the handler takes
	Note  string `json:"note,omitempty"` // so that facts differ in size
}

// Forever is more tries than any policy has.
const Forever = 1000

// How says in what way a handler refuses a task.
type How string

// The ways to refuse.
const (
	Plainly    How = "error"     // it returns an error
	Panics     How = "panic"     // it panics
	InSQL      How = "sql"       // a statement of its fails
	AtCommit   How = "commit"    // a constraint that is checked late fails
	ForGood    How = "permanent" // it returns a permanent error
	Unreadable How = "rubbish"   // the payload cannot be read
	Untyped    How = "untyped"   // the record says of no type what it is
)

// Permanent reports whether the first refusal is the last.
func (h How) Permanent() bool { return h == ForGood || h == Unreadable || h == Untyped }

// Fact is an event of the ledger: it is on the topic.
type Fact struct {
	Task
	ID        uuid.UUID
	Key       string
	Partition int32
	Offset    int64 // of its first record
}

// Dies reports whether the fact is to be a dead letter, after so many tries.
func (f *Fact) Dies(maxAttempts int) (dies bool, attempts int) {
	switch {
	case f.How.Permanent():
		return true, 1
	case f.Fails >= maxAttempts:
		return true, maxAttempts
	default:
		return false, 0
	}
}

// Effect is a row that a handler wrote, in the order of their commits for one key.
type Effect struct {
	ID      uuid.UUID
	Key     string
	Seq     int
	Attempt int // tries that had failed before
	Member  string
}

// Letter is a row of the dead letters.
type Letter struct {
	ID       uuid.UUID
	State    string
	Attempts int
	Deaths   int
}

// Fold is a key's state.
type Fold struct {
	Digest int64
	Count  int
}

// Add is the fold's step. Neither order nor count can be changed without changing the digest.
func (f Fold) Add(value int64) Fold {
	return Fold{Digest: (f.Digest*31 + value) % 1_000_000_007, Count: f.Count + 1}
}

// FoldSQL is the same step, as the handler takes it: $1 is the key, $2 the value.
const FoldSQL = `
INSERT INTO folds (key, digest, count)
VALUES ($1, $2::bigint % 1000000007, 1)
ON CONFLICT (key) DO UPDATE SET digest = (folds.digest * 31 + $2::bigint) % 1000000007, count = folds.count + 1`

// Sample is a look at a partition's offsets: Kafka's first, then the database's.
type Sample struct {
	Partition int32
	Kafka     int64 // -1: none
	Database  int64
}

// Echo is an event that a handler emitted.
type Echo struct {
	ID    uuid.UUID
	Cause uuid.UUID
}

// History is what a run left behind.
type History struct {
	MaxAttempts int
	// HoldDead says that a dead letter holds its key: what is redriven keeps its place.
	HoldDead    bool
	Facts       []Fact   // of a key in the order of their offsets
	Effects     []Effect // in the order in which they were written
	Letters     []Letter
	DeadRecords map[uuid.UUID]int // records on the dead-letter topic, by event
	Folds       map[string]Fold
	Echoes      []Echo // from the topic, repeats included
	Samples     []Sample
	Held        int // keys and events that wait still
}

func partitionName(p int32) string { return "partition " + strconv.Itoa(int(p)) }
