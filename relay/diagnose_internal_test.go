package relay

import (
	"errors"
	"testing"
)

// TestWhatTheServerHasLeftIsJudged: settings of a whole server, which a test cannot change beside others.
func TestWhatTheServerHasLeftIsJudged(t *testing.T) {
	good := serverState{version: 150000, walLevel: "logical", keepSize: "8GB", slots: 10, slotsLeft: 1, senders: 10, sendersLeft: 2, mayReplicate: true}
	for name, c := range map[string]struct {
		change func(*serverState)
		check  func(serverState) error
		want   Level
	}{
		"good slots":             {check: func(s serverState) error { return s.checkSlotsLeft(false) }, want: OK},
		"no slot left":           {change: func(s *serverState) { s.slotsLeft = 0 }, check: func(s serverState) error { return s.checkSlotsLeft(false) }, want: Fail},
		"no slot left, ours is":  {change: func(s *serverState) { s.slotsLeft = 0 }, check: func(s serverState) error { return s.checkSlotsLeft(true) }, want: OK},
		"good senders":           {check: func(s serverState) error { return s.checkSendersLeft(false) }, want: OK},
		"one sender":             {change: func(s *serverState) { s.sendersLeft = 1 }, check: func(s serverState) error { return s.checkSendersLeft(false) }, want: Warn},
		"no sender":              {change: func(s *serverState) { s.sendersLeft = 0 }, check: func(s serverState) error { return s.checkSendersLeft(false) }, want: Fail},
		"no sender but ours":     {change: func(s *serverState) { s.sendersLeft = 0 }, check: func(s serverState) error { return s.checkSendersLeft(true) }, want: Warn},
		"one sender beside ours": {change: func(s *serverState) { s.sendersLeft = 1 }, check: func(s serverState) error { return s.checkSendersLeft(true) }, want: OK},
		"no bound of WAL":        {change: func(s *serverState) { s.keepSize = "-1" }, check: serverState.checkKeepSize, want: Warn},
		"a bound of WAL":         {check: serverState.checkKeepSize, want: OK},
		"wal_level replica":      {change: func(s *serverState) { s.walLevel = "replica" }, check: serverState.checkWALLevel, want: Fail},
		"PostgreSQL 13":          {change: func(s *serverState) { s.version = 130012 }, check: serverState.checkVersion, want: Fail},
		"a standby":              {change: func(s *serverState) { s.standby = true }, check: serverState.checkPrimary, want: Fail},
		"about to be lost":       {check: func(serverState) error { return slotState{exists: true, walStatus: "unreserved"}.checkRoom() }, want: Warn},
		"retaining more":         {check: func(serverState) error { return slotState{exists: true, walStatus: "extended"}.checkRoom() }, want: OK},
		"lost": {check: func(serverState) error {
			return slotState{exists: true, logical: true, walStatus: "lost"}.check("x", false)
		}, want: Fail},
	} {
		t.Run(name, func(t *testing.T) {
			s := good
			if c.change != nil {
				c.change(&s)
			}
			x := &examination{}
			x.note(name, c.check(s), "as it should be")
			if got := x.findings[0]; got.Level != c.want {
				t.Errorf("found %+v, want %s", got, c.want)
			}
		})
	}
}

func TestAnErrorOfManyLinesIsFoundOnOne(t *testing.T) {
	x := &examination{}
	x.note("database", errors.New("no answer:\n\trefused\n\trefused\n\tlate"), "")
	if got, want := x.findings[0].Found, "no answer: refused late"; got != want {
		t.Errorf("found %q, want %q", got, want)
	}
}
