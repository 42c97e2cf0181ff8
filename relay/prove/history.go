package prove

import (
	"fmt"
	"time"

	"github.com/google/uuid"
)

// LSN is a position in the server's log, in bytes.
type LSN uint64

func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l)) }

// Outcome is what a writer knows of the transaction that a row was in.
type Outcome byte

const (
	Committed  Outcome = iota // the server said so
	RolledBack                // with the transaction or to a savepoint
	Unknown                   // the answer was lost
)

func (o Outcome) String() string { return [...]string{"committed", "rolled back", "unknown"}[o] }

// Row is one row that was inserted into an outbox.
type Row struct {
	Event    uuid.UUID
	Topic    string // where its record belongs
	Key      string
	Sequence int64 // among the committed rows of its key, from 0: one that is rolled back leaves its number to the next
	Content  uint64
	Outcome  Outcome
	// Unanswered means that the writer never heard what became of its COMMIT; Outcome is what it found when it
	// asked, Unknown if it could not.
	Unanswered bool
	// End is the end of its transaction's commit as the judge's own slot decoded it, 0 when the log holds no
	// such commit.
	End LSN
}

// happened reports whether the row was committed.
func (r *Row) happened() bool { return r.Outcome == Committed || r.Outcome == Unknown && r.End != 0 }

// Place is a partition of a topic.
type Place struct {
	Topic     string
	Partition int32
}

// Record is what a consumer received.
type Record struct {
	Event   uuid.UUID
	Place   Place
	Offset  int64
	Key     string
	Content uint64
}

// Sample is one look at the slot and, after it, at the topics.
type Sample struct {
	At        time.Duration // since the run began
	Confirmed LSN           // the slot's confirmed_flush_lsn
	// Ends are the offsets that the next records would get. What lies before them is acknowledged.
	Ends map[Place]int64
	// Epoch counts the crashes of the server: in one it may forget the latest confirmations.
	Epoch int
	// Since is set when the relay had just been asked to end and had ended well: where the topics ended some
	// time before, when it already ran. All that came since is its own, and must be confirmed.
	Since map[Place]int64
}

// History is what was done in a run and what came of it.
type History struct {
	Rows    []Row
	Records []Record // by offset within each place
	Samples []Sample // by time
	// Strangers are the events of committed rows in the log that no writer wrote.
	Strangers []uuid.UUID
	// Once means that the relay publishes exactly once: Records are the committed ones, between which offsets are
	// missing, and none may come again.
	Once bool
}
