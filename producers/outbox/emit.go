package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"mime"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"converge/internal/pipeline"
)

// MessagePrefix is the prefix of the messages that [Outbox.Emit] writes, and that converge relay --source message
// publishes unless it is told another.
const MessagePrefix = "converge.outbox"

// Emit writes the events into the write-ahead log alone, in order, in one round trip at most: there is no
// table, and nothing to clean up. The guarantee is that of [Outbox.Append], for a relay with --source message;
// any other leaves the events out. They cannot be queried and, once the relay has confirmed them, not sent
// again. It neither commits nor rolls back.
func (o *Outbox) Emit(ctx context.Context, tx pgx.Tx, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	var r rows
	for i := range events {
		if err := r.addEvent(ctx, o.enc, &events[i]); err != nil {
			return err
		}
	}
	messages, err := r.messages()
	if err != nil {
		return err
	}
	if err := pipeline.Exec(ctx, tx, emitSQL, MessagePrefix, messages); err != nil {
		return fmt.Errorf("emitting messages: %w", err)
	}
	return nil
}

// emitSQL is transactional: the messages share the fate of the caller's transaction.
const emitSQL = `
SELECT pg_logical_emit_message(true, $1::text, o.message)
FROM (SELECT u.message
      FROM unnest($2::text[]) WITH ORDINALITY AS u (message, ordinal)
      ORDER BY u.ordinal) AS o`

// message is a row by the names of its columns; bytes that are not JSON have a name of their own.
type message struct {
	EventID          string          `json:"event_id"`
	Topic            string          `json:"topic"`
	AggregateType    string          `json:"aggregate_type"`
	AggregateID      string          `json:"aggregate_id"`
	AggregateVersion int64           `json:"aggregate_version"`
	EventType        string          `json:"event_type"`
	ContentType      string          `json:"content_type"`
	Headers          json.RawMessage `json:"headers"`
	PayloadBase64    []byte          `json:"payload_base64,omitzero"`
}

func (r *rows) messages() ([]string, error) {
	texts := make([]string, len(r.ids))
	for i := range r.ids {
		m := message{EventID: r.ids[i].String(), Topic: r.topics[i], AggregateType: r.aggregateTypes[i], AggregateID: r.aggregateIDs[i],
			AggregateVersion: r.versions[i], EventType: r.eventTypes[i], ContentType: r.contentTypes[i], Headers: json.RawMessage(r.headerTexts[i])}
		payload := r.payloads[i]
		verbatim := payload == nil || isJSON(m.ContentType) && json.Valid(payload) && utf8.Valid(payload)
		if !verbatim {
			m.PayloadBase64 = payload
		}
		text, err := json.Marshal(m)
		if err != nil {
			return nil, fmt.Errorf("writing a message of %s: %w", m.EventType, err)
		}
		if payload == nil {
			payload = []byte("null")
		}
		if verbatim { // the encoder would change its spaces and escapes
			text = append(append(text[:len(text)-1], `,"payload":`...), payload...)
			text = append(text, '}')
		}
		texts[i] = string(text)
	}
	return texts, nil
}

func isJSON(contentType string) bool {
	kind, _, err := mime.ParseMediaType(contentType)
	return err == nil && (kind == "application/json" || strings.HasSuffix(kind, "+json"))
}
