package relay

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"converge/relay/pgoutput"
)

// Preset says what the columns of the outbox tables are called and hold.
type Preset string

const (
	// PresetConverge is a table with event_id, topic, aggregate_type, aggregate_id, aggregate_version,
	// event_type, content_type, payload, headers and created_at. It is the default.
	PresetConverge Preset = "converge"
	// PresetDebezium is the table that Debezium's outbox event router reads by default: id, aggregatetype,
	// aggregateid, type and payload. Every other column becomes a header of its name.
	PresetDebezium Preset = "debezium"
)

// Headers says what the headers of a record are called.
type Headers string

const (
	// HeadersConverge is event_id, event_type and so on. It is the default of [PresetConverge].
	HeadersConverge Headers = "converge"
	// HeadersCloudEvents is the binary mode of CloudEvents 1.0 in Kafka: ce_id, ce_type and so on.
	HeadersCloudEvents Headers = "cloudevents"
	// HeadersDebezium is what Debezium's outbox event router writes: id, and eventType for an outbox that is
	// not Debezium's. It is the default of [PresetDebezium].
	HeadersDebezium Headers = "debezium"
)

// shape is how rows become records.
type shape struct {
	columns *[fields]column
	extras  bool // other columns become headers
	headers Headers
	topic   template
	// types are the user's own: OID to that of the built-in type whose binary form they have.
	types map[uint32]uint32
}

// column is what a field must be in the table; without a name the table has no such field.
type column struct {
	name    string
	typ     string   // for people
	oids    []uint32 // that it may have
	mayMiss bool
}

// Type OIDs of pg_type; they are the same in every database.
const (
	oidBool        = 16
	oidBytea       = 17
	oidInt8        = 20
	oidInt2        = 21
	oidInt4        = 23
	oidText        = 25
	oidJSON        = 114
	oidBPChar      = 1042
	oidVarchar     = 1043
	oidTimestamptz = 1184
	oidUUID        = 2950
	oidJSONB       = 3802
)

var textual = []uint32{oidText, oidVarchar}

var convergeColumns = [fields]column{
	fieldEventID:          {name: "event_id", typ: "uuid", oids: []uint32{oidUUID}},
	fieldTopic:            {name: "topic", typ: "text", oids: textual},
	fieldAggregateType:    {name: "aggregate_type", typ: "text", oids: textual},
	fieldAggregateID:      {name: "aggregate_id", typ: "text", oids: textual},
	fieldAggregateVersion: {name: "aggregate_version", typ: "bigint", oids: []uint32{oidInt8}},
	fieldEventType:        {name: "event_type", typ: "text", oids: textual},
	fieldContentType:      {name: "content_type", typ: "text", oids: textual},
	fieldPayload:          {name: "payload", typ: "bytea", oids: []uint32{oidBytea}},
	fieldHeaders:          {name: "headers", typ: "jsonb", oids: []uint32{oidJSONB}},
	fieldCreatedAt:        {name: "created_at", typ: "timestamptz", oids: []uint32{oidTimestamptz}},
}

var debeziumColumns = [fields]column{
	fieldEventID:       {name: "id", typ: "uuid", oids: []uint32{oidUUID, oidText, oidVarchar}},
	fieldAggregateType: {name: "aggregatetype", typ: "varchar(255)", oids: textual},
	fieldAggregateID:   {name: "aggregateid", typ: "varchar(255)", oids: []uint32{oidText, oidVarchar, oidUUID, oidInt4, oidInt8}},
	fieldEventType:     {name: "type", typ: "varchar(255)", oids: textual, mayMiss: true}, // the router does not read it
	fieldPayload:       {name: "payload", typ: "jsonb", oids: []uint32{oidJSONB, oidJSON, oidText, oidVarchar, oidBytea}},
}

// Where records go when nobody says: the row says itself, or as the event router does it.
const (
	convergeTopic = "{topic}"
	debeziumTopic = "outbox.event.{aggregatetype}"
	routedTopic   = "outbox.event.{aggregate_type}"
)

// withShape fills in the defaults of the preset and reads the template.
func (c *Config) withShape() (s shape, err error) {
	switch c.Preset {
	case "", PresetConverge:
		c.Preset = PresetConverge
		s.columns = &convergeColumns
	case PresetDebezium:
		s.columns, s.extras = &debeziumColumns, true
	default:
		return s, fmt.Errorf("preset %q is not %q or %q", c.Preset, PresetConverge, PresetDebezium)
	}
	if c.Headers == "" {
		c.Headers = Headers(c.Preset) // they are named alike
	}
	if !slices.Contains([]Headers{HeadersConverge, HeadersCloudEvents, HeadersDebezium}, c.Headers) {
		return s, fmt.Errorf("headers %q is not %q, %q or %q", c.Headers, HeadersConverge, HeadersCloudEvents, HeadersDebezium)
	}
	s.headers = c.Headers
	switch {
	case c.Topic != "":
	case c.Preset == PresetDebezium:
		c.Topic = debeziumTopic
	case c.Headers == HeadersDebezium:
		c.Topic = routedTopic
	default:
		c.Topic = convergeTopic
	}
	s.topic, err = s.template(c.Topic)
	return s, err
}

// columnList is the columns' names as a publication lists them, "" for all that a table has.
func (s *shape) columnList() string {
	if s.extras {
		return ""
	}
	var list []string
	for _, c := range s.columns {
		if c.name != "" {
			list = append(list, c.name)
		}
	}
	return strings.Join(list, ", ")
}

// template makes a topic's name of a row.
type template struct {
	text  string
	parts []part
}

// part is a literal, or the value of a field.
type part struct {
	literal string
	field   field // when literal is ""
}

// template reads text with the names of columns in braces.
func (s *shape) template(text string) (t template, err error) {
	t.text = text
	for rest := text; rest != ""; {
		literal, after, found := strings.Cut(rest, "{")
		if strings.Contains(literal, "}") {
			return t, fmt.Errorf("topic %q has a } without a {", text)
		}
		if literal != "" && !validTopic([]byte("x"+literal)) {
			return t, fmt.Errorf("the topic %q: %q cannot stand in a topic's name", text, literal)
		}
		if literal != "" {
			t.parts = append(t.parts, part{literal: literal})
		}
		if !found {
			break
		}
		name, behind, closed := strings.Cut(after, "}")
		if !closed {
			return t, fmt.Errorf("topic %q has a { without a }", text)
		}
		f, err := s.inTopic(name)
		if err != nil {
			return t, fmt.Errorf("topic %q: %w", text, err)
		}
		t.parts = append(t.parts, part{field: f})
		rest = behind
	}
	if len(t.parts) == 0 {
		return t, fmt.Errorf("topic %q is empty", text)
	}
	return t, nil
}

// inTopic returns the field of a column that a topic may be named after.
func (s *shape) inTopic(name string) (field, error) {
	var may []string
	for f, c := range s.columns {
		if c.name == "" || !slices.Contains(c.oids, oidText) || field(f) == fieldPayload || field(f) == fieldEventID {
			continue
		}
		if c.name == name {
			return field(f), nil
		}
		may = append(may, "{"+c.name+"}")
	}
	return 0, fmt.Errorf("{%s} is not one of %s", name, strings.Join(may, ", "))
}

// name returns the topic's name for a row, in scratch unless it is one column's value.
func (t *template) name(scratch *[]byte, l *layout, tuple pgoutput.Tuple) []byte {
	if len(t.parts) == 1 && t.parts[0].literal == "" {
		return l.at(tuple, t.parts[0].field)
	}
	name := (*scratch)[:0]
	for _, p := range t.parts {
		if p.literal != "" {
			name = append(name, p.literal...)
			continue
		}
		name = append(name, l.at(tuple, p.field)...)
	}
	*scratch = name
	return name
}

// sampleSQL asks for the topics that rows of the table go to, and the size of the largest payload for each.
func (s *shape) sampleSQL(table string) string {
	topic := make([]string, len(s.topic.parts))
	for i, p := range s.topic.parts {
		if topic[i] = quoteLiteral(p.literal); p.literal == "" {
			topic[i] = quoteIdentifier(s.columns[p.field].name)
		}
	}
	name, size := strings.Join(topic, " || "), "octet_length(payload)"
	if s.columns[fieldTopic].name != "" {
		name = "CASE WHEN event_type = '' THEN topic ELSE " + name + " END"
	}
	if s.columns[fieldPayload].oids[0] != oidBytea {
		size = "octet_length(payload::text)"
	}
	return "SELECT " + name + ", max(" + size + ") FROM (SELECT * FROM " + quoteTable(table) + " LIMIT " + strconv.Itoa(sampleRows) + ") s GROUP BY 1"
}

const userTypesSQL = `
SELECT oid,
       CASE typtype WHEN 'e' THEN 25 ELSE typbasetype END
FROM pg_type
WHERE typtype IN ('e', 'd')`

// shape returns the configured shape with the user's own types, of which other columns may be.
func (c *control) shape(ctx context.Context, cfg *Config) (*shape, error) {
	s := cfg.shape
	if !s.extras {
		return &s, nil
	}
	rows, err := c.rows(ctx, userTypesSQL)
	if err != nil {
		return nil, fmt.Errorf("listing the database's own types: %w", err)
	}
	s.types = make(map[uint32]uint32, len(rows))
	for _, row := range rows {
		oid, err := strconv.ParseUint(row[0], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("listing the database's own types: %w", err)
		}
		base, err := strconv.ParseUint(row[1], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("listing the database's own types: %w", err)
		}
		s.types[uint32(oid)] = uint32(base)
	}
	return &s, nil
}

// resolved follows domains down to a built-in type.
func (s *shape) resolved(oid uint32) uint32 {
	for range 8 { // deeper than anybody nests domains
		base, ok := s.types[oid]
		if !ok {
			break
		}
		oid = base
	}
	return oid
}
