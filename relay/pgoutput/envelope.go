package pgoutput

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrMalformed is in the chain of every error of this package: the bytes are not what the protocol
// says. There is no reading on from it; the connection has to be made anew.
var ErrMalformed = errors.New("malformed replication message")

func malformed(what string, n int) error {
	return fmt.Errorf("%w: %s of %d bytes", ErrMalformed, what, n)
}

// Envelopes: the first byte of a CopyData body that the server sends.
const (
	EnvelopeWAL       = 'w' // see [WAL]
	EnvelopeKeepalive = 'k' // see [ParseKeepalive]
)

// walHeader is the kind, the message's LSN, the end of WAL and the server's clock.
const walHeader = 1 + 8 + 8 + 8

// Header is what a CopyData body of kind [EnvelopeWAL] says of its message.
type Header struct {
	// Start is the position of the WAL record that the message was decoded from, 0 if it belongs to
	// none. Several rows may share one.
	Start LSN
	// Micros is the server's clock when it sent the message, see [Time].
	Micros int64
}

// WAL returns the plugin's message inside a CopyData body of kind [EnvelopeWAL].
func WAL(body []byte) (h Header, message []byte, err error) {
	if len(body) < walHeader+1 {
		return Header{}, nil, malformed("WAL envelope", len(body))
	}
	return Header{
		Start:  LSN(binary.BigEndian.Uint64(body[1:])),
		Micros: int64(binary.BigEndian.Uint64(body[17:])),
	}, body[walHeader:], nil
}

// Keepalive is the server's sign of life.
type Keepalive struct {
	// WALEnd is how far the server has decoded: every transaction that committed before it has been
	// sent already, or is not published.
	WALEnd LSN
	// Micros is the server's clock, see [Time].
	Micros int64
	// ReplyRequested asks for a status at once; the server disconnects if none comes in time.
	ReplyRequested bool
}

// ParseKeepalive reads a CopyData body of kind [EnvelopeKeepalive].
func ParseKeepalive(body []byte) (Keepalive, error) {
	if len(body) != 1+8+8+1 {
		return Keepalive{}, malformed("keepalive", len(body))
	}
	return Keepalive{
		WALEnd:         LSN(binary.BigEndian.Uint64(body[1:])),
		Micros:         int64(binary.BigEndian.Uint64(body[9:])),
		ReplyRequested: body[17] != 0,
	}, nil
}

// AppendStatus appends a whole CopyData message that tells the server that everything before position
// is flushed: the server may discard the WAL that leads up to it and will never send it again. micros
// is the client's clock, see [Micros]; replyRequested asks the server for a keepalive at once.
func AppendStatus(dst []byte, position LSN, micros int64, replyRequested bool) []byte {
	const body = 1 + 8 + 8 + 8 + 8 + 1
	dst = append(dst, 'd')
	dst = binary.BigEndian.AppendUint32(dst, 4+body)
	dst = append(dst, 'r')
	dst = binary.BigEndian.AppendUint64(dst, uint64(position)) // written
	dst = binary.BigEndian.AppendUint64(dst, uint64(position)) // flushed: the one that counts
	dst = binary.BigEndian.AppendUint64(dst, uint64(position)) // applied
	dst = binary.BigEndian.AppendUint64(dst, uint64(micros))
	if replyRequested {
		return append(dst, 1)
	}
	return append(dst, 0)
}
