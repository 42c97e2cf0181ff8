package relay

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"

	"converge/relay/pgoutput"
)

// row is one outbox row on its way: the record, and what its acknowledgement concerns.
type row struct {
	record  kgo.Record
	headers []kgo.RecordHeader // record.Headers; kept for its capacity
	text    [textSize]byte     // values that the row holds in binary form
	promise func(*kgo.Record, error)

	layout      *layout
	arena       *arena
	transaction *transaction
	topic       *topic
	id          eventID
	dead        bool // the record is the row's dead letter
}

// eventID is the event_id column of a row.
type eventID [16]byte

func (id eventID) String() string { return string(appendUUID(nil, id[:])) }

// textSize holds a UUID, an int64 and a time in RFC 3339 with nanoseconds.
const textSize = 36 + 20 + 35

// usualHeaders is the number of headers of an event that has a cause.
const usualHeaders = 10

// field is a column that the relay reads.
type field int

const (
	fieldEventID field = iota
	fieldTopic
	fieldAggregateType
	fieldAggregateID
	fieldAggregateVersion
	fieldEventType
	fieldContentType
	fieldPayload
	fieldHeaders
	fieldCreatedAt
	fields
)

// layout says where in a table's rows each field stands.
type layout struct {
	*shape
	table  string         // schema.table
	source []byte         // the same as a path
	index  [fields]int    // -1: the table has no such field
	types  [fields]uint32 // OIDs
	width  int
	extras []extra

	// unreadable is what is wrong with a message that does not say what the row is.
	unreadable error

	described uint32 // its place among the relations of the connection
}

// extra is a column that becomes a header.
type extra struct {
	name string
	at   int
	oid  uint32
}

// layoutOf reads a table's description. An error is a *fatalError: no reading on helps.
func (s *shape) layoutOf(r pgoutput.Relation) (*layout, error) {
	l := &layout{shape: s, table: r.Namespace + "." + r.Name, source: sourceOf(r.Namespace, r.Name), width: len(r.Columns)}
	taken := make([]bool, len(r.Columns))
	for f, want := range s.columns {
		l.index[f] = -1
		if want.name == "" {
			continue
		}
		for i, c := range r.Columns {
			if c.Name != want.name {
				continue
			}
			if oid := s.resolved(c.TypeOID); slices.Contains(want.oids, oid) {
				l.index[f], l.types[f], taken[i] = i, oid, true
				break
			}
			return nil, &fatalError{
				err: fmt.Errorf("column %s of %s has type OID %d", c.Name, l.table, c.TypeOID),
				fix: "make it a " + want.typ + ", or take the table out of the publication"}
		}
		if l.index[f] < 0 && !want.mayMiss {
			return nil, &fatalError{
				err: fmt.Errorf("%s publishes no column %s", l.table, want.name),
				fix: "add " + want.name + " " + want.typ + " to the table and the publication's column list, or take the table out of the publication"}
		}
	}
	if !s.extras {
		return l, nil
	}
	for i, c := range r.Columns {
		if taken[i] {
			continue
		}
		e := extra{c.Name, i, s.resolved(c.TypeOID)}
		if !hasText(e.oid) {
			return nil, &fatalError{
				err: fmt.Errorf("column %s of %s has type OID %d, which cannot be a header", c.Name, l.table, c.TypeOID),
				fix: "make it a text, or leave it out of the publication's column list"}
		}
		l.extras = append(l.extras, e)
	}
	return l, nil
}

// sourceOf is a table as the source of CloudEvents. That is a URI reference, so unlike other values, which the
// Kafka binding takes as UTF-8, it is percent-encoded.
func sourceOf(schema, table string) []byte {
	return []byte("/" + url.PathEscape(schema) + "/" + url.PathEscape(table))
}

// at returns the bytes of a field as they are; nil when it is NULL or the table has no such field.
func (l *layout) at(tuple pgoutput.Tuple, f field) []byte {
	if i := l.index[f]; i >= 0 {
		return tuple[i].Data
	}
	return nil
}

// topicOf returns the name of a row's topic, maybe in scratch. A record of someone else's making names its own.
func (l *layout) topicOf(scratch *[]byte, tuple pgoutput.Tuple) []byte {
	if l.index[fieldTopic] >= 0 && len(l.at(tuple, fieldEventType)) == 0 {
		return l.at(tuple, fieldTopic)
	}
	return l.topic.name(scratch, l, tuple)
}

// identity is a row's event id; an id that is no UUID stands for its digest.
func (l *layout) identity(tuple pgoutput.Tuple) (id eventID) {
	data := l.at(tuple, fieldEventID)
	if l.types[fieldEventID] != oidUUID {
		sum := sha256.Sum256(data)
		data = sum[:]
	}
	copy(id[:], data)
	return id
}

// values checks a row's shape once, so that the fields can be taken without checks.
func (l *layout) values(tuple pgoutput.Tuple) error {
	if len(tuple) != l.width {
		return fmt.Errorf("%w: %d columns in a row of %s that has %d", pgoutput.ErrMalformed, len(tuple), l.table, l.width)
	}
	for f, at := range l.index {
		if at < 0 {
			continue
		}
		switch v := tuple[at]; v.Format {
		case pgoutput.FormatNull:
			// Only the payload may be NULL; elsewhere it is the empty text, number or object.
		case pgoutput.FormatBinary:
			if size := fixedSize(l.types[f]); size > 0 && len(v.Data) != size {
				return fmt.Errorf("%w: %d bytes in column %s of %s", pgoutput.ErrMalformed, len(v.Data), l.columns[f].name, l.table)
			}
		default:
			return fmt.Errorf("%w: format %q in column %s of %s", pgoutput.ErrMalformed, byte(v.Format), l.columns[f].name, l.table)
		}
	}
	return nil
}

// fixedSize returns the size of a type's binary form, 0 if it varies.
func fixedSize(oid uint32) int {
	switch oid {
	case oidUUID:
		return 16
	case oidInt8, oidTimestamptz:
		return 8
	case oidInt4:
		return 4
	}
	return 0
}

func int64Of(v pgoutput.Value) int64 {
	if len(v.Data) != 8 {
		return 0
	}
	return int64(binary.BigEndian.Uint64(v.Data))
}

func appendUUID(dst, id []byte) []byte {
	if len(id) != 16 {
		return dst
	}
	dst = hex.AppendEncode(dst, id[0:4])
	dst = append(dst, '-')
	dst = hex.AppendEncode(dst, id[4:6])
	dst = append(dst, '-')
	dst = hex.AppendEncode(dst, id[6:8])
	dst = append(dst, '-')
	dst = hex.AppendEncode(dst, id[8:10])
	dst = append(dst, '-')
	return hex.AppendEncode(dst, id[10:16])
}

// fill makes the record of a row. Everything in it points into the row's arena, its transaction or r.
//
// A row with an event type gets the event's headers, then the members of its headers column; where
// both name one, the column of that name wins, but for occurred_at, where the emitter knows better
// than created_at. A row without is a record of someone else's making and goes out as it is; only its
// content type is added if it has one and its headers do not say.
func (l *layout) fill(r *row, tuple pgoutput.Tuple, x *transaction, known names) (err error) {
	h := heading{layout: l, tuple: tuple, x: x, known: known, text: r.text[:0], headers: r.headers[:0]}
	switch {
	case len(l.at(tuple, fieldEventType)) == 0 && !l.shape.extras:
		err = h.asItIs()
	case l.headers == HeadersCloudEvents:
		err = h.cloudEvents()
	case l.headers == HeadersDebezium:
		err = h.debezium()
	default:
		err = h.converge()
	}
	if err != nil {
		return err
	}
	key, err := l.key(&h)
	if err != nil {
		return err
	}
	r.headers = h.headers
	r.record = kgo.Record{
		Key:       key,
		Value:     l.payload(tuple),
		Headers:   h.headers,
		Timestamp: x.committed,
		Topic:     r.topic.name,
	}
	return nil
}

// key is the aggregate's id as text.
func (l *layout) key(h *heading) ([]byte, error) {
	switch oid := l.types[fieldAggregateID]; oid {
	case oidText, oidVarchar:
		return l.at(h.tuple, fieldAggregateID), nil
	default:
		return h.textOf(oid, h.tuple[l.index[fieldAggregateID]])
	}
}

// payload is the value's bytes; jsonb has its version in front.
func (l *layout) payload(tuple pgoutput.Tuple) []byte {
	data := l.at(tuple, fieldPayload)
	if l.types[fieldPayload] == oidJSONB && len(data) > 0 {
		return data[1:]
	}
	return data
}

// contentType is what the row says of its payload, or the payload's type does.
func (l *layout) contentType(tuple pgoutput.Tuple) []byte {
	if l.index[fieldContentType] >= 0 {
		return l.at(tuple, fieldContentType)
	}
	if t := l.types[fieldPayload]; t == oidJSONB || t == oidJSON {
		return contentTypeJSON
	}
	return nil
}

var contentTypeJSON = []byte("application/json")

// recordSize returns an upper bound of what a batch of this record alone takes on the wire.
func recordSize(r *kgo.Record) int {
	const batch, record, perHeader = 61, 40, 10
	size := batch + record + len(r.Key) + len(r.Value)
	for i := range r.Headers {
		size += perHeader + len(r.Headers[i].Key) + len(r.Headers[i].Value)
	}
	return size
}
