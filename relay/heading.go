package relay

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/relay/pgoutput"
)

// The headers of an event's record, as converge names them. Members of the headers column have these names too,
// whatever they become.
const (
	headerEventID          = "event_id"
	headerEventType        = "event_type"
	headerAggregateType    = "aggregate_type"
	headerAggregateVersion = "aggregate_version"
	headerOccurredAt       = "occurred_at"
	headerCommittedAt      = "committed_at"
	headerContentType      = "content-type"
)

// heading makes the headers of one row's record.
type heading struct {
	*layout
	tuple   pgoutput.Tuple
	x       *transaction
	known   names
	text    []byte // holds values that the row has in binary form
	headers []kgo.RecordHeader
}

func (h *heading) add(name string, value []byte) { h.headers = append(h.headers, header(name, value)) }

// asItIs is for a record of someone else's making.
func (h *heading) asItIs() error {
	hasContentType := false
	if err := h.members(func(name string, value []byte) {
		hasContentType = hasContentType || name == headerContentType
		h.add(name, value)
	}); err != nil {
		return err
	}
	if contentType := h.contentType(h.tuple); len(contentType) > 0 && !hasContentType {
		h.add(headerContentType, contentType)
	}
	return nil
}

func (h *heading) converge() error {
	id, err := h.id()
	if err != nil {
		return err
	}
	h.add(headerEventID, id)
	if eventType := h.at(h.tuple, fieldEventType); len(eventType) > 0 {
		h.add(headerEventType, eventType)
	}
	h.add(headerAggregateType, h.at(h.tuple, fieldAggregateType))
	if version := h.version(); version != nil {
		h.add(headerAggregateVersion, version)
	}
	h.add(headerCommittedAt, h.x.committedAt)
	contentType := h.contentType(h.tuple)
	hasOccurred, hasContentType := false, false
	if err := h.members(func(name string, value []byte) {
		switch name {
		case headerOccurredAt:
			hasOccurred = true
		case headerContentType:
			if len(contentType) > 0 {
				return
			}
			hasContentType = true
		case headerEventID, headerEventType, headerAggregateType, headerAggregateVersion, headerCommittedAt:
			return
		}
		h.add(name, value)
	}); err != nil {
		return err
	}
	if created := h.created(); !hasOccurred && created != nil {
		h.add(headerOccurredAt, created)
	}
	if len(contentType) > 0 && !hasContentType {
		h.add(headerContentType, contentType)
	}
	return h.placed()
}

// The names of CloudEvents 1.0 in the binary mode of its Kafka binding: attributes as ce_ headers whose values
// are their canonical texts, datacontenttype as content-type. Names of extensions are made of a-z and 0-9;
// traceparent and tracestate are those of the Distributed Tracing extension.
const (
	ceSpecVersion      = "ce_specversion"
	ceID               = "ce_id"
	ceSource           = "ce_source"
	ceType             = "ce_type"
	ceSubject          = "ce_subject"
	ceTime             = "ce_time"
	ceAggregateType    = "ce_aggregatetype"
	ceAggregateVersion = "ce_aggregateversion"
	ceCommittedAt      = "ce_committedat"
)

var (
	specVersion = []byte("1.0")
	// ceNames are what members of the headers column are called as attributes.
	ceNames = map[string]string{
		"correlation_id": "ce_correlationid",
		"causation_id":   "ce_causationid",
		"traceparent":    "ce_traceparent",
		"tracestate":     "ce_tracestate",
	}
)

// ceOwn are the attributes that the relay makes of a row, and what a binary event cannot have.
var ceOwn = map[string]bool{ceSpecVersion: true, ceID: true, ceSource: true, ceType: true, ceSubject: true, ceTime: true,
	ceAggregateType: true, ceAggregateVersion: true, ceCommittedAt: true, "ce_data": true, "ce_datacontenttype": true}

func (h *heading) cloudEvents() error {
	id, err := h.id()
	if err != nil {
		return err
	}
	key, err := h.key(h)
	if err != nil {
		return err
	}
	h.add(ceSpecVersion, specVersion)
	h.add(ceID, id)
	h.add(ceSource, h.source)
	eventType := h.at(h.tuple, fieldEventType)
	if len(eventType) == 0 {
		eventType = h.at(h.tuple, fieldAggregateType) // every CloudEvent has a type; a table may have none
	}
	h.add(ceType, eventType)
	if len(key) > 0 { // an attribute is never empty
		h.add(ceSubject, key)
	}
	if aggregate := h.at(h.tuple, fieldAggregateType); len(aggregate) > 0 {
		h.add(ceAggregateType, aggregate)
	}
	if version := h.version(); version != nil {
		h.add(ceAggregateVersion, version)
	}
	h.add(ceCommittedAt, h.x.committedAt)
	occurred, contentType := h.created(), h.contentType(h.tuple)
	if err := h.members(func(name string, value []byte) {
		switch name {
		case headerOccurredAt:
			if isTime(value) { // else the attribute would be none
				occurred = value
			}
		case headerContentType:
			if len(contentType) == 0 {
				contentType = value
			}
		case headerEventID, headerEventType, headerAggregateType, headerAggregateVersion, headerCommittedAt:
		default:
			attribute, ok := ceNames[name]
			if !ok && ceOwn[name] {
				return
			}
			if !ok {
				h.add(name, value) // a header beside the event
			} else if len(value) > 0 {
				h.add(attribute, value)
			}
		}
	}); err != nil {
		return err
	}
	if occurred == nil {
		occurred = h.x.committedAt
	}
	h.add(ceTime, occurred)
	if len(contentType) > 0 {
		h.add(headerContentType, contentType)
	}
	return h.placed()
}

// The names of Debezium's outbox event router; eventType is its documentation's example for placing the type.
const (
	dbzID        = "id"
	dbzEventType = "eventType"
)

// debezium writes what the router writes for its own table: the id, and columns that are placed, the type among
// them, without which nobody could tell events apart. A table of converge's is as if its event_type, aggregate_version and the members of its headers were placed.
func (h *heading) debezium() error {
	id, err := h.id()
	if err != nil {
		return err
	}
	h.add(dbzID, id)
	if eventType := h.at(h.tuple, fieldEventType); len(eventType) > 0 {
		h.add(dbzEventType, eventType)
	}
	if h.shape.extras {
		return h.placed()
	}
	if version := h.version(); version != nil {
		h.add(headerAggregateVersion, version)
	}
	hasContentType := false
	if err := h.members(func(name string, value []byte) {
		switch name {
		case headerContentType:
			hasContentType = true
		case dbzID, dbzEventType, headerAggregateVersion:
			return
		}
		h.add(name, value)
	}); err != nil {
		return err
	}
	if contentType := h.contentType(h.tuple); len(contentType) > 0 && !hasContentType {
		h.add(headerContentType, contentType)
	}
	return nil
}

// placed adds the columns that become headers; NULL is no header.
func (h *heading) placed() error {
	for _, e := range h.extras {
		v := h.tuple[e.at]
		if v.Format == pgoutput.FormatNull {
			continue
		}
		if h.own(e.name) {
			continue
		}
		text, err := h.textOf(e.oid, v)
		if err != nil {
			return fmt.Errorf("column %s: %w", e.name, err)
		}
		h.add(e.name, text)
	}
	return nil
}

// own reports whether the relay itself says what a header of the name is: what a row's further columns say must
// not pass for the event's identity.
func (h *heading) own(name string) bool {
	switch h.shape.headers {
	case HeadersCloudEvents:
		return ceOwn[name]
	case HeadersConverge:
		switch name {
		case headerEventID, headerEventType, headerAggregateType, headerCommittedAt:
			return true
		}
	}
	return false
}

// isTime reports whether text is what CloudEvents calls a timestamp.
func isTime(text []byte) bool {
	var t time.Time
	return t.UnmarshalText(text) == nil
}

// members calls visit for every member of the headers column.
func (h *heading) members(visit func(name string, value []byte)) error {
	doc, err := headersText(h.at(h.tuple, fieldHeaders))
	if err != nil || doc == nil {
		return err
	}
	members, err := openObject(doc)
	for err == nil {
		var key, value []byte
		var more bool
		if key, value, more, err = members.member(); !more {
			break
		}
		visit(h.known.of(key), value)
	}
	return err
}

// id is the event's id as text.
func (h *heading) id() ([]byte, error) {
	return h.textOf(h.types[fieldEventID], h.tuple[h.index[fieldEventID]])
}

// version is the aggregate's version as text, nil in a table without.
func (h *heading) version() []byte {
	i := h.index[fieldAggregateVersion]
	if i < 0 {
		return nil
	}
	start := len(h.text)
	h.text = strconv.AppendInt(h.text, int64Of(h.tuple[i]), 10)
	return h.text[start:]
}

// created is when the row was made, nil in a table that does not say.
func (h *heading) created() []byte {
	i := h.index[fieldCreatedAt]
	if i < 0 {
		return nil
	}
	start := len(h.text)
	h.text = pgoutput.Time(int64Of(h.tuple[i])).AppendFormat(h.text, time.RFC3339Nano)
	return h.text[start:]
}

// values that have a text of their own are converted by the driver's codecs.
var typeMap = pgtype.NewMap()

// hasText reports whether values of a type can be written as text.
func hasText(oid uint32) bool {
	_, ok := typeMap.TypeForOID(oid)
	return ok
}

// textOf returns a value as text: as it is where the binary form is the text, times in RFC 3339 in UTC, bytes as
// they are, all else as PostgreSQL prints it.
func (h *heading) textOf(oid uint32, v pgoutput.Value) ([]byte, error) {
	if v.Format != pgoutput.FormatBinary {
		return v.Data, nil
	}
	start := len(h.text)
	switch oid {
	case oidText, oidVarchar, oidBPChar, oidJSON, oidBytea:
		return v.Data, nil
	case oidJSONB:
		return v.Data[min(1, len(v.Data)):], nil
	case oidUUID:
		h.text = appendUUID(h.text, v.Data)
		return h.text[start:], nil
	case oidBool:
		return strconv.AppendBool(nil, len(v.Data) == 1 && v.Data[0] != 0), nil
	case oidInt2, oidInt4, oidInt8:
		n := int64(0)
		for i, b := range v.Data {
			if n = n<<8 | int64(b); i == 0 {
				n = int64(int8(b))
			}
		}
		h.text = strconv.AppendInt(h.text, n, 10)
		return h.text[start:], nil
	case oidTimestamptz:
		if len(v.Data) == 8 {
			switch int64Of(v) {
			case math.MaxInt64:
				return []byte("infinity"), nil
			case math.MinInt64:
				return []byte("-infinity"), nil
			}
			h.text = pgoutput.Time(int64Of(v)).AppendFormat(h.text, time.RFC3339Nano)
			return h.text[start:], nil
		}
	}
	t, ok := typeMap.TypeForOID(oid)
	if !ok {
		return nil, fmt.Errorf("writing a value of type OID %d as text: %w", oid, errHeaders)
	}
	value, err := t.Codec.DecodeValue(typeMap, oid, pgtype.BinaryFormatCode, v.Data)
	if err != nil {
		return nil, fmt.Errorf("reading a value: %w", err)
	}
	text, err := typeMap.Encode(oid, pgtype.TextFormatCode, value, nil)
	if err != nil {
		return nil, fmt.Errorf("writing a value as text: %w", err)
	}
	return text, nil
}
