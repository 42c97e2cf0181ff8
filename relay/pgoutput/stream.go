package pgoutput

import (
	"bytes"
	"encoding/binary"
)

// Messages of protocol version 2 with streaming on: the server sends a transaction that outgrows its
// logical_decoding_work_mem before it ends, in blocks between [KindStreamStart] and [KindStreamStop], of
// which each belongs to one transaction. What stands in a block carries the id of its transaction or
// subtransaction, see [CutXID]. Blocks of several transactions take turns, and whole transactions
// ([Begin] to [Commit]) stand between them.
const (
	KindStreamStart  = 'S'
	KindStreamStop   = 'E' // ends a block; it says nothing more
	KindStreamAbort  = 'A'
	KindStreamCommit = 'c'
	// KindMessage is what pg_logical_emit_message wrote, in or outside a transaction.
	KindMessage = 'M'
)

// StreamStart begins a block.
type StreamStart struct {
	XID   uint32 // of the whole transaction
	First bool   // there was no block of it before
}

// ParseStreamStart reads a message of [KindStreamStart].
func ParseStreamStart(message []byte) (StreamStart, error) {
	if len(message) != 1+4+1 {
		return StreamStart{}, malformed("stream start", len(message))
	}
	return StreamStart{XID: binary.BigEndian.Uint32(message[1:]), First: message[5] == 1}, nil
}

// StreamAbort takes back what was sent of a subtransaction, or of a whole transaction if both ids are the
// same. Of subtransactions that lie in each other, each is taken back by a message of its own.
type StreamAbort struct {
	XID, Sub uint32
}

// ParseStreamAbort reads a message of [KindStreamAbort].
func ParseStreamAbort(message []byte) (StreamAbort, error) {
	if len(message) != 1+4+4 {
		return StreamAbort{}, malformed("stream abort", len(message))
	}
	return StreamAbort{XID: binary.BigEndian.Uint32(message[1:]), Sub: binary.BigEndian.Uint32(message[5:])}, nil
}

// StreamCommit ends a transaction that was sent in blocks. It comes in the order of the commits.
type StreamCommit struct {
	XID uint32
	Commit
}

// ParseStreamCommit reads a message of [KindStreamCommit].
func ParseStreamCommit(message []byte) (StreamCommit, error) {
	if len(message) != 1+4+1+8+8+8 {
		return StreamCommit{}, malformed("stream commit", len(message))
	}
	return StreamCommit{XID: binary.BigEndian.Uint32(message[1:]), Commit: Commit{
		CommitLSN: LSN(binary.BigEndian.Uint64(message[6:])),
		EndLSN:    LSN(binary.BigEndian.Uint64(message[14:])),
		Micros:    int64(binary.BigEndian.Uint64(message[22:])),
	}}, nil
}

// CutXID takes the id out of a message that stands in a block: the message is its first byte and rest, as
// it would have come outside.
func CutXID(message []byte) (xid uint32, rest []byte, err error) {
	if len(message) < 1+4 {
		return 0, nil, malformed("streamed message", len(message))
	}
	return binary.BigEndian.Uint32(message[1:]), message[5:], nil
}

// Message is what a call of pg_logical_emit_message wrote. Its slices point into the message.
type Message struct {
	// Transactional means that it came with its transaction's commit. One that is not is sent as soon as it
	// is decoded, whatever becomes of the transaction that wrote it, and stands outside of all.
	Transactional bool
	LSN           LSN // where it lies in the WAL
	Prefix        []byte
	Content       []byte
}

// ParseMessage reads a message of [KindMessage].
func ParseMessage(message []byte) (Message, error) {
	const head = 1 + 1 + 8
	if len(message) < head {
		return Message{}, malformed("logical message", len(message))
	}
	m := Message{Transactional: message[1]&1 != 0, LSN: LSN(binary.BigEndian.Uint64(message[2:]))}
	rest := message[head:]
	end := bytes.IndexByte(rest, 0)
	if end < 0 || len(rest) < end+1+4 {
		return Message{}, malformed("logical message", len(message))
	}
	m.Prefix = rest[:end:end]
	rest = rest[end+1:]
	if uint64(binary.BigEndian.Uint32(rest)) != uint64(len(rest)-4) {
		return Message{}, malformed("logical message", len(message))
	}
	m.Content = rest[4:len(rest):len(rest)]
	return m, nil
}
