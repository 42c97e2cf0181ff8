package relay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"converge/relay/pgoutput"
)

// errNoRows is why messages cannot be sent again.
var errNoRows = &fatalError{errors.New("messages are in no table, so they cannot be sent again"),
	"say --source wal for outboxes that are tables"}

// emittedRow is the content of a logical message: a row by the names of the outbox's columns.
type emittedRow struct {
	EventID          *uuid.UUID     `json:"event_id"`
	Topic            string         `json:"topic"`
	AggregateType    string         `json:"aggregate_type"`
	AggregateID      *string        `json:"aggregate_id"`
	AggregateVersion int64          `json:"aggregate_version"`
	EventType        string         `json:"event_type"`
	ContentType      string         `json:"content_type"`
	Payload          jsontext.Value `json:"payload"`        // any JSON, as it is written
	PayloadBase64    jsontext.Value `json:"payload_base64"` // or any bytes; null, either way, is a tombstone
	Headers          jsontext.Value `json:"headers"`
	CreatedAt        *time.Time     `json:"created_at"` // missing: when it committed
}

var (
	errNotTransactional = errors.New("the message was written outside of its transaction, whatever became of that")
	errNoIdentity       = errors.New("the message has no event_id or no aggregate_id")
	errPayload          = errors.New("the message has neither payload nor payload_base64, or both")
)

// emitted publishes a logical message as the row that it says. One that was written outside of a transaction
// may report what was rolled back, so it never gets to its topic.
func (s *session) emitted(ctx context.Context, header pgoutput.Header, message []byte, in *arena) error {
	m, err := pgoutput.ParseMessage(message)
	if err != nil {
		return err
	}
	if string(m.Prefix) != s.relay.cfg.MessagePrefix {
		return nil
	}
	if s.messages == nil {
		if s.messages, err = s.shape.layoutOfMessages(s.relay.cfg.MessagePrefix); err != nil {
			return err
		}
	}
	if !m.Transactional {
		return s.loose(ctx, header, m, in)
	}
	if s.transaction == nil {
		return fmt.Errorf("%w: message outside a transaction", pgoutput.ErrMalformed)
	}
	var read emittedRow
	if err := read.parse(m.Content); err != nil {
		return s.unreadable(ctx, &read, m, in, err)
	}
	if err := read.tuple(&s.tuple, s.transaction.committed); err != nil {
		return s.unreadable(ctx, &read, m, in, err)
	}
	return s.row(ctx, s.messages, in)
}

// loose makes the dead letter of a message without a transaction, for which it gets one of its own: the position
// behind it is only passed when the letter is acknowledged.
func (s *session) loose(ctx context.Context, header pgoutput.Header, m pgoutput.Message, in *arena) error {
	if s.transaction != nil {
		return fmt.Errorf("%w: message of no transaction inside one", pgoutput.ErrMalformed)
	}
	s.begin(pgoutput.Begin{CommitLSN: m.LSN, Micros: header.Micros}, header)
	var read emittedRow
	_ = read.parse(m.Content) // for the identity, if it says
	if err := s.unreadable(ctx, &read, m, in, errNotTransactional); err != nil {
		return err
	}
	return s.commit(pgoutput.Commit{EndLSN: m.LSN + 1})
}

// unreadable makes the dead letter of a message: its content, under what identity could be read.
func (s *session) unreadable(ctx context.Context, read *emittedRow, m pgoutput.Message, in *arena, cause error) error {
	l := *s.messages
	l.unreadable = cause
	s.tuple = append(s.tuple[:0], make(pgoutput.Tuple, fields)...)
	for f := range s.tuple {
		s.tuple[f].Format = pgoutput.FormatNull
	}
	read.identity(s.tuple)
	s.tuple[fieldTopic] = binaryValue([]byte(read.Topic))
	s.tuple[fieldEventType] = binaryValue([]byte(read.EventType))
	s.tuple[fieldPayload] = binaryValue(m.Content)
	return s.row(ctx, &l, in)
}

// layoutOfMessages is the layout of the tuples that emittedRow makes: a column for each field, in order.
func (s *shape) layoutOfMessages(prefix string) (*layout, error) {
	r := pgoutput.Relation{Name: prefix}
	for _, c := range s.columns {
		r.Columns = append(r.Columns, pgoutput.Column{Name: c.name, TypeOID: c.oids[0]})
	}
	l, err := s.layoutOf(r)
	if err != nil {
		return nil, err
	}
	l.table, l.source = prefix, []byte("/"+url.PathEscape(prefix))
	return l, nil
}

// parse reads a message's content. What it does not know is refused: a misspelt name would lose its value.
func (e *emittedRow) parse(content []byte) error {
	if err := json.Unmarshal(content, e, json.RejectUnknownMembers(true), jsontext.AllowDuplicateNames(true)); err != nil {
		return fmt.Errorf("reading the message: %w", err)
	}
	return nil
}

func binaryValue(b []byte) pgoutput.Value {
	return pgoutput.Value{Data: b, Format: pgoutput.FormatBinary}
}

// identity sets the fields that say which row it is, as far as they are known.
func (e *emittedRow) identity(t pgoutput.Tuple) {
	if e.EventID != nil {
		t[fieldEventID] = binaryValue(e.EventID[:])
	}
	if e.AggregateID != nil {
		t[fieldAggregateID] = binaryValue([]byte(*e.AggregateID))
	}
}

// tuple makes a row of the message, in the binary form of the columns.
func (e *emittedRow) tuple(t *pgoutput.Tuple, committed time.Time) error {
	if e.EventID == nil || e.AggregateID == nil {
		return errNoIdentity
	}
	payload, err := e.payload()
	if err != nil {
		return err
	}
	created := committed
	if e.CreatedAt != nil {
		created = *e.CreatedAt
	}
	row := append((*t)[:0], make(pgoutput.Tuple, fields)...)
	e.identity(row)
	row[fieldTopic], row[fieldAggregateType] = binaryValue([]byte(e.Topic)), binaryValue([]byte(e.AggregateType))
	row[fieldEventType], row[fieldContentType] = binaryValue([]byte(e.EventType)), binaryValue([]byte(e.ContentType))
	row[fieldAggregateVersion] = binaryValue(binary.BigEndian.AppendUint64(nil, uint64(e.AggregateVersion)))
	row[fieldCreatedAt] = binaryValue(binary.BigEndian.AppendUint64(nil, uint64(pgoutput.Micros(created))))
	row[fieldPayload], row[fieldHeaders] = pgoutput.Value{Format: pgoutput.FormatNull}, pgoutput.Value{Format: pgoutput.FormatNull}
	if payload != nil {
		row[fieldPayload] = binaryValue(payload)
	}
	if len(e.Headers) > 0 {
		row[fieldHeaders] = binaryValue(append([]byte{jsonbVersion}, e.Headers...))
	}
	*t = row
	return nil
}

// payload returns the bytes of the record's value, nil for a tombstone.
func (e *emittedRow) payload() ([]byte, error) {
	switch {
	case len(e.Payload) > 0 == (len(e.PayloadBase64) > 0):
		return nil, errPayload
	case e.Payload.Kind() == 'n', e.PayloadBase64.Kind() == 'n':
		return nil, nil
	case len(e.Payload) > 0:
		if e.ContentType == "" {
			e.ContentType = string(contentTypeJSON)
		}
		return e.Payload, nil
	}
	data := []byte{} // no bytes are no tombstone
	if err := json.Unmarshal(e.PayloadBase64, &data); err != nil {
		return nil, fmt.Errorf("reading payload_base64: %w", err)
	}
	return data, nil
}
