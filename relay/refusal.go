package relay

import (
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"

	"converge/relay/pgoutput"
)

// refusal is a row that cannot become a record on its topic. The stream stops in front of it.
type refusal struct {
	reason  string // a value of the label reason
	table   string
	eventID string
	topic   string
	err     error
}

func (r *refusal) Error() string {
	return fmt.Sprintf("publishing event %s of %s to topic %s: %v: %s; the stream waits in front of this row",
		r.eventID, r.table, r.topic, r.err, remedies[r.reason])
}

func (r *refusal) Unwrap() error { return r.err }

// refuse makes the refusal of a row that is not a record yet.
func (l *layout) refuse(tuple pgoutput.Tuple, reason string, err error) error {
	return &refusal{
		reason:  reason,
		table:   l.table,
		eventID: string(appendUUID(nil, tuple[l.index[fieldEventID]].Data)),
		topic:   string(tuple[l.index[fieldTopic]].Data),
		err:     err,
	}
}

// refuse makes the refusal of a record by Kafka.
func (r *row) refuse(err error) error {
	if !refused(err) {
		return fmt.Errorf("publishing to topic %s: %w", r.topic.name, err)
	}
	return &refusal{reason: reason(err), table: r.layout.table, eventID: r.eventID(), topic: r.topic.name, err: err}
}

// eventID returns the event's id, or says that the record is not an event's.
func (r *row) eventID() string {
	for _, h := range r.headers {
		if h.Key == headerEventID {
			return string(h.Value)
		}
	}
	return "(none)"
}

// refused tells a broker's no from a broker that is away.
func refused(err error) bool {
	var no *kerr.Error
	return errors.As(err, &no) && !(no.Retriable && reason(err) == reasonRejected)
}

// reason classifies an error of Kafka's for the label of relay_publish_errors_total.
func reason(err error) string {
	switch {
	case errors.Is(err, kerr.MessageTooLarge), errors.Is(err, kerr.RecordListTooLarge):
		return reasonTooLarge
	case errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.UnknownTopicID), errors.Is(err, kerr.InvalidTopicException):
		return reasonUnknownTopic
	case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed):
		return reasonDenied
	default:
		return reasonRejected
	}
}

// remedies says what to do about a refused record, by reason.
var remedies = map[string]string{
	reasonTooLarge:     "raise max.message.bytes of the topic and the consumers' fetch sizes",
	reasonUnknownTopic: "create the topic, or let the relay create topics",
	reasonDenied:       "grant the relay WRITE on the topic and, unless topics are made by hand, CREATE",
	reasonHeaders:      "the headers column must hold a JSON object of strings",
	reasonRejected:     "see the brokers' log",
}
