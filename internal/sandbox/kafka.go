package sandbox

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"

	"github.com/twmb/franz-go/pkg/kfake"

	"converge/internal/opshttp"
)

// KafkaConfig says where the embedded broker lives.
type KafkaConfig struct {
	Dir  string // made if need be; the data that is there is served again
	Addr string // host:port to listen on; port 0 takes a free one
}

// Kafka is an embedded broker: franz-go's kfake, which speaks the real protocol to any client.
type Kafka struct {
	addr    string
	cluster *kfake.Cluster
	close   sync.Once
}

// Memory and disk stay small: old records of a partition go beyond this many bytes.
const (
	retentionBytes = 256 << 20
	segmentBytes   = 32 << 20
)

// StartKafka starts a broker and returns when it answers. It creates no topics by itself.
func StartKafka(cfg KafkaConfig) (*Kafka, error) {
	listener, err := opshttp.Listen(cfg.Addr, "--kafka")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		listener.Close()
		return nil, fmt.Errorf("making the directory of the embedded Kafka: %w", err)
	}
	cluster, err := kfake.NewCluster(
		kfake.NumBrokers(1),
		kfake.Ports(listener.Addr().(*net.TCPAddr).Port),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return listener, nil }),
		kfake.DataDir(cfg.Dir),
		kfake.BrokerConfigs(map[string]string{
			"log.retention.bytes":              strconv.Itoa(retentionBytes),
			"log.segment.bytes":                strconv.Itoa(segmentBytes),
			"log.cleaner.backoff.ms":           "30000",
			"group.initial.rebalance.delay.ms": "0",
		}),
	)
	if err != nil {
		listener.Close()
		return nil, fmt.Errorf("starting the embedded Kafka on the data in %s: %w", cfg.Dir, err)
	}
	return &Kafka{addr: listener.Addr().String(), cluster: cluster}, nil
}

// Brokers returns the address that clients start from.
func (k *Kafka) Brokers() []string { return []string{k.addr} }

// Close stops the broker and flushes its data. It may be called more than once.
func (k *Kafka) Close() { k.close.Do(k.cluster.Close) }
