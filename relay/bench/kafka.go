package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/internal/kafkatest"
	"converge/internal/process"
	"converge/internal/sandbox"
)

// partitions is how many the topic has.
const partitions = 3

// kafka is the broker that everything goes to.
type kafka struct {
	brokers []string
	version string
	pid     int // of a broker in a process of its own, else 0
	admin   *kadm.Client
	close   func()
}

// startKafka starts a real broker, or the embedded one, with the topic.
func startKafka(ctx context.Context, dir string, embedded bool) (k *kafka, err error) {
	if embedded {
		k, err = startEmbedded(dir)
	} else {
		k, err = startReal(ctx, dir)
	}
	if err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(k.brokers...), kgo.DisableClientMetrics())
	if err != nil {
		k.close()
		return nil, fmt.Errorf("making a Kafka client: %w", err)
	}
	stop := k.close
	k.admin, k.close = kadm.NewClient(client), func() {
		client.Close()
		stop()
	}
	if err := k.createTopic(ctx); err != nil {
		k.close()
		return nil, err
	}
	return k, nil
}

func startEmbedded(dir string) (*kafka, error) {
	embedded, err := sandbox.StartKafka(sandbox.KafkaConfig{Dir: dir, Addr: "127.0.0.1:0"})
	if err != nil {
		return nil, err
	}
	return &kafka{brokers: embedded.Brokers(), version: "embedded (kfake)", close: embedded.Close}, nil
}

// startReal runs one node of Apache Kafka with its start script's settings for the JVM.
func startReal(ctx context.Context, dir string) (*kafka, error) {
	libs, err := kafkatest.Jars(ctx)
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making Kafka's directory: %w", err)
	}
	k := &kafka{brokers: []string{"127.0.0.1:" + ports[0]}, version: jarVersion(libs, "kafka-clients")}
	file := filepath.Join(dir, "server.properties")
	err = writeProperties(file, map[string]string{
		"process.roles": "broker,controller", "node.id": "1", "controller.quorum.voters": "1@127.0.0.1:" + ports[1],
		"listeners":            "PLAINTEXT://127.0.0.1:" + ports[0] + ",CONTROLLER://127.0.0.1:" + ports[1],
		"advertised.listeners": "PLAINTEXT://127.0.0.1:" + ports[0], "controller.listener.names": "CONTROLLER",
		"inter.broker.listener.name": "PLAINTEXT", "log.dirs": filepath.Join(dir, "data"), "auto.create.topics.enable": "false",
		"group.initial.rebalance.delay.ms": "0", "offsets.topic.num.partitions": "4", "offsets.topic.replication.factor": "1",
		"transaction.state.log.num.partitions": "4", "transaction.state.log.replication.factor": "1", "transaction.state.log.min.isr": "1",
		"log.segment.bytes": "268435456", "log.segment.delete.delay.ms": "1000",
	})
	if err != nil {
		return nil, err
	}
	const clusterID = "converge-bench-000000w" // 16 bytes in base64url, as a UUID
	format := java(libs, nil, "kafka.tools.StorageTool", "format", "-t", clusterID, "-c", file)
	if out, err := format.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("formatting Kafka's storage: %w\n%s", err, bytes.TrimSpace(out))
	}
	p, err := startProcess(java(libs, []string{"-Xms1g", "-Xmx1g", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"}, "kafka.Kafka", file),
		filepath.Join(dir, "server.log"))
	if err != nil {
		return nil, fmt.Errorf("starting Kafka: %w", err)
	}
	k.pid, k.close = p.pid(), p.kill
	if err := k.await(ctx, p); err != nil {
		p.kill()
		return nil, err
	}
	return k, nil
}

// await returns when the broker answers.
func (k *kafka) await(ctx context.Context, p *child) error {
	admin, err := kadm.NewOptClient(kgo.SeedBrokers(k.brokers...), kgo.DisableClientMetrics())
	if err != nil {
		return fmt.Errorf("making a Kafka client: %w", err)
	}
	defer admin.Close()
	return until(ctx, "Kafka answers", func() (bool, error) {
		asking, stop := context.WithTimeout(ctx, 2*time.Second)
		defer stop()
		_, err := admin.BrokerMetadata(asking)
		return err == nil, p.ended()
	})
}

func (k *kafka) createTopic(ctx context.Context) error {
	response, err := k.admin.CreateTopic(ctx, partitions, 1, nil, topicName)
	if err := errors.Join(err, response.Err); err != nil {
		return fmt.Errorf("creating the topic: %w", err)
	}
	return until(ctx, "the topic is there", func() (bool, error) {
		at, err := k.ends(ctx)
		return err == nil && len(at) == partitions, nil
	})
}

// offsets are positions in the topic, by partition.
type offsets map[int32]int64

func (o offsets) sum() (n int64) {
	for _, at := range o {
		n += at
	}
	return n
}

// ends returns the topic's end, which is past every acknowledged record.
func (k *kafka) ends(ctx context.Context) (offsets, error) {
	listed, err := k.admin.ListEndOffsets(ctx, topicName)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("reading the topic's end: %w", err)
	}
	at := offsets{}
	listed.Each(func(o kadm.ListedOffset) { at[o.Partition] = o.Offset })
	return at, nil
}

// forget lets the broker remove what the topic holds.
func (k *kafka) forget(ctx context.Context) error {
	at, err := k.ends(ctx)
	if err != nil {
		return err
	}
	remove := kadm.Offsets{}
	for partition, offset := range at {
		remove.AddOffset(topicName, partition, offset, -1)
	}
	deleted, err := k.admin.DeleteRecords(ctx, remove)
	if err == nil {
		err = deleted.Error()
	}
	if err != nil {
		return fmt.Errorf("emptying the topic: %w", err)
	}
	return nil
}

// java returns a command on the jars of a directory.
func java(libs string, flags []string, class string, args ...string) *exec.Cmd {
	flags = append(flags, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", filepath.Join(libs, "*"), class)
	return exec.Command("java", append(flags, args...)...)
}

// jarVersion returns the version in a jar's name.
func jarVersion(libs, artifact string) string {
	found, _ := filepath.Glob(filepath.Join(libs, artifact+"-[0-9]*.jar")) // the pattern is well formed
	if len(found) == 0 {
		return "unknown"
	}
	return strings.TrimSuffix(strings.TrimPrefix(filepath.Base(found[0]), artifact+"-"), ".jar")
}

func writeProperties(file string, settings map[string]string) error {
	var text bytes.Buffer
	for name, value := range settings {
		fmt.Fprintf(&text, "%s=%s\n", name, value)
	}
	if err := os.WriteFile(file, text.Bytes(), 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", filepath.Base(file), err)
	}
	return nil
}

func freePorts(n int) ([]string, error) {
	var ports []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("looking for a free port: %w", err)
		}
		defer l.Close() // all at once, so that no two are the same
		ports = append(ports, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	}
	return ports, nil
}

// child is a process that dies with this one.
type child struct {
	cmd  *exec.Cmd
	done <-chan struct{}
	log  string
}

// startProcess starts a command with its output in a file.
func startProcess(cmd *exec.Cmd, logFile string) (*child, error) {
	log, err := os.Create(logFile)
	if err != nil {
		return nil, fmt.Errorf("opening a log: %w", err)
	}
	defer log.Close() // the process has its own
	cmd.Stdout, cmd.Stderr = log, log
	done, err := process.StartChild(cmd)
	if err != nil {
		return nil, err
	}
	return &child{cmd, done, logFile}, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// ended returns an error that says how, if the process has ended.
func (c *child) ended() error {
	select {
	case <-c.done:
		return fmt.Errorf("%s ended: %s; its log ends with:\n%s", filepath.Base(c.cmd.Path), c.cmd.ProcessState, c.logTail())
	default:
		return nil
	}
}

func (c *child) logTail() []byte {
	text, err := os.ReadFile(c.log)
	if err != nil {
		return []byte(err.Error())
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-15):], []byte("\n"))
}

// kill ends the process at once and waits until it is gone.
func (c *child) kill() {
	_ = c.cmd.Process.Kill() // it may have ended already
	<-c.done
}
