package pgoutput

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Recorded from PostgreSQL 15 with proto_version 1 and binary true, for
//
//	CREATE TABLE s.t (id uuid, n bigint, b bytea, j jsonb, note text);
//	INSERT INTO s.t VALUES ('0190163d-8694-739b-aea5-966c26f8ad91', -7, NULL, '{"a": "b"}', 'ü');
const (
	recordedBegin    = "420000000001535910000303f113eeab86000002d7"
	recordedCommit   = "430000000000015359100000000001535940000303f113eeab86"
	recordedRelation = "520000400173007400640005" + // oid 16385, "s", "t", default identity, 5 columns
		"0069640000000b86ffffffff" + // id uuid 2950
		"006e0000000014ffffffff" + // n int8 20
		"00620000000011ffffffff" + // b bytea 17
		"006a0000000edaffffffff" + // j jsonb 3802
		"006e6f74650000000019ffffffff" // note text 25
	recordedInsert = "49000040014e0005" +
		"62000000100190163d8694739baea5966c26f8ad91" +
		"6200000008fffffffffffffff9" +
		"6e" +
		"620000000b017b2261223a202262227d" +
		"6200000002c3bc"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRecordedTransactionIsRead(t *testing.T) {
	begin, err := ParseBegin(unhex(t, recordedBegin))
	if err != nil {
		t.Fatal(err)
	}
	commit, err := ParseCommit(unhex(t, recordedCommit))
	if err != nil {
		t.Fatal(err)
	}
	if begin.CommitLSN != commit.CommitLSN || commit.EndLSN <= commit.CommitLSN || begin.Micros != commit.Micros || begin.XID != 727 {
		t.Errorf("begin %+v and commit %+v do not belong together", begin, commit)
	}
	relation, err := ParseRelation(unhex(t, recordedRelation))
	if err != nil {
		t.Fatal(err)
	}
	want := Relation{ID: 16385, Namespace: "s", Name: "t", Columns: []Column{
		{"id", 2950}, {"n", 20}, {"b", 17}, {"j", 3802}, {"note", 25}}}
	if diff := cmp.Diff(want, relation); diff != "" {
		t.Errorf("relation (-want +got):\n%s", diff)
	}
	var tuple Tuple
	id, err := ParseInsert(unhex(t, recordedInsert), &tuple)
	if err != nil {
		t.Fatal(err)
	}
	if id != relation.ID {
		t.Errorf("row of relation %d, want %d", id, relation.ID)
	}
	wantTuple := Tuple{
		{Data: unhex(t, "0190163d8694739baea5966c26f8ad91"), Format: FormatBinary},
		{Data: []byte{255, 255, 255, 255, 255, 255, 255, 249}, Format: FormatBinary},
		{Format: FormatNull},
		{Data: []byte("\x01{\"a\": \"b\"}"), Format: FormatBinary},
		{Data: []byte("ü"), Format: FormatBinary},
	}
	if diff := cmp.Diff(wantTuple, tuple); diff != "" {
		t.Errorf("row (-want +got):\n%s", diff)
	}
}

func TestEveryPrefixOfAMessageIsMalformed(t *testing.T) {
	var tuple Tuple
	parsers := map[string]func([]byte) error{
		recordedBegin:    func(b []byte) error { _, err := ParseBegin(b); return err },
		recordedCommit:   func(b []byte) error { _, err := ParseCommit(b); return err },
		recordedRelation: func(b []byte) error { _, err := ParseRelation(b); return err },
		recordedInsert:   func(b []byte) error { _, err := ParseInsert(b, &tuple); return err },
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
}

func TestEmptyAndNullValuesDiffer(t *testing.T) {
	message := []byte{'I', 0, 0, 0, 1, 'N', 0, 2, 'n', 'b', 0, 0, 0, 0}
	var tuple Tuple
	if _, err := ParseInsert(message, &tuple); err != nil {
		t.Fatal(err)
	}
	if tuple[0].Data != nil || tuple[1].Data == nil {
		t.Errorf("NULL gave %#v, empty gave %#v: a tombstone and an empty value must differ", tuple[0].Data, tuple[1].Data)
	}
}

func TestValueCannotReachIntoItsNeighbour(t *testing.T) {
	message := unhex(t, recordedInsert)
	var tuple Tuple
	if _, err := ParseInsert(message, &tuple); err != nil {
		t.Fatal(err)
	}
	if got, want := cap(tuple[0].Data), len(tuple[0].Data); got != want {
		t.Errorf("capacity %d beyond length %d: an append would overwrite the next column", got, want)
	}
}

func TestParsingARowAllocatesNothing(t *testing.T) {
	message := unhex(t, recordedInsert)
	var tuple Tuple
	allocations := testing.AllocsPerRun(100, func() {
		if _, err := ParseInsert(message, &tuple); err != nil {
			t.Fatal(err)
		}
	})
	// The first run grows the tuple; AllocsPerRun does one before it counts.
	if allocations != 0 {
		t.Errorf("%v allocations per row, want 0", allocations)
	}
}

func TestEnvelopesAreRead(t *testing.T) {
	body := append([]byte{'w'}, make([]byte, 24)...)
	binary.BigEndian.PutUint64(body[1:], 0x16_B374D848)
	body[24] = 9
	header, message, err := WAL(append(body, "Bxyz"...))
	if want := (Header{Start: 0x16_B374D848, Micros: 9}); err != nil || header != want || string(message) != "Bxyz" {
		t.Errorf("WAL gave %+v, %q, %v", header, message, err)
	}
	if _, _, err := WAL(body); !errors.Is(err, ErrMalformed) {
		t.Errorf("an envelope without a message: %v, want ErrMalformed", err)
	}
	alive := append([]byte{'k'}, make([]byte, 17)...)
	alive[8], alive[17] = 42, 1
	got, err := ParseKeepalive(alive)
	if want := (Keepalive{WALEnd: 42, ReplyRequested: true}); err != nil || got != want {
		t.Errorf("keepalive %+v, %v, want %+v", got, err, want)
	}
	if _, err := ParseKeepalive(alive[:17]); !errors.Is(err, ErrMalformed) {
		t.Errorf("a short keepalive: %v, want ErrMalformed", err)
	}
}

func TestStatusIsWhatTheManualSays(t *testing.T) {
	got := AppendStatus([]byte("x"), 0x1_00000002, 3, true)
	position := "\x00\x00\x00\x01\x00\x00\x00\x02"
	want := "x" + "d\x00\x00\x00\x26" + "r" + position + position + position + "\x00\x00\x00\x00\x00\x00\x00\x03" + "\x01"
	if string(got) != want {
		t.Errorf("status\n%q, want\n%q", got, want)
	}
}

func TestLSNIsPrintedAndReadAsPostgreSQLDoes(t *testing.T) {
	for text, want := range map[string]LSN{"0/0": 0, "16/B374D848": 0x16_B374D848, "FFFFFFFF/FFFFFFFF": 1<<64 - 1} {
		got, err := ParseLSN(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%s reads as %d (%v) and prints as %s", text, got, err, got)
		}
	}
	for _, text := range []string{"", "1", "1/", "/1", "1/123456789", "g/0", "-1/0"} {
		if got, err := ParseLSN(text); err == nil {
			t.Errorf("%q reads as %s, want an error", text, got)
		}
	}
}

func TestTimesGoBothWays(t *testing.T) {
	at := time.Date(2026, 11, 23, 12, 0, 0, 123456000, time.UTC)
	if got := Time(Micros(at)); !got.Equal(at) || got.Location() != time.UTC {
		t.Errorf("%s came back as %s", at, got)
	}
	if got := Time(0); !got.Equal(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("zero is %s", got)
	}
	const infinity = 1<<63 - 1
	if got := Time(infinity); got.Year() < 200_000 {
		t.Errorf("infinity wraps around to %s", got)
	}
}

// FuzzMessages holds the package to its word: no panic, ErrMalformed or a value inside the input.
func FuzzMessages(f *testing.F) {
	for _, seed := range []string{recordedBegin, recordedCommit, recordedRelation, recordedInsert} {
		f.Add(unhex(f, seed))
	}
	f.Add([]byte("Ixxxx" + "N" + "\xff\xff" + strings.Repeat("n", 20)))
	f.Fuzz(func(t *testing.T, input []byte) {
		before := bytes.Clone(input)
		check := func(err error) {
			if err != nil && !errors.Is(err, ErrMalformed) {
				t.Errorf("error %v is not ErrMalformed", err)
			}
		}
		_, _, err := WAL(input)
		check(err)
		_, err = ParseKeepalive(input)
		check(err)
		_, err = ParseBegin(input)
		check(err)
		_, err = ParseCommit(input)
		check(err)
		relation, err := ParseRelation(input)
		check(err)
		if err == nil && 10*len(relation.Columns) > len(input) {
			t.Errorf("%d columns out of %d bytes", len(relation.Columns), len(input))
		}
		var tuple Tuple
		_, err = ParseInsert(input, &tuple)
		check(err)
		if err == nil {
			if got := rebuild(input[:8], tuple); !bytes.Equal(got, input) {
				t.Errorf("the row does not add up to its message:\n%q, want\n%q", got, input)
			}
		}
		if !bytes.Equal(before, input) {
			t.Error("the input was changed")
		}
	})
}

// rebuild writes a row's message back from its values.
func rebuild(head []byte, tuple Tuple) []byte {
	b := bytes.Clone(head)
	for _, v := range tuple {
		b = append(b, byte(v.Format))
		if v.Format == FormatText || v.Format == FormatBinary {
			b = binary.BigEndian.AppendUint32(b, uint32(len(v.Data)))
			b = append(b, v.Data...)
		}
	}
	return b
}

func BenchmarkParseInsert(b *testing.B) {
	message := unhex(b, recordedInsert)
	var tuple Tuple
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseInsert(message, &tuple); err != nil {
			b.Fatal(err)
		}
	}
}
