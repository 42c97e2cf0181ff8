package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strconv"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/relay/pgoutput"
)

// refusal is a row that cannot become a record on its topic.
//
// A refusal that someone can lift (a topic that is missing, a right that is) stops the stream in front of
// the row. One that no waiting lifts is poison: the row goes to the dead-letter topic and the stream goes
// on. What the reader itself finds out is certain. What a broker says is said of a batch, so its rows are
// suspects first: the next session sends them one by one, and who is refused alone is condemned.
type refusal struct {
	reason  string // a value of the label reason
	table   string
	id      eventID
	topic   string
	err     error
	company suspects // who was sent with it, when a broker refused it in company
	dead    bool     // what was refused is the dead letter
}

// suspects are the rows for a topic in the transactions whose commit records are not after until.
type suspects struct {
	topic string
	until pgoutput.LSN
}

func (r *refusal) Error() string {
	return fmt.Sprintf("publishing event %s of %s to topic %s: %v: %s", r.id, r.table, r.topic, r.err, remedies[r.reason])
}

func (r *refusal) Unwrap() error { return r.err }

// poison reports whether no waiting helps.
func (r *refusal) poison() bool {
	return r.reason != reasonUnknownTopic && r.reason != reasonDenied && !r.dead
}

// refuse makes the refusal of a row that is not a record yet.
func (l *layout) refuse(tuple pgoutput.Tuple, reason string, err error) error {
	var scratch []byte
	return &refusal{reason: reason, table: l.table, topic: string(l.topicOf(&scratch, tuple)), err: err, id: l.identity(tuple)}
}

// refuse makes the refusal of a record by Kafka.
func (p *publisher) refuse(r *row, err error) error {
	if !refused(err) {
		return fmt.Errorf("publishing to topic %s: %w", r.topic.name, err)
	}
	no := &refusal{reason: reason(err), table: r.layout.table, id: r.id, topic: r.topic.name, err: err, dead: r.dead}
	if !p.alone(r) {
		no.company = suspects{no.topic, p.tracker.newest()}
	}
	return no
}

// alone reports whether the row is a suspect, which are sent one by one.
func (p *publisher) alone(r *row) bool {
	return r.transaction.lsn <= p.suspects.until && r.topic.name == p.suspects.topic
}

// refused tells a no to the row from a broker that is away, broken, or done with this producer: what is not known
// to be the row's fault is an outage.
func refused(err error) bool { return reason(err) != "" }

// reason classifies an error of Kafka's for the label of relay_publish_errors_total; "" when it is not about the
// row.
func reason(err error) string {
	switch {
	case errors.Is(err, kerr.MessageTooLarge), errors.Is(err, kerr.RecordListTooLarge):
		return reasonTooLarge
	case errors.Is(err, kerr.InvalidTopicException):
		return reasonInvalidTopic
	case errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.UnknownTopicID):
		return reasonUnknownTopic
	case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed):
		return reasonDenied
	case errors.Is(err, kerr.InvalidRecord), errors.Is(err, kerr.InvalidTimestamp), errors.Is(err, kerr.UnsupportedForMessageFormat):
		return reasonRejected
	}
	return ""
}

// remedies says what to do about a refused record, by reason.
var remedies = map[string]string{
	reasonTooLarge:     "raise max.message.bytes of the topic and the consumers' fetch sizes",
	reasonUnknownTopic: "create the topic, or let the relay create topics; the stream waits in front of this row",
	reasonInvalidTopic: "topic names are made of a-z, A-Z, 0-9, '.', '_' and '-', at most 249",
	reasonDenied:       "grant the relay WRITE on the topic and, unless topics are made by hand, CREATE; the stream waits in front of this row",
	reasonHeaders:      "the headers column must hold a JSON object of strings",
	reasonRejected:     "see the brokers' log",
	reasonMessage:      "write a JSON object by the names of an outbox's columns, in a transaction: pg_logical_emit_message(true, …)",
}

// condemn notes what a broker refused: a row that had company makes suspects of all, one that was alone is
// to be a dead letter.
func (r *Relay) condemn(no *refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if no.company.until != 0 {
		r.suspects = no.company
		r.log.Warn("a batch was refused: its rows are sent again one by one", slog.Any(keyError, no))
		return
	}
	if r.doomed == nil {
		r.doomed = make(map[eventID]*refusal)
	}
	r.doomed[no.id] = no
}

// verdicts returns whose rows are to be sent one by one, and which are to be dead letters.
func (r *Relay) verdicts() (suspects, map[eventID]*refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.suspects, maps.Clone(r.doomed)
}

// buried notes that the row's dead letter is acknowledged: the same row, sent on purpose, may try again.
func (r *Relay) buried(id eventID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.doomed, id)
}

// The headers of a dead letter, beside those that tell what it was.
const (
	headerError        = "error"
	headerErrorClass   = "error_class"
	headerOriginTopic  = "origin_topic"
	headerOriginTable  = "origin_table"
	headerCommitLSN    = "commit_lsn"
	headerOrdinal      = "ordinal" // of the row among its transaction's, from 0
	headerSeq          = "seq"     // of a polled row, which has no place in the WAL
	headerPayloadBytes = "payload_bytes"
)

// bury makes the row's dead letter. What does not fit is left out: the row itself is still in its table.
func (p *publisher) bury(ctx context.Context, r *row, tuple pgoutput.Tuple, no *refusal) error {
	to, err := p.kafka.topic(ctx, []byte(p.relay.cfg.DeadLetterTopic))
	if err != nil {
		if errors.Is(context.Cause(ctx), errStopped) {
			return errStopped
		}
		return fmt.Errorf("looking up the dead-letter topic: %w", err)
	}
	at := func(f field) []byte { return r.layout.at(tuple, f) }
	h := heading{layout: r.layout, tuple: tuple}
	id, err := h.id()
	if err != nil {
		return err
	}
	key, err := r.layout.key(&h)
	if err != nil {
		return err
	}
	payload := r.layout.payload(tuple)
	where := []kgo.RecordHeader{header(headerCommitLSN, []byte(r.transaction.lsn.String())),
		header(headerOrdinal, strconv.AppendInt(nil, r.transaction.skipped+r.transaction.sent, 10))}
	if p.polled {
		where = []kgo.RecordHeader{header(headerSeq, strconv.AppendInt(nil, int64Of(tuple[len(tuple)-1]), 10))}
	}
	where = append(where, header(headerPayloadBytes, strconv.AppendInt(nil, int64(len(payload)), 10)))
	r.topic, r.dead = to, true
	r.headers = append(r.headers[:0],
		header(headerEventID, id),
		header(headerEventType, at(fieldEventType)),
		header(headerContentType, r.layout.contentType(tuple)),
		header(headerOriginTopic, []byte(no.topic)),
		header(headerOriginTable, []byte(no.table)),
		header(headerErrorClass, []byte(no.reason)),
		header(headerError, []byte(no.err.Error())))
	r.headers = append(r.headers, where...)
	r.record = kgo.Record{Key: key, Value: payload, Headers: r.headers, Timestamp: r.transaction.committed, Topic: to.name}
	if recordSize(&r.record) > to.limit {
		r.record.Value = nil
	}
	if recordSize(&r.record) > to.limit {
		r.record.Key = nil
		r.record.Headers = where // it is always said where it is
	}
	p.metrics.publishErrors.WithLabelValues(no.reason).Inc()
	p.log.Error("a row is a dead letter", slog.Any(keyError, no), slog.String("dead_letter_topic", to.name))
	return nil
}
