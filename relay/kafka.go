package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// topic is a topic that exists.
type topic struct {
	name      string
	limit     int // bytes of the largest batch the topic takes
	published prometheus.Counter
}

// kafka is a session's Kafka client. topic belongs to the reading goroutine, the rest is safe from any.
type kafka struct {
	client   *kgo.Client
	admin    *kadm.Client
	create   bool
	metrics  *metrics
	topics   map[string]*topic
	limits   sync.Map     // topic name → int32; read by the client when it first meets a partition
	lastFail atomic.Value // of connectError: why the last connection to a broker failed
}

// connectError gives the atomic value one concrete type.
type connectError struct{ err error }

const (
	// defaultBatchBytes is what the topic takes by default (max.message.bytes is 1048588), with room
	// for a batch's own fields.
	defaultBatchBytes = 1 << 20
	batchMargin       = 512
	largestBatchBytes = 1 << 30
	// unknownTopicRetries outlasts the time that a new topic takes to be known to every broker. The
	// client's default of 4 does not.
	unknownTopicRetries = 20
	longestLinger       = 20 * time.Millisecond
	adminTimeout        = 15 * time.Second
	topicPoll           = 50 * time.Millisecond
)

func newKafka(cfg *Config, m *metrics) (*kafka, error) {
	k := &kafka{create: !cfg.NoCreateTopics, metrics: m, topics: make(map[string]*topic)}
	options := []kgo.Opt{
		kgo.ClientID("converge-relay"),
		kgo.DialTimeout(connectTimeout),
		// Batches end when push says so: a fixed linger delays rows that come seldom, and none makes
		// requests of one row when they come fast. This one is for what push missed.
		kgo.ProducerLinger(longestLinger),
		kgo.ProducerBatchCompression(kgo.Lz4Compression(), kgo.NoCompression()),
		kgo.UnknownTopicRetries(unknownTopicRetries),
		kgo.DisableClientMetrics(),
	}
	options = append(options, cfg.KafkaOptions...)
	options = append(options,
		kgo.SeedBrokers(cfg.Brokers...),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)), // murmur2 of the key, as every other client
		kgo.ProducerBatchMaxBytesFn(k.batchBytes),
		// The arenas bound what is buffered; Produce must never block the reader behind their back.
		kgo.MaxBufferedRecords(1<<30),
		kgo.WithHooks(k),
	)
	if cfg.ExactlyOnce {
		options = append(options, kgo.TransactionalID(transactionalID(cfg.Slot)), kgo.TransactionTimeout(transactionTimeout))
	}
	client, err := kgo.NewClient(options...)
	if err != nil {
		return nil, fmt.Errorf("making the Kafka client: %w", err)
	}
	k.client, k.admin = client, kadm.NewClient(client)
	return k, nil
}

// OnBrokerConnect keeps the reason for [Relay.Ready]; it implements kgo.HookBrokerConnect.
func (k *kafka) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	k.lastFail.Store(connectError{err})
}

// connectFailure returns why the latest connection to a broker could not be made, nil if it could.
func (k *kafka) connectFailure() error {
	last, _ := k.lastFail.Load().(connectError)
	return last.err
}

func (k *kafka) batchBytes(name string) int32 {
	if limit, ok := k.limits.Load(name); ok {
		return limit.(int32)
	}
	return defaultBatchBytes - batchMargin
}

// over is a context that has ended.
var over = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// push sends what lingers. A flush ends every linger before it begins to wait, and with a context that
// is over it does not wait.
func (k *kafka) push() {
	k.client.Flush(over) //nolint:errcheck // it is always the context's
}

// ping asks any broker for a sign of life.
func (k *kafka) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := k.client.Ping(ctx); err != nil {
		return kafkaRefused(fmt.Errorf("reaching Kafka: %w", err))
	}
	return nil
}

// topic returns the topic, making sure that it exists before the first record goes to it: the client
// fails records of a topic that it cannot find. A new name costs a few round trips, a known one none.
func (k *kafka) topic(ctx context.Context, name []byte) (*topic, error) {
	if t, known := k.topics[string(name)]; known {
		return t, nil
	}
	if !validTopic(name) {
		return nil, kerr.InvalidTopicException
	}
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	t := &topic{name: string(name), published: k.metrics.published.WithLabelValues(string(name))}
	if err := k.ensure(ctx, t.name, k.createTopic); err != nil {
		return nil, err
	}
	limit := k.maxMessageBytes(ctx, t.name)
	t.limit = int(limit)
	k.limits.Store(t.name, limit)
	k.topics[t.name] = t
	return t, nil
}

// validTopic reports whether a broker would have the name.
func validTopic(name []byte) bool {
	if len(name) == 0 || len(name) > 249 || string(name) == "." || string(name) == ".." {
		return false
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// ensure returns when every partition of the topic has a leader, making the topic first if need be.
func (k *kafka) ensure(ctx context.Context, name string, create func(ctx context.Context, name string) error) error {
	poll := time.NewTicker(topicPoll)
	defer poll.Stop()
	for created := false; ; {
		err := k.look(ctx, name)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, kerr.UnknownTopicOrPartition) && k.create && !created:
			if err := create(ctx, name); err != nil {
				return err
			}
			created = true
			continue
		case !kerr.IsRetriable(err), errors.Is(err, kerr.UnknownTopicOrPartition) && !created:
			return fmt.Errorf("looking up topic %q: %w", name, err)
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for topic %q: %w", name, err)
		}
	}
}

// look asks a broker for the topic. It does not go through kadm, which answers from the client's cache
// and makes a topic just created look missing for seconds.
func (k *kafka) look(ctx context.Context, name string) error {
	request := kmsg.NewPtrMetadataRequest()
	wanted := kmsg.NewMetadataRequestTopic()
	wanted.Topic = &name
	request.Topics = []kmsg.MetadataRequestTopic{wanted}
	response, err := request.RequestWith(ctx, k.client)
	if err != nil {
		return err
	}
	if len(response.Topics) != 1 || len(response.Topics[0].Partitions) == 0 && response.Topics[0].ErrorCode == 0 {
		return kerr.UnknownTopicOrPartition
	}
	if err := kerr.ErrorForCode(response.Topics[0].ErrorCode); err != nil {
		return err
	}
	for _, p := range response.Topics[0].Partitions {
		if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
			return err
		}
		if p.Leader < 0 {
			return kerr.LeaderNotAvailable
		}
	}
	return nil
}

func (k *kafka) createTopic(ctx context.Context, name string) error {
	return k.createTopicOf(ctx, name, brokersDefault, nil)
}

const brokersDefault = -1

func (k *kafka) createTopicOf(ctx context.Context, name string, partitions int32, settings map[string]*string) error {
	response, err := k.admin.CreateTopic(ctx, partitions, brokersDefault, settings, name)
	if err == nil {
		err = response.Err
	}
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return fmt.Errorf("creating topic %q: %w", name, err)
	}
	return nil
}

// maxMessageBytes asks for the topic's own limit, so that a row too large for it is refused before
// anything behind it is sent. Without the right to ask, the brokers' usual default is assumed.
func (k *kafka) maxMessageBytes(ctx context.Context, name string) int32 {
	configs, err := k.admin.DescribeTopicConfigs(ctx, name)
	if err != nil {
		return defaultBatchBytes - batchMargin
	}
	resource, err := configs.On(name, nil)
	if err != nil || resource.Err != nil {
		return defaultBatchBytes - batchMargin
	}
	for _, c := range resource.Configs {
		if c.Key == "max.message.bytes" && c.Value != nil {
			if n, err := strconv.Atoi(*c.Value); err == nil {
				return int32(min(max(n-batchMargin, batchMargin), largestBatchBytes))
			}
		}
	}
	return defaultBatchBytes - batchMargin
}
