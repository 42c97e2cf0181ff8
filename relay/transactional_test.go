package relay

import (
	"testing"
	"time"

	"converge/relay/pgoutput"
)

// covering is a session that begins behind a checkpoint.
func covering(confirmed, open pgoutput.LSN, ordinal int64) *transactional {
	start := checkpoint{Confirmed: confirmed, Open: open, Ordinal: ordinal}
	return &transactional{start: start, next: start}
}

// TestWhatACheckpointCoversIsSkippedToTheRow: a session's stream begins before its checkpoint. A commit record
// that lies exactly at the confirmed position is the first that is not covered: another transaction's record
// may follow the one before it without a byte between.
func TestWhatACheckpointCoversIsSkippedToTheRow(t *testing.T) {
	for name, c := range map[string]struct {
		open   pgoutput.LSN
		commit pgoutput.LSN
		want   int64
	}{
		"committed before":             {commit: 99, want: unsettled},
		"committed at the end":         {commit: 100, want: 0},
		"committed behind":             {commit: 101, want: 0},
		"in the middle":                {open: 120, commit: 120, want: 7},
		"behind the one in the middle": {open: 120, commit: 130, want: 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got := covering(100, c.open, 7).opened(c.commit); got != c.want {
				t.Errorf("%d rows are skipped, want %d", got, c.want)
			}
		})
	}
}

// TestReadingWhatIsCoveredKeepsTheCheckpoint: a session that dies before it gets to anything new must leave
// the next one the same place to go on from.
func TestReadingWhatIsCoveredKeepsTheCheckpoint(t *testing.T) {
	x := covering(100, 120, 7)
	same := func(when string) {
		t.Helper()
		if x.next.Confirmed != 100 || x.next.Open != 120 || x.next.Ordinal != 7 {
			t.Fatalf("%s the checkpoint is %s, %s, %d; want 100, 120 and 7", when, x.next.Confirmed, x.next.Open, x.next.Ordinal)
		}
	}
	x.idle(80)
	same("after a keepalive")
	x.opened(90)
	same("inside a covered transaction")
	x.closed(95, time.Time{})
	same("behind a covered transaction")
	x.opened(120)
	same("inside the open transaction")
	x.closed(125, time.Unix(1, 0))
	if x.next.Confirmed != 125 || x.next.Open != 0 || x.next.Ordinal != 0 || x.next.Covered.IsZero() {
		t.Errorf("behind the open transaction the checkpoint is %+v", x.next)
	}
}
