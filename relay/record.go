package relay

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"converge/relay/pgoutput"
)

// The headers of an event's record, as ARCHITECTURE names them on the wire.
const (
	headerEventID          = "event_id"
	headerEventType        = "event_type"
	headerAggregateType    = "aggregate_type"
	headerAggregateVersion = "aggregate_version"
	headerOccurredAt       = "occurred_at"
	headerCommittedAt      = "committed_at"
	headerContentType      = "content-type"
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

// Type OIDs of pg_type; they are the same in every database.
const (
	oidBytea       = 17
	oidInt8        = 20
	oidText        = 25
	oidVarchar     = 1043
	oidTimestamptz = 1184
	oidUUID        = 2950
	oidJSONB       = 3802
)

// columns is what an outbox table must have.
var columns = [fields]struct {
	name string
	typ  string
	oid  uint32
}{
	fieldEventID:          {"event_id", "uuid", oidUUID},
	fieldTopic:            {"topic", "text", oidText},
	fieldAggregateType:    {"aggregate_type", "text", oidText},
	fieldAggregateID:      {"aggregate_id", "text", oidText},
	fieldAggregateVersion: {"aggregate_version", "bigint", oidInt8},
	fieldEventType:        {"event_type", "text", oidText},
	fieldContentType:      {"content_type", "text", oidText},
	fieldPayload:          {"payload", "bytea", oidBytea},
	fieldHeaders:          {"headers", "jsonb", oidJSONB},
	fieldCreatedAt:        {"created_at", "timestamptz", oidTimestamptz},
}

// columnList is the columns' names as a publication lists them.
func columnList() string {
	list := make([]string, fields)
	for i, c := range columns {
		list[i] = c.name
	}
	return strings.Join(list, ", ")
}

// layout says where in a table's rows each field stands.
type layout struct {
	table string // schema.table
	index [fields]int
	width int
}

// layoutOf reads a table's description. An error is a *fatalError: no reading on helps.
func layoutOf(r pgoutput.Relation) (*layout, error) {
	l := &layout{table: r.Namespace + "." + r.Name, width: len(r.Columns)}
	for f, want := range columns {
		l.index[f] = -1
		for i, c := range r.Columns {
			if c.Name != want.name {
				continue
			}
			if c.TypeOID != want.oid && !(want.oid == oidText && c.TypeOID == oidVarchar) {
				return nil, &fatalError{
					err: fmt.Errorf("column %s of %s has type OID %d", c.Name, l.table, c.TypeOID),
					fix: "make it a " + want.typ + ", or take the table out of the publication"}
			}
			l.index[f] = i
		}
		if l.index[f] < 0 {
			return nil, &fatalError{
				err: fmt.Errorf("%s publishes no column %s", l.table, want.name),
				fix: "add " + want.name + " " + want.typ + " to the table and the publication's column list, or take the table out of the publication"}
		}
	}
	return l, nil
}

// values checks a row's shape once, so that the fields can be taken without checks.
func (l *layout) values(tuple pgoutput.Tuple) error {
	if len(tuple) != l.width {
		return fmt.Errorf("%w: %d columns in a row of %s that has %d", pgoutput.ErrMalformed, len(tuple), l.table, l.width)
	}
	for f, at := range l.index {
		switch v := tuple[at]; v.Format {
		case pgoutput.FormatNull:
			// Only the payload may be NULL; elsewhere it is the empty text, number or object.
		case pgoutput.FormatBinary:
			if size := fixedSize(field(f)); size > 0 && len(v.Data) != size {
				return fmt.Errorf("%w: %d bytes in column %s of %s", pgoutput.ErrMalformed, len(v.Data), columns[f].name, l.table)
			}
		default:
			return fmt.Errorf("%w: format %q in column %s of %s", pgoutput.ErrMalformed, byte(v.Format), columns[f].name, l.table)
		}
	}
	return nil
}

// fixedSize returns the size of a field's binary form, 0 if it varies.
func fixedSize(f field) int {
	switch f {
	case fieldEventID:
		return 16
	case fieldAggregateVersion, fieldCreatedAt:
		return 8
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
func (l *layout) fill(r *row, tuple pgoutput.Tuple, x *transaction, known names) error {
	at := func(f field) pgoutput.Value { return tuple[l.index[f]] }
	contentType := at(fieldContentType).Data
	eventType := at(fieldEventType).Data
	isEvent := len(eventType) > 0
	text := r.text[:0]
	headers := r.headers[:0]
	if isEvent {
		text = appendUUID(text, at(fieldEventID).Data)
		id := text
		text = strconv.AppendInt(text, int64Of(at(fieldAggregateVersion)), 10)
		headers = append(headers, header(headerEventID, id), header(headerEventType, eventType),
			header(headerAggregateType, at(fieldAggregateType).Data),
			header(headerAggregateVersion, text[len(id):]),
			header(headerCommittedAt, x.committedAt))
	}
	hasOccurred, hasContentType := false, false
	doc, err := headersText(at(fieldHeaders).Data)
	if err != nil {
		return err
	}
	if doc != nil {
		members, err := openObject(doc)
		for err == nil {
			var key, value []byte
			var more bool
			if key, value, more, err = members.member(); !more {
				break
			}
			name := known.of(key)
			switch name {
			case headerOccurredAt:
				hasOccurred = true
			case headerContentType:
				if isEvent && len(contentType) > 0 {
					continue
				}
				hasContentType = true
			case headerEventID, headerEventType, headerAggregateType, headerAggregateVersion, headerCommittedAt:
				if isEvent {
					continue
				}
			}
			headers = append(headers, header(name, value))
		}
		if err != nil {
			return err
		}
	}
	if isEvent && !hasOccurred {
		start := len(text)
		text = pgoutput.Time(int64Of(at(fieldCreatedAt))).AppendFormat(text, time.RFC3339Nano)
		headers = append(headers, header(headerOccurredAt, text[start:]))
	}
	if len(contentType) > 0 && !hasContentType {
		headers = append(headers, header(headerContentType, contentType))
	}
	r.headers = headers
	r.record = kgo.Record{
		Key:       at(fieldAggregateID).Data,
		Value:     at(fieldPayload).Data,
		Headers:   headers,
		Timestamp: x.committed,
		Topic:     r.topic.name,
	}
	return nil
}

// recordSize returns an upper bound of what a batch of this record alone takes on the wire.
func recordSize(r *kgo.Record) int {
	const batch, record, perHeader = 61, 40, 10
	size := batch + record + len(r.Key) + len(r.Value)
	for i := range r.Headers {
		size += perHeader + len(r.Headers[i].Key) + len(r.Headers[i].Value)
	}
	return size
}
