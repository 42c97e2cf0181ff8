package pgoutput

import (
	"bytes"
	"encoding/binary"
)

// Messages of the plugin: the first byte of what [WAL] returns. The rest of the protocol (updates,
// deletes, truncates, types, origins) carries nothing for a publication of inserts
// and is skipped by its first byte.
const (
	KindBegin    = 'B'
	KindCommit   = 'C'
	KindRelation = 'R'
	KindInsert   = 'I'
)

// Begin opens a transaction. Transactions come one at a time, in the order of their commits.
type Begin struct {
	CommitLSN LSN   // position of the commit record: an identity, never a position to confirm
	Micros    int64 // when it committed, by the server's clock, see [Time]
	XID       uint32
}

// ParseBegin reads a message of [KindBegin].
func ParseBegin(message []byte) (Begin, error) {
	if len(message) != 1+8+8+4 {
		return Begin{}, malformed("begin", len(message))
	}
	return Begin{
		CommitLSN: LSN(binary.BigEndian.Uint64(message[1:])),
		Micros:    int64(binary.BigEndian.Uint64(message[9:])),
		XID:       binary.BigEndian.Uint32(message[17:]),
	}, nil
}

// Commit closes a transaction.
type Commit struct {
	CommitLSN LSN // the same as in [Begin]
	// EndLSN is the position after the commit record, the one to confirm: a server told CommitLSN
	// would send the transaction once more.
	EndLSN LSN
	Micros int64
}

// ParseCommit reads a message of [KindCommit].
func ParseCommit(message []byte) (Commit, error) {
	if len(message) != 1+1+8+8+8 {
		return Commit{}, malformed("commit", len(message))
	}
	return Commit{
		CommitLSN: LSN(binary.BigEndian.Uint64(message[2:])),
		EndLSN:    LSN(binary.BigEndian.Uint64(message[10:])),
		Micros:    int64(binary.BigEndian.Uint64(message[18:])),
	}, nil
}

// Relation describes a table. The server sends it before the first row of a table on a connection, and
// again whenever the table has changed.
type Relation struct {
	ID        uint32
	Namespace string // "" is pg_catalog
	Name      string
	Columns   []Column
}

// Column is one published column, in the order of a row's values.
type Column struct {
	Name    string
	TypeOID uint32
}

// ParseRelation reads a message of [KindRelation]. It allocates; the result shares nothing with message.
func ParseRelation(message []byte) (Relation, error) {
	bad := func() (Relation, error) { return Relation{}, malformed("relation", len(message)) }
	if len(message) < 1+4 {
		return bad()
	}
	r := Relation{ID: binary.BigEndian.Uint32(message[1:])}
	rest := message[5:]
	var ok bool
	if r.Namespace, rest, ok = cutString(rest); !ok {
		return bad()
	}
	if r.Name, rest, ok = cutString(rest); !ok {
		return bad()
	}
	if len(rest) < 1+2 { // replica identity, number of columns
		return bad()
	}
	n := int(binary.BigEndian.Uint16(rest[1:]))
	rest = rest[3:]
	const least = 1 + 1 + 4 + 4 // a column with an empty name
	if n > len(rest)/least {
		return bad()
	}
	r.Columns = make([]Column, n)
	for i := range r.Columns {
		if len(rest) < least {
			return bad()
		}
		c := &r.Columns[i]
		if c.Name, rest, ok = cutString(rest[1:]); !ok || len(rest) < 4+4 {
			return bad()
		}
		c.TypeOID = binary.BigEndian.Uint32(rest)
		rest = rest[8:]
	}
	if len(rest) != 0 {
		return bad()
	}
	return r, nil
}

func cutString(b []byte) (s string, rest []byte, ok bool) {
	end := bytes.IndexByte(b, 0)
	if end < 0 {
		return "", nil, false
	}
	return string(b[:end]), b[end+1:], true
}

// Format says how a column's value came.
type Format byte

const (
	FormatNull      Format = 'n'
	FormatUnchanged Format = 'u' // an out-of-line value that an update did not touch; never in an insert
	FormatText      Format = 't' // the type has no binary form, or binary was not asked for
	FormatBinary    Format = 'b'
)

// Value is one column of one row. Data points into the message and is nil unless Format is
// [FormatText] or [FormatBinary].
type Value struct {
	Data   []byte
	Format Format
}

// Tuple is the columns of one row. Reuse it from row to row to parse without allocating.
type Tuple []Value

// ParseInsert reads a message of [KindInsert] into tuple, whose old content is lost and whose length
// becomes the number of columns.
func ParseInsert(message []byte, tuple *Tuple) (relation uint32, err error) {
	if len(message) < 1+4+1+2 || message[5] != 'N' {
		return 0, malformed("insert", len(message))
	}
	n := int(binary.BigEndian.Uint16(message[6:]))
	rest := message[8:]
	if n > len(rest) {
		return 0, malformed("insert", len(message))
	}
	values := (*tuple)[:0]
	if cap(values) < n {
		values = make(Tuple, 0, n)
	}
	for range n {
		if len(rest) == 0 {
			return 0, malformed("insert", len(message))
		}
		v := Value{Format: Format(rest[0])}
		rest = rest[1:]
		switch v.Format {
		case FormatNull, FormatUnchanged:
		case FormatText, FormatBinary:
			if len(rest) < 4 {
				return 0, malformed("insert", len(message))
			}
			size := binary.BigEndian.Uint32(rest)
			rest = rest[4:]
			if uint64(size) > uint64(len(rest)) {
				return 0, malformed("insert", len(message))
			}
			v.Data = rest[:size:size]
			rest = rest[size:]
		default:
			return 0, malformed("insert", len(message))
		}
		values = append(values, v)
	}
	if len(rest) != 0 {
		return 0, malformed("insert", len(message))
	}
	*tuple = values
	return binary.BigEndian.Uint32(message[1:]), nil
}
