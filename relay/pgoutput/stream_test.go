package pgoutput

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Recorded from PostgreSQL 15 with proto_version 2, streaming on, binary true and messages true.
const (
	recordedStreamStart     = "53000002dc01"
	recordedStreamContinued = "53000002dc00"
	recordedStreamAbort     = "41000002dc000002dd"
	recordedStreamCommit    = "63000002dc0000000000021eac1000000000021eac48000303f7e143a050"
	recordedMessage         = "4d0100000000021eac80700000000002696e"         // "p", "in", transactional
	recordedLooseMessage    = "4d0000000000021d3a287100000000036f7574"       // "q", "out", not
	recordedStreamedMessage = "4d000002dc0100000000021d39f0700000000002696e" // as the first, in a block
)

func TestRecordedStreamIsRead(t *testing.T) {
	for text, want := range map[string]StreamStart{recordedStreamStart: {0x2dc, true}, recordedStreamContinued: {0x2dc, false}} {
		if got, err := ParseStreamStart(unhex(t, text)); err != nil || got != want {
			t.Errorf("start %+v, %v, want %+v", got, err, want)
		}
	}
	if got, err := ParseStreamAbort(unhex(t, recordedStreamAbort)); err != nil || got != (StreamAbort{0x2dc, 0x2dd}) {
		t.Errorf("abort %+v, %v", got, err)
	}
	got, err := ParseStreamCommit(unhex(t, recordedStreamCommit))
	if want := (StreamCommit{0x2dc, Commit{0x21eac10, 0x21eac48, 0x303f7e143a050}}); err != nil || got != want {
		t.Errorf("commit %+v, %v, want %+v", got, err, want)
	}
}

func TestRecordedMessagesAreRead(t *testing.T) {
	streamed := unhex(t, recordedStreamedMessage)
	xid, rest, err := CutXID(streamed)
	if err != nil || xid != 0x2dc {
		t.Fatalf("transaction %d, %v", xid, err)
	}
	for _, c := range []struct {
		message []byte
		want    Message
	}{
		{unhex(t, recordedMessage), Message{true, 0x21eac80, []byte("p"), []byte("in")}},
		{unhex(t, recordedLooseMessage), Message{false, 0x21d3a28, []byte("q"), []byte("out")}},
		{append([]byte{streamed[0]}, rest...), Message{true, 0x21d39f0, []byte("p"), []byte("in")}},
	} {
		got, err := ParseMessage(c.message)
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("message (-want +got):\n%s", diff)
		}
	}
}

func TestEveryPrefixOfAStreamedMessageIsMalformed(t *testing.T) {
	parsers := map[string]func([]byte) error{
		recordedStreamStart:  func(b []byte) error { _, err := ParseStreamStart(b); return err },
		recordedStreamAbort:  func(b []byte) error { _, err := ParseStreamAbort(b); return err },
		recordedStreamCommit: func(b []byte) error { _, err := ParseStreamCommit(b); return err },
		recordedMessage:      func(b []byte) error { _, err := ParseMessage(b); return err },
	}
	for message, parse := range parsers {
		whole := unhex(t, message)
		for n := range whole {
			if err := parse(whole[:n]); !errors.Is(err, ErrMalformed) {
				t.Errorf("%q cut to %d bytes: %v, want ErrMalformed", whole[0], n, err)
			}
		}
		if err := parse(append(whole, 0)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q with a byte too many: %v, want ErrMalformed", whole[0], err)
		}
	}
	for n := range 5 {
		if _, _, err := CutXID(unhex(t, recordedStreamedMessage)[:n]); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d bytes in a block: %v, want ErrMalformed", n, err)
		}
	}
}

func TestReadingAStreamAllocatesNothing(t *testing.T) {
	start, abort := unhex(t, recordedStreamStart), unhex(t, recordedStreamAbort)
	commit, message := unhex(t, recordedStreamCommit), unhex(t, recordedMessage)
	allocations := testing.AllocsPerRun(100, func() {
		_, err1 := ParseStreamStart(start)
		_, err2 := ParseStreamAbort(abort)
		_, err3 := ParseStreamCommit(commit)
		_, err4 := ParseMessage(message)
		_, _, err5 := CutXID(message)
		if err1 != nil || err2 != nil || err3 != nil || err4 != nil || err5 != nil {
			t.Fatal("not read")
		}
	})
	if allocations != 0 {
		t.Errorf("%v allocations, want 0", allocations)
	}
}

// FuzzStreams holds the messages of streams to the package's word.
func FuzzStreams(f *testing.F) {
	for _, seed := range []string{recordedStreamStart, recordedStreamAbort, recordedStreamCommit, recordedMessage, recordedStreamedMessage} {
		f.Add(unhex(f, seed))
	}
	f.Add([]byte("M\x01LLLLLLLLp\x00\xff\xff\xff\xffin"))
	f.Fuzz(func(t *testing.T, input []byte) {
		before := bytes.Clone(input)
		check := func(err error) {
			if err != nil && !errors.Is(err, ErrMalformed) {
				t.Errorf("error %v is not ErrMalformed", err)
			}
		}
		_, err := ParseStreamStart(input)
		check(err)
		_, err = ParseStreamAbort(input)
		check(err)
		_, err = ParseStreamCommit(input)
		check(err)
		_, rest, err := CutXID(input)
		if check(err); err == nil && len(rest) != len(input)-5 {
			t.Errorf("%d bytes of %d behind the id", len(rest), len(input))
		}
		m, err := ParseMessage(input)
		if check(err); err == nil && 1+1+8+len(m.Prefix)+1+4+len(m.Content) != len(input) {
			t.Errorf("prefix %q and content %q do not add up to %q", m.Prefix, m.Content, input)
		}
		if !bytes.Equal(before, input) {
			t.Error("the input was changed")
		}
	})
}
