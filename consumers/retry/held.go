package retry

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"converge/consumers/event"
	"converge/producers/outbox"
)

// Failure is an event that could not be applied, and why.
type Failure struct {
	Event *event.Event
	Err   error
	// Attempts counts the tries that failed, this one included.
	Attempts int
	// FirstAt is when the first of them failed.
	FirstAt time.Time
	// Redriven says that the event had been a dead letter before.
	Redriven bool
	// Blocks says that the event is dead and holds its key, see [Policy].
	Blocks bool
}

// Ladder is one consumer's retries. Its methods write into the transaction that they are given, whose
// isolation must be READ COMMITTED: each statement needs a snapshot of its own.
type Ladder struct {
	Consumer string
	Policy   Policy
}

// KeyOf returns the key that is held when e fails.
func (l Ladder) KeyOf(e *event.Event) string {
	if l.Policy.Unordered {
		return e.ID.String()
	}
	return e.OrderKey()
}

const anyHeldSQL = `SELECT EXISTS (SELECT FROM held_keys WHERE consumer = $1 AND topic = $2)`

// QueueAnyHeld queues the question whether any key of the topic is held. It must stand behind the fence,
// as a statement of its own: a snapshot from before the fence's lock would be stale.
func (l Ladder) QueueAnyHeld(batch *pgx.Batch, topic string, held *bool) {
	if l.Policy.Unordered {
		return // each event is a key of its own: nothing can follow it
	}
	batch.Queue(anyHeldSQL, l.Consumer, topic).QueryRow(func(row pgx.Row) error { return row.Scan(held) })
}

const heldSQL = `SELECT key FROM held_keys WHERE consumer = $1 AND topic = $2 AND key = ANY($3)`

// Held returns which of the keys are held.
func (l Ladder) Held(ctx context.Context, tx pgx.Tx, topic string, keys []string) (map[string]bool, error) {
	rows, err := tx.Query(ctx, heldSQL, l.Consumer, topic, keys)
	if err != nil {
		return nil, fmt.Errorf("asking which keys are held: %w", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("asking which keys are held: %w", err)
	}
	held := make(map[string]bool, len(found))
	for _, key := range found {
		held[key] = true
	}
	return held, nil
}

// The states of a held key.
const (
	waiting = "waiting" // for its wake-up
	blocked = "blocked" // by a dead letter, until a person decides
)

const holdSQL = `
INSERT INTO held_keys (consumer, topic, key, token, attempt, state, due_at, failed_at)
SELECT $1, $2, u.key, nextval('wake_token'), u.attempt, u.state, u.due_at, u.failed_at
FROM unnest($3::text[], $4::timestamptz[], $5::timestamptz[], $6::int[], $7::text[]) AS u (key, due_at, failed_at, attempt, state)
ORDER BY u.key
RETURNING key, token`

// Hold holds the keys of the heads, each with its wake-up unless it blocks, and then puts events behind them, heads and
// followers in the order given. A key that was released meanwhile is SQLSTATE 23503 on held_events, one
// that somebody else holds meanwhile 23505 on held_keys: [LostRace] tells, and the batch runs again.
func (l Ladder) Hold(ctx context.Context, tx pgx.Tx, topic string, heads []Failure, events []*event.Event) error {
	if len(heads) > 0 {
		keys, due, failed := make([]string, len(heads)), make([]time.Time, len(heads)), make([]time.Time, len(heads))
		attempts, states := make([]int, len(heads)), make([]string, len(heads))
		byKey := make(map[string]int, len(heads))
		for i, h := range heads {
			keys[i], failed[i] = l.KeyOf(h.Event), h.FirstAt
			due[i] = time.Now().Add(l.Policy.delay(h.Attempts, event.Delay(h.Err)))
			attempts[i], states[i] = h.Attempts, waiting
			if h.Blocks {
				states[i] = blocked
			}
			byKey[keys[i]] = i
		}
		rows, err := tx.Query(ctx, holdSQL, l.Consumer, topic, keys, due, failed, attempts, states)
		if err != nil {
			return fmt.Errorf("holding keys: %w", err)
		}
		var wakes []outbox.Record
		var key string
		var token int64
		if _, err := pgx.ForEachRow(rows, []any{&key, &token}, func() error {
			i := byKey[key]
			if heads[i].Blocks {
				return nil
			}
			wakes = append(wakes, l.wake(heads[i], key, token, due[i]))
			return nil
		}); err != nil {
			return fmt.Errorf("holding keys: %w", err)
		}
		if err := outbox.AppendRecords(ctx, tx, wakes...); err != nil {
			return err
		}
	}
	return l.insertWaiting(ctx, tx, events, false)
}

const waitSQL = `
INSERT INTO held_events (consumer, topic, key, event_id, partition, "offset", recorded_at, redriven, record_key, headers, payload)
SELECT $1, u.topic, u.key, u.event_id, u.partition, u.position, u.recorded_at, $10, u.record_key, u.headers::jsonb, u.payload
FROM unnest($2::text[], $3::text[], $4::uuid[], $5::int[], $6::bigint[], $7::timestamptz[], $8::bytea[], $9::text[], $11::bytea[])
     WITH ORDINALITY AS u (topic, key, event_id, partition, position, recorded_at, record_key, headers, payload, ordinal)
ORDER BY u.ordinal`

func (l Ladder) insertWaiting(ctx context.Context, tx pgx.Tx, waiting []*event.Event, redriven bool) error {
	if len(waiting) == 0 {
		return nil
	}
	var c columns
	for _, e := range waiting {
		if err := c.add(e, l.KeyOf(e)); err != nil {
			return err
		}
	}
	_, err := tx.Exec(ctx, waitSQL, l.Consumer, c.topics, c.keys, c.ids, c.partitions, c.offsets, c.times, c.recordKeys, c.headers, redriven, c.payloads)
	if err != nil {
		return fmt.Errorf("putting events behind their held key: %w", err)
	}
	return nil
}

// columns is events as the columns of a table.
type columns struct {
	topics, keys, headers []string
	ids                   []uuid.UUID
	partitions            []int32
	offsets               []int64
	times                 []time.Time
	recordKeys, payloads  [][]byte
}

func (c *columns) add(e *event.Event, key string) error {
	headers, err := marshalHeaders(e.Headers)
	if err != nil {
		return err
	}
	c.topics = append(c.topics, e.Topic)
	c.keys = append(c.keys, key)
	c.ids = append(c.ids, e.ID)
	c.partitions = append(c.partitions, e.Partition)
	c.offsets = append(c.offsets, e.Offset)
	c.times = append(c.times, e.RecordedAt)
	c.recordKeys = append(c.recordKeys, e.Key)
	c.headers = append(c.headers, headers)
	c.payloads = append(c.payloads, e.Value)
	return nil
}

// wake returns the record that calls for the key when it is due. It carries the head's headers and value
// so that a reader of the topic sees what waits and why; only key and token count.
func (l Ladder) wake(f Failure, key string, token int64, due time.Time) outbox.Record {
	headers := l.originHeaders(f)
	headers["hold_key"] = key
	headers["token"] = strconv.FormatInt(token, 10)
	headers["not_before"] = due.UTC().Format(time.RFC3339Nano)
	headers["attempt"] = strconv.Itoa(f.Attempts)
	return outbox.Record{EventID: f.Event.ID, Topic: rungTopic(f.Event.Topic, l.Consumer, l.Policy.rung(f.Attempts)),
		Key: plain(string(f.Event.Key)), ContentType: plain(f.Event.ContentType), Value: f.Event.Value, Headers: headers}
}

// originHeaders returns the event's own headers, as far as text can carry them, with where it came from
// and what went wrong.
func (l Ladder) originHeaders(f Failure) map[string]string {
	headers := make(map[string]string, len(f.Event.Headers)+8)
	for _, h := range f.Event.Headers {
		headers[plain(h.Key)] = plain(string(h.Value))
	}
	headers["event_id"] = f.Event.ID.String()
	headers["origin_topic"] = f.Event.Topic
	headers["origin_partition"] = strconv.Itoa(int(f.Event.Partition))
	headers["origin_offset"] = strconv.FormatInt(f.Event.Offset, 10)
	if f.Err != nil {
		headers["error"] = errorText(f.Err)
		headers["error_class"] = event.Classify(f.Err).String()
	}
	return headers
}

// maxErrorText bounds what is kept of an error, in bytes.
const maxErrorText = 2000

func errorText(err error) string {
	text := plain(err.Error())
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText], "")
	}
	return text
}

// plain returns text as PostgreSQL can hold it.
func plain(text string) string {
	if utf8.ValidString(text) && !strings.Contains(text, "\x00") {
		return text
	}
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}

// storedHeader keeps a header exactly: text when it is text, base64 otherwise.
type storedHeader struct {
	Key   string  `json:"k"`
	Text  *string `json:"v,omitempty"`
	Bytes []byte  `json:"b,omitempty"`
}

func marshalHeaders(headers []event.Header) (string, error) {
	stored := make([]storedHeader, len(headers))
	for i, h := range headers {
		stored[i].Key = plain(h.Key)
		if text := string(h.Value); h.Value != nil && plain(text) == text {
			stored[i].Text = &text
		} else {
			stored[i].Bytes = h.Value
		}
	}
	text, err := json.Marshal(stored)
	if err != nil {
		return "", fmt.Errorf("storing headers: %w", err)
	}
	return string(text), nil
}

func unmarshalHeaders(text []byte) ([]event.Header, error) {
	var stored []storedHeader
	if err := json.Unmarshal(text, &stored); err != nil {
		return nil, fmt.Errorf("reading stored headers: %w", err)
	}
	headers := make([]event.Header, len(stored))
	for i, s := range stored {
		headers[i] = event.Header{Key: s.Key, Value: s.Bytes}
		if s.Text != nil {
			headers[i].Value = []byte(*s.Text)
		}
	}
	return headers, nil
}
