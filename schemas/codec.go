package schemas

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"mime"
	"reflect"
	"slices"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/hamba/avro/v2"
)

// Format is how a [Codec] writes. Both formats are read, whatever it writes.
type Format string

const (
	Avro Format = "avro" // Confluent wire format: a zero byte, the schema id in four bytes, the body
	JSON Format = "json" // plain JSON objects
)

// The content types that a [Codec] writes.
const (
	ContentTypeAvro = "application/avro"
	ContentTypeJSON = "application/json"
)

// IDs is what a registry knows of the schemas. The zero IDs are those of no registry: enough to write
// and read JSON.
type IDs struct {
	// Types maps an event type to the id of its present schema.
	Types map[string]int
	// Schema returns the text of the schema with the id. It is called once per id and event type when
	// nothing goes wrong, and concurrently. Its errors say themselves whether they are permanent or the
	// infrastructure's, in the sense of consumers/event.
	Schema func(ctx context.Context, id int) (text string, err error)
}

// Codec writes and reads the values of events. It is safe for concurrent use. It implements
// outbox.Encoder and event.Decoder.
type Codec struct {
	format  Format
	ids     IDs
	readers sync.Map // readerKey → *reader
}

// NewCodec returns a codec that writes in the format. Avro needs the ids of a registry; without them
// every Encode fails.
func NewCodec(format Format, ids IDs) *Codec { return &Codec{format: format, ids: ids} }

type schema = avro.Schema

// api holds the limits of decoding. The values are far beyond what a broker accepts; what really bounds
// an allocation is that [shape.checkBinary] held every length against the bytes that are there.
var api = avro.Config{MaxByteSliceSize: 64 << 20, MaxSliceAllocSize: 64 << 20}.Freeze()

var writers = sync.Pool{New: func() any {
	return avro.NewWriter(nil, 512, avro.WithWriterConfig(api))
}}

var readers = sync.Pool{New: func() any {
	return avro.NewReader(nil, 0, avro.WithReaderConfig(api))
}}

// parseSchema parses with a cache of names of its own: two versions of one record must not meet.
func parseSchema(text string) (schema, error) {
	s, err := avro.ParseBytesWithCache([]byte(text), "", &avro.SchemaCache{})
	if err != nil {
		return nil, fmt.Errorf("parsing an Avro schema: %w", err)
	}
	return s, nil
}

// Compatible returns an error that says why reader cannot read what was written with writer, nil when
// it can. Both are texts of Avro schemas.
func Compatible(reader, writer string) error {
	r, err := parseSchema(reader)
	if err != nil {
		return err
	}
	w, err := parseSchema(writer)
	if err != nil {
		return err
	}
	// A fresh one each time: its cache ignores defaults, which decide compatibility.
	return avro.NewSchemaCompatibility().Compatible(r, w)
}

// Encode writes data, a value of the event type's Go struct or a pointer to one, and says which topic it
// belongs to. The value is the caller's. Errors are of type [*ValueError].
func (c *Codec) Encode(eventType string, data any) (topic, contentType string, value []byte, err error) {
	k, ok := present()[eventType]
	if !ok {
		return "", "", nil, &ValueError{EventType: eventType, Err: ErrUnknownType}
	}
	t := reflect.TypeOf(data)
	if t != nil && t.Kind() == reflect.Pointer && !reflect.ValueOf(data).IsNil() {
		t = t.Elem()
	}
	if t != k.goType {
		return "", "", nil, &ValueError{EventType: eventType, Err: fmt.Errorf("the data is a %T, not a %s", data, k.goType)}
	}
	if c.format == JSON {
		contentType = ContentTypeJSON
		value, err = json.Marshal(data)
	} else {
		contentType = ContentTypeAvro
		value, err = c.encodeAvro(eventType, k, data)
	}
	if err != nil {
		return "", "", nil, &ValueError{EventType: eventType, Err: err}
	}
	return k.topic, contentType, value, nil
}

const headerSize = 5

func (c *Codec) encodeAvro(eventType string, k *contract, data any) ([]byte, error) {
	id, ok := c.ids.Types[eventType]
	if !ok {
		return nil, errors.New("no schema registry gave an id for this type")
	}
	w := writers.Get().(*avro.Writer)
	w.Reset(nil)
	w.Error = nil
	var header [headerSize]byte
	binary.BigEndian.PutUint32(header[1:], uint32(id))
	_, _ = w.Write(header[:]) // into memory: it cannot fail
	w.WriteVal(k.avro, data)
	if w.Error != nil {
		return nil, w.Error
	}
	value := slices.Clone(w.Buffer())
	if len(value) <= maxPooled {
		writers.Put(w)
	}
	// What is written here must be readable: a string that is not UTF-8 stops before the topic.
	if err := k.shape.checkBinary(value[headerSize:]); err != nil {
		return nil, err
	}
	return value, nil
}

// Decode reads a value into the struct that into points to, which may have fewer fields than the
// schema. Strings in it are copies. Without a content type the value is Avro when it begins as the wire
// format does, and JSON otherwise. A value that will never decode is a [*ValueError]; a registry that is
// away gives the error of [IDs.Schema]. After an error into holds nothing of use. Decode blocks only for
// a schema id that it has not seen.
func (c *Codec) Decode(ctx context.Context, eventType, contentType string, value []byte, into any) error {
	k, ok := present()[eventType]
	if !ok {
		return &ValueError{EventType: eventType, Err: ErrUnknownType}
	}
	format, err := formatOf(contentType, value)
	if err != nil {
		return &ValueError{EventType: eventType, Err: err}
	}
	if format == JSON {
		if err := decodeJSON(k.shape, value, into); err != nil {
			return &ValueError{EventType: eventType, Err: err}
		}
		return nil
	}
	id, body, err := splitWire(value)
	if err != nil {
		return &ValueError{EventType: eventType, Err: err}
	}
	r, err := c.reader(ctx, eventType, k, id)
	if err != nil {
		return err
	}
	if err := r.decode(body, into); err != nil {
		return &ValueError{EventType: eventType, SchemaID: id, Err: err}
	}
	return nil
}

// Inspect decodes a value for showing, knowing less than Decode does. An Avro value says itself what it
// is, so eventType may be empty; it returns the type that it found. Data is a pointer to the type's Go
// struct, or what the writer's schema (for JSON: the text) says when the type is unknown here.
func (c *Codec) Inspect(ctx context.Context, eventType, contentType string, value []byte) (foundType string, data any, err error) {
	format, err := formatOf(contentType, value)
	if err != nil {
		return eventType, nil, &ValueError{EventType: eventType, Err: err}
	}
	if format == JSON {
		if data = New(eventType); data != nil {
			return eventType, data, c.Decode(ctx, eventType, ContentTypeJSON, value, data)
		}
		raw := jsontext.Value(slices.Clone(value))
		if err := raw.Compact(); err != nil {
			return eventType, nil, &ValueError{EventType: eventType, Err: fmt.Errorf("not JSON: %w", err)}
		}
		return eventType, raw, nil
	}
	id, body, err := splitWire(value)
	if err != nil {
		return eventType, nil, &ValueError{EventType: eventType, Err: err}
	}
	generic, err := c.reader(ctx, "", nil, id)
	if err != nil {
		return eventType, nil, err
	}
	foundType = generic.shape.record()
	if data = New(foundType); data != nil {
		return foundType, data, c.Decode(ctx, foundType, ContentTypeAvro, value, data)
	}
	if err := generic.decode(body, &data); err != nil {
		return foundType, nil, &ValueError{EventType: foundType, SchemaID: id, Err: err}
	}
	return foundType, data, nil
}

// formatOf says how a value is written. Octet-stream is how tools say that they do not know.
func formatOf(contentType string, value []byte) (Format, error) {
	if len(value) == 0 {
		return "", errors.New("the record has no value")
	}
	if contentType != ContentTypeAvro && contentType != ContentTypeJSON && contentType != "" {
		base, _, err := mime.ParseMediaType(contentType)
		if err != nil {
			return "", fmt.Errorf("content type %q: %w", contentType, err)
		}
		contentType = base
	}
	switch contentType {
	case ContentTypeAvro, "avro/binary", "application/vnd.apache.avro", "application/vnd.confluent.avro":
		return Avro, nil
	case ContentTypeJSON, "text/json":
		return JSON, nil
	case "", "application/octet-stream":
		if value[0] == 0 && len(value) > headerSize {
			return Avro, nil
		}
		return JSON, nil
	}
	return "", fmt.Errorf("content type %q is neither Avro nor JSON", contentType)
}

func splitWire(value []byte) (id int, body []byte, err error) {
	if len(value) < headerSize || value[0] != 0 {
		return 0, nil, errors.New("an Avro value begins with a zero byte and a schema id in four bytes")
	}
	return int(binary.BigEndian.Uint32(value[1:])), value[headerSize:], nil
}

type readerKey struct {
	eventType string // "" reads as the writer wrote
	id        int
}

// reader reads the values of one writer's schema.
type reader struct {
	shape  *shape // the writer's, for checking
	schema schema // the writer's, resolved against the present one
}

// reader returns the cached reader for the schema id, or makes it. Two callers may make it at the same
// time; either result serves. The cache is bounded by the registry: unknown ids are not kept.
func (c *Codec) reader(ctx context.Context, eventType string, k *contract, id int) (*reader, error) {
	key := readerKey{eventType, id}
	if r, ok := c.readers.Load(key); ok {
		return r.(*reader), nil
	}
	text, err := c.writerText(ctx, eventType, id)
	if err != nil {
		return nil, err
	}
	r := &reader{}
	if r.shape, err = parseShape(text); err == nil {
		r.schema, err = parseSchema(text)
	}
	if err == nil && k != nil {
		r.schema, err = avro.NewSchemaCompatibility().Resolve(k.avro, r.schema)
	}
	if err != nil {
		return nil, &ValueError{EventType: eventType, SchemaID: id, Err: fmt.Errorf("reading what the writer's schema describes: %w", err)}
	}
	c.readers.Store(key, r)
	return r, nil
}

func (c *Codec) writerText(ctx context.Context, eventType string, id int) (string, error) {
	if own, ok := c.ids.Types[eventType]; ok && own == id {
		return Text(eventType), nil
	}
	if c.ids.Schema == nil {
		return "", &ValueError{EventType: eventType, SchemaID: id, Err: ErrNoRegistry}
	}
	text, err := c.ids.Schema(ctx, id)
	if err != nil {
		return "", fmt.Errorf("looking schema id %d up: %w", id, err)
	}
	return text, nil
}

func (r *reader) decode(body []byte, into any) error {
	if err := r.shape.checkBinary(body); err != nil {
		return err
	}
	ar := readers.Get().(*avro.Reader)
	ar.Reset(body)
	ar.Error = nil
	ar.ReadVal(r.schema, into)
	err := ar.Error
	ar.Reset(nil)
	readers.Put(ar)
	return err
}
