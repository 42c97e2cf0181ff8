// Package event is what a consumer sees of the world: an [Event], a [Handler] for it, and the ways a
// handler says what went wrong.
//
// A handler runs inside the transaction that also holds the inbox row and the consumer's offset, so
// its effect, the memory of the event and the position commit together or not at all. That holds for
// what the handler does through the pgx.Tx it is given. It does not hold for anything else: a call to
// another system happens again when the transaction is rolled back, and must carry the event's ID as
// its idempotency key.
package event

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Event is one record of a topic. The byte slices are shared: a handler must not modify them, and may
// keep them.
type Event struct {
	// ID identifies the event everywhere. A record whose id is not a UUID gets one derived from the
	// id's text; a record without any id gets one derived from topic, partition and offset.
	ID   uuid.UUID
	Type string // event_type, as in "OrderPlaced"

	AggregateType    string
	AggregateID      string
	AggregateVersion int64 // 0 when the record does not say

	OccurredAt  time.Time // when it happened, by the emitter's clock; zero when not said
	CommittedAt time.Time // when the outbox row committed, by the database's clock; zero when not said

	CorrelationID string // shared by every event of one business operation
	CausationID   string // the ID of the event that this one reacts to
	Traceparent   string // W3C Trace Context

	ContentType string
	Key         []byte
	Value       []byte // nil is a tombstone
	Headers     []Header

	Topic      string
	Partition  int32
	Offset     int64
	RecordedAt time.Time // the record's own timestamp

	// Attempt counts the earlier tries of this event that failed in a handler; 0 is the first try.
	Attempt int
}

// Header is one record header. Kafka allows a key to repeat; order is kept.
type Header struct {
	Key   string
	Value []byte
}

// Header returns the value of the last header with the key.
func (e *Event) Header(key string) (value []byte, ok bool) {
	for i := len(e.Headers) - 1; i >= 0; i-- {
		if e.Headers[i].Key == key {
			return e.Headers[i].Value, true
		}
	}
	return nil, false
}

// Each applies one event inside tx. It must not commit, roll back or keep tx, and must return when
// ctx ends. Calls for one key come in order and never at the same time; calls for different keys may
// run concurrently on different transactions.
//
// A nil error means applied. Otherwise [Classify] decides: see [Permanent] and [RetryAfter]; any other
// error of the handler's is retried along the ladder of retry topics.
type Each func(ctx context.Context, tx pgx.Tx, e *Event) error

// Batch applies several events, in their order, inside one transaction, preferably with one
// statement. When it returns an error the transaction is rolled back and smaller batches are tried
// until the failing event stands alone.
type Batch func(ctx context.Context, tx pgx.Tx, events []*Event) error

// Handler says what a consumer does with each event type. Exactly the types in it are the consumer's;
// a record of any other type is passed over, for a topic may grow types that a consumer does not know.
//
// The zero Handler handles nothing. Fill it before the consumer starts; reading is safe for concurrent
// use after that.
type Handler struct {
	Each  map[string]Each
	Batch map[string]Batch
}

// Handles reports whether the consumer wants events of the type.
func (h Handler) Handles(eventType string) bool {
	_, each := h.Each[eventType]
	_, batch := h.Batch[eventType]
	return each || batch
}

// Types returns the event types that the handler wants, in no order.
func (h Handler) Types() []string {
	types := make([]string, 0, len(h.Each)+len(h.Batch))
	for t := range h.Each {
		types = append(types, t)
	}
	for t := range h.Batch {
		if _, both := h.Each[t]; !both {
			types = append(types, t)
		}
	}
	return types
}

// Decoder turns a record's value into the Go value that into points to. An error that means "this will
// never decode" is classed [ClassPermanent] by implementing Permanent() bool; an error that means "the
// registry is away" is classed [ClassInfrastructure] by implementing Infrastructure() bool.
type Decoder interface {
	Decode(ctx context.Context, eventType, contentType string, value []byte, into any) error
}

// Typed adapts a handler of a decoded value to [Each].
func Typed[T any](dec Decoder, handle func(ctx context.Context, tx pgx.Tx, e *Event, data T) error) Each {
	return func(ctx context.Context, tx pgx.Tx, e *Event) error {
		var data T
		if err := dec.Decode(ctx, e.Type, e.ContentType, e.Value, &data); err != nil {
			return err
		}
		return handle(ctx, tx, e, data)
	}
}
