package event

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// namespace is for ids that are made here from something else (RFC 9562, UUIDv5).
var namespace = uuid.MustParse("6a1f3f0e-53a7-5b9c-8f0d-0c6f1a1f7f31")

// Identify fills in what the headers say: identity, type, aggregate, times, cause and content type. It
// reads the names that converge writes, and those of CloudEvents (ce_) and of Debezium's outbox (id).
//
// The id is that of the first of event_id, ce_id and id that is there. One that is no UUID becomes a
// UUIDv5 of its text; without any, the id is a UUIDv5 of topic, partition and offset, so that every
// delivery of the record has the same.
func (e *Event) Identify() {
	e.ID = e.identity()
	e.Type = e.first("event_type", "ce_type", "eventType", "type")
	e.AggregateType = e.first("aggregate_type", "ce_aggregatetype")
	e.AggregateID = e.first("aggregate_id", "ce_subject")
	if e.AggregateID == "" {
		e.AggregateID = string(e.Key)
	}
	e.AggregateVersion, _ = strconv.ParseInt(e.first("aggregate_version", "ce_aggregateversion"), 10, 64) // 0 when it says none
	e.OccurredAt = parseTime(e.first("occurred_at", "ce_time"))
	e.CommittedAt = parseTime(e.first("committed_at", "ce_committedat"))
	e.CorrelationID = e.first("correlation_id", "ce_correlationid")
	e.CausationID = e.first("causation_id", "ce_causationid")
	e.Traceparent = e.first("traceparent", "ce_traceparent")
	e.ContentType = e.first("content-type", "datacontenttype", "ce_datacontenttype")
}

func (e *Event) first(names ...string) string {
	for _, name := range names {
		if value, ok := e.Header(name); ok && len(value) > 0 {
			return string(value)
		}
	}
	return ""
}

func (e *Event) identity() uuid.UUID {
	text := e.first("event_id", "ce_id", "id")
	if text == "" {
		return uuid.NewSHA1(namespace, fmt.Appendf(nil, "%s/%d/%d", e.Topic, e.Partition, e.Offset))
	}
	if id, err := uuid.Parse(text); err == nil {
		return id
	}
	return uuid.NewSHA1(namespace, []byte(text))
}

// parseTime reads RFC 3339; what is not a time is no time.
func parseTime(text string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}
	}
	return t
}

// maxOrderKey is the longest text, in bytes, that an order key stands for as it is: a key of several
// columns must fit an index row of PostgreSQL's, a third of a page.
const maxOrderKey = 256

// OrderKey returns the text by which a consumer keeps events in order: the record's key, written as hex
// when a database cannot hold it as text and as a digest when an index cannot hold it; the id of a record
// without a key.
func (e *Event) OrderKey() string {
	switch {
	case e.Key == nil:
		return e.ID.String()
	case len(e.Key) > maxOrderKey:
		digest := sha256.Sum256(e.Key)
		return "sha256:" + hex.EncodeToString(digest[:])
	case !utf8.Valid(e.Key) || bytes.IndexByte(e.Key, 0) >= 0:
		return "hex:" + hex.EncodeToString(e.Key)
	}
	return string(e.Key)
}
