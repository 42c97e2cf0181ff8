package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
)

const unreachedKafka = "start Kafka, or correct the addresses of the brokers, and whether they want TLS or a login"

func (x *examination) kafka(ctx context.Context) {
	cfg := x.relay.cfg
	cfg.ExactlyOnce = false // nothing is produced, and the relay that runs must not be fenced off
	k, err := newKafka(&cfg, x.relay.metrics)
	if err != nil {
		x.note("kafka", &fatalError{err, "correct the Kafka options"}, "")
		return
	}
	defer k.client.Close()
	if err := k.ping(ctx); err != nil {
		x.note("kafka", unreached(err, unreachedKafka), "")
		return
	}
	asking, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	brokers, err := k.admin.BrokerMetadata(asking)
	if !x.note("kafka", err, "%s, %d in all", strings.Join(cfg.Brokers, ","), len(brokers.Brokers)) {
		return
	}
	security, err := k.security()
	x.note("kafka security", err, "%s", security)
	x.eventTopics(asking, k)
	x.deadLetterTopic(asking, k)
	if x.relay.cfg.Source != SourcePolling {
		x.checkpoint(ctx, k)
	}
}

// checkpoint holds the slot against the checkpoint as a session does that begins.
func (x *examination) checkpoint(ctx context.Context, k *kafka) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	c := newCheckpoints(k, x.relay, nil)
	c.log = slog.New(slog.DiscardHandler)
	exists, err := k.checkTopic(ctx, c.topic)
	if err == nil && exists {
		c.last, c.exists, err = readCheckpoint(ctx, c.cfg, c.topic)
	}
	var fatal *fatalError
	switch {
	case !exists && errors.As(err, &fatal) && !x.relay.cfg.ExactlyOnce && x.relay.cfg.OnMissingSlot != BackfillMissingSlot:
		err = &advice{fatal.err, "create topic " + c.topic + " with one partition and cleanup.policy=compact; without it a slot that somebody moves is not found out"}
	case err == nil && c.exists && x.position != 0 && x.server != (identity{}):
		err = c.judge(x.server, x.position)
	}
	if c.exists {
		x.note("checkpoint", err, "%s, written %s", c.last.Confirmed, c.last.At.Format(time.RFC3339))
		return
	}
	x.note("checkpoint", err, "none yet; the relay writes it to %s", c.topic)
}

// security says how the client reaches the brokers.
func (k *kafka) security() (string, error) {
	encrypted := false
	if config, ok := k.client.OptValue(kgo.DialTLSConfig).(*tls.Config); ok && config != nil {
		encrypted = true
	}
	mechanisms, _ := k.client.OptValue(kgo.SASL).([]sasl.Mechanism)
	switch {
	case len(mechanisms) == 0 && !encrypted:
		return "no TLS, no login", nil
	case len(mechanisms) == 0:
		return "TLS, no login", nil
	case encrypted:
		return "TLS, " + mechanisms[0].Name(), nil
	case mechanisms[0].Name() == "PLAIN":
		return "", &advice{errors.New("PLAIN without TLS: the password crosses the network in clear"), "use the brokers' TLS port, or SCRAM"}
	}
	return mechanisms[0].Name() + ", no TLS", nil
}

// checkTopic returns whether the topic exists; an error when it does not and cannot be made either.
func (k *kafka) checkTopic(ctx context.Context, name string) (exists bool, err error) {
	err = k.look(ctx, name)
	if !errors.Is(err, kerr.UnknownTopicOrPartition) {
		if err != nil {
			err = &fatalError{fmt.Errorf("topic %s: %w", name, err), remedies[reason(err)]}
		}
		return err == nil, err
	}
	if !k.create {
		return false, &fatalError{fmt.Errorf("topic %s does not exist", name), "create it, or let the relay create topics"}
	}
	const brokersDefault = -1
	responses, err := k.admin.ValidateCreateTopics(ctx, brokersDefault, brokersDefault, nil, name)
	if err == nil {
		err = responses[name].Err
	}
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return false, &fatalError{fmt.Errorf("topic %s does not exist and may not be created: %w", name, err), "create it, or grant the relay CREATE"}
	}
	return false, nil
}

// eventTopics looks at the topics that the rows name.
func (x *examination) eventTopics(ctx context.Context, k *kafka) {
	if len(x.topics) == 0 {
		x.note("topics", nil, "the tables hold no rows that could name any")
		return
	}
	var there, missing []string
	for _, name := range slices.Sorted(maps.Keys(x.topics)) {
		if !validTopic([]byte(name)) {
			x.note("topic "+name, &advice{errors.New("no topic can have this name: its rows are dead letters"), remedies[reasonInvalidTopic]}, "")
			continue
		}
		exists, err := k.checkTopic(ctx, name)
		switch {
		case err != nil:
			x.note("topic "+name, err, "")
		case exists:
			there = append(there, name)
			x.limit(ctx, k, name)
		default:
			missing = append(missing, name)
		}
	}
	if len(there) > 0 {
		x.note("topics", nil, "%s: there", strings.Join(there, ", "))
	}
	if len(missing) > 0 {
		x.note("topics", nil, "%s: will be created when the first row comes", strings.Join(missing, ", "))
	}
}

// limit holds a topic's limit against the rows seen.
func (x *examination) limit(ctx context.Context, k *kafka, name string) {
	limit := int(k.maxMessageBytes(ctx, name))
	if largest := x.topics[name]; largest > limit {
		x.note("topic "+name, &advice{fmt.Errorf("takes records of %s, and a payload of %s is among the rows: it is a dead letter",
			bytesText(float64(limit)), bytesText(float64(largest))), remedies[reasonTooLarge]}, "")
	}
}

func (x *examination) deadLetterTopic(ctx context.Context, k *kafka) {
	name := x.relay.cfg.DeadLetterTopic
	exists, err := k.checkTopic(ctx, name)
	var fatal *fatalError
	switch {
	case errors.As(err, &fatal): // it is not missed before a row is refused
		x.note("dead letters", &advice{fatal.err, fatal.fix + "; until then a row that is refused stops the stream"}, "")
	case exists:
		x.note("dead letters", err, "%s is there", name)
	default:
		x.note("dead letters", err, "%s will be created when a row is refused", name)
	}
}
