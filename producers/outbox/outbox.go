// Package outbox is the only way to emit an event: it writes the event beside the state that it
// reports, in the caller's transaction, and the relay takes it to its topic after the commit.
//
// The guarantee: an event is published if and only if the transaction that appended it committed, at
// least once, and events of one aggregate in the order their transactions committed. It fails to hold
// when a service also writes to a topic by other means, when rows are deleted before the relay
// confirmed them, or when two transactions change one aggregate at the same time without a row lock or
// a version check between them.
package outbox

import (
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"converge/internal/pipeline"
)

// Migrations creates the outbox table in the schema that search_path names first.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// Event is something that happened to an aggregate.
type Event struct {
	ID   uuid.UUID // zero: a new UUIDv7
	Type string    // names the schema, and through it the topic

	AggregateType    string
	AggregateID      string // becomes the record's key
	AggregateVersion int64

	OccurredAt time.Time // zero: now

	// Cause says what this event follows from; zero: the cause that ctx carries, see [WithCause].
	Cause Cause

	Data any // a struct or pointer that the encoder knows for Type
}

// Record is a row as it stands in the outbox, for machinery that moves records rather than emitting
// events (retry topics, dead letters). Its headers are published as they are.
type Record struct {
	EventID     uuid.UUID
	Topic       string
	Key         string
	ContentType string
	Value       []byte // nil is a tombstone
	Headers     map[string]string
}

// Cause links an event to what led to it.
type Cause struct {
	CorrelationID string // shared by every event of one business operation; "" starts a new one
	CausationID   string // the event (or request) that this one reacts to
	Traceparent   string // W3C Trace Context
}

type causeKey struct{}

// WithCause returns a context whose events follow from cause.
func WithCause(ctx context.Context, cause Cause) context.Context {
	return context.WithValue(ctx, causeKey{}, cause)
}

// CauseFrom returns the cause that ctx carries, the zero Cause when none.
func CauseFrom(ctx context.Context) Cause {
	cause, _ := ctx.Value(causeKey{}).(Cause)
	return cause
}

// Encoder turns an event's data into the bytes of its record.
type Encoder interface {
	Encode(eventType string, data any) (topic, contentType string, value []byte, err error)
}

// Outbox appends events. It holds no state beyond its encoder and is safe for concurrent use.
type Outbox struct {
	enc Encoder
}

// New returns an Outbox that encodes by enc.
func New(enc Encoder) *Outbox { return &Outbox{enc: enc} }

// Append writes the events into the outbox of tx, in order, in one round trip at most. It neither commits nor
// rolls back; an error leaves tx unusable, as any failed statement does.
func (o *Outbox) Append(ctx context.Context, tx pgx.Tx, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	var r rows
	for i := range events {
		if err := r.addEvent(ctx, o.enc, &events[i]); err != nil {
			return err
		}
	}
	return r.insert(ctx, tx)
}

// AppendRecords writes raw records into the outbox of tx, in order, in one round trip at most.
func AppendRecords(ctx context.Context, tx pgx.Tx, records ...Record) error {
	if len(records) == 0 {
		return nil
	}
	var r rows
	for i := range records {
		if err := r.addRecord(&records[i]); err != nil {
			return err
		}
	}
	return r.insert(ctx, tx)
}

const insertSQL = `
INSERT INTO outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version,
                    event_type, content_type, payload, headers)
SELECT u.event_id, u.topic, u.aggregate_type, u.aggregate_id, u.aggregate_version,
       u.event_type, u.content_type, u.payload, u.headers::jsonb
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bigint[],
            $6::text[], $7::text[], $8::bytea[], $9::text[])
     WITH ORDINALITY AS u (event_id, topic, aggregate_type, aggregate_id, aggregate_version,
                           event_type, content_type, payload, headers, ordinal)
ORDER BY u.ordinal`

// rows is the columns of one INSERT.
type rows struct {
	ids                                   []uuid.UUID
	topics, aggregateTypes, aggregateIDs  []string
	versions                              []int64
	eventTypes, contentTypes, headerTexts []string
	payloads                              [][]byte
}

func (r *rows) insert(ctx context.Context, tx pgx.Tx) error {
	err := pipeline.Exec(ctx, tx, insertSQL, r.ids, r.topics, r.aggregateTypes, r.aggregateIDs, r.versions,
		r.eventTypes, r.contentTypes, r.payloads, r.headerTexts)
	if err != nil {
		return fmt.Errorf("appending to outbox: %w", err)
	}
	return nil
}

func (r *rows) addEvent(ctx context.Context, enc Encoder, e *Event) error {
	topic, contentType, value, err := enc.Encode(e.Type, e.Data)
	if err != nil {
		return fmt.Errorf("encoding %s for the outbox: %w", e.Type, err)
	}
	id := e.ID
	if id == uuid.Nil {
		if id, err = uuid.NewV7(); err != nil {
			return fmt.Errorf("making an event id: %w", err)
		}
	}
	occurred := e.OccurredAt
	if occurred.IsZero() {
		occurred = time.Now()
	}
	cause := e.Cause
	if cause == (Cause{}) {
		cause = CauseFrom(ctx)
	}
	if cause.CorrelationID == "" {
		cause.CorrelationID = id.String()
	}
	headers := map[string]string{
		"occurred_at":    occurred.UTC().Format(time.RFC3339Nano),
		"correlation_id": cause.CorrelationID,
	}
	if cause.CausationID != "" {
		headers["causation_id"] = cause.CausationID
	}
	if cause.Traceparent != "" {
		headers["traceparent"] = cause.Traceparent
	}
	return r.add(Record{EventID: id, Topic: topic, Key: e.AggregateID, ContentType: contentType,
		Value: value, Headers: headers}, e.AggregateType, e.AggregateVersion, e.Type)
}

func (r *rows) addRecord(rec *Record) error {
	headers := maps.Clone(rec.Headers)
	if headers == nil {
		headers = map[string]string{}
	}
	return r.add(Record{EventID: rec.EventID, Topic: rec.Topic, Key: rec.Key, ContentType: rec.ContentType,
		Value: rec.Value, Headers: headers}, "", 0, "")
}

func (r *rows) add(rec Record, aggregateType string, version int64, eventType string) error {
	headers, err := json.Marshal(rec.Headers)
	if err != nil {
		return fmt.Errorf("writing outbox headers: %w", err)
	}
	r.ids = append(r.ids, rec.EventID)
	r.topics = append(r.topics, rec.Topic)
	r.aggregateTypes = append(r.aggregateTypes, aggregateType)
	r.aggregateIDs = append(r.aggregateIDs, rec.Key)
	r.versions = append(r.versions, version)
	r.eventTypes = append(r.eventTypes, eventType)
	r.contentTypes = append(r.contentTypes, rec.ContentType)
	r.payloads = append(r.payloads, rec.Value)
	r.headerTexts = append(r.headerTexts, string(headers))
	return nil
}
