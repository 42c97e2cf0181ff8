package kafkatest

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
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/internal/process"
)

// Real reports whether the tests were asked to run on a real Kafka.
func Real() bool { return os.Getenv("CONVERGE_TEST_KAFKA") == "real" }

// Broker is a running broker. Its methods belong to the test that started it and are not safe for
// concurrent use.
type Broker struct {
	t       testing.TB
	brokers string
	own     bool

	cfg       Config
	libs, dir string
	cmd       *exec.Cmd       // nil: not running
	done      <-chan struct{} // closed when the process has ended
}

// Config is what a broker of the test's own is to have besides the defaults.
type Config struct {
	// Advertise is given the address where the broker listens, HOST:PORT, and returns the one that it tells
	// clients, a proxy's for example. nil: its own.
	Advertise func(address string) string
	// Settings are lines of server.properties.
	Settings []string
}

// Start returns a broker of the test's own, or the cluster that KAFKA_BROKERS names. It skips the test
// unless a real Kafka was asked for, and fails it when there is none to be had.
func Start(t testing.TB) *Broker {
	t.Helper()
	if !Real() {
		t.Skip("a real Kafka was not asked for: make test-kafka does (CONVERGE_TEST_KAFKA=real)")
	}
	if given := os.Getenv("KAFKA_BROKERS"); given != "" {
		return borrow(t, given)
	}
	return StartOwn(t, Config{})
}

// StartOwn returns a broker of the test's own, whatever was asked for.
func StartOwn(t testing.TB, cfg Config) *Broker {
	t.Helper()
	for _, command := range []string{"java", "mvn"} {
		if _, err := exec.LookPath(command); err != nil {
			t.Fatalf("%s is not installed: install Java 17 or later and Maven (Debian: openjdk-17-jre-headless maven), or name a cluster with KAFKA_BROKERS", command)
		}
	}
	libs, err := Jars(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b := &Broker{t: t, own: true, cfg: cfg, libs: libs, dir: t.TempDir()}
	t.Cleanup(b.end)
	// The ports are free when they are chosen; whoever takes one before the broker does makes it end.
	for tries := 1; ; tries++ {
		if err := b.format(); err != nil {
			t.Fatal(err)
		}
		if err = b.run(); err == nil {
			return b
		}
		if !errors.Is(err, errEnded) || tries == 3 {
			t.Fatal(err)
		}
	}
}

// Brokers returns where clients begin: HOST:PORT, several of them separated by commas.
func (b *Broker) Brokers() string { return b.brokers }

// PID is the process id of a broker of the test's own.
func (b *Broker) PID() int { return b.cmd.Process.Pid }

// Own reports whether the broker is the test's own. Only then may Kill, Stop and Restart be called: a test
// that needs them skips for a cluster that was given.
func (b *Broker) Own() bool { return b.own }

// Kill ends the broker at once, as kill -9 does, and returns when it is gone.
func (b *Broker) Kill() {
	b.t.Helper()
	b.mustBeOwn()
	b.end()
}

// stopTime bounds a controlled shutdown.
const stopTime = 30 * time.Second

// Stop asks the broker for a controlled shutdown and returns when it is gone.
func (b *Broker) Stop() {
	b.t.Helper()
	b.mustBeOwn()
	if b.cmd == nil {
		return
	}
	if err := b.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		b.t.Fatalf("stopping Kafka: %v", err)
	}
	select {
	case <-b.done:
		b.cmd = nil
	case <-time.After(stopTime):
		b.t.Fatalf("Kafka did not stop within %v; its log ends with:\n%s", stopTime, b.logTail())
	}
}

// Restart starts the broker again where it was, on the data that is there, and returns when it answers.
func (b *Broker) Restart() {
	b.t.Helper()
	b.mustBeOwn()
	if b.cmd != nil {
		b.t.Fatal("restarting Kafka: it still runs")
	}
	if err := b.run(); err != nil {
		b.t.Fatal(err)
	}
}

func (b *Broker) mustBeOwn() {
	b.t.Helper()
	if !b.own {
		b.t.Fatal("the cluster that KAFKA_BROKERS names is not the test's to stop")
	}
}

func (b *Broker) properties() string { return filepath.Join(b.dir, "server.properties") }
func (b *Broker) logFile() string    { return filepath.Join(b.dir, "server.log") }

// format chooses the ports and makes an empty data directory for them.
func (b *Broker) format() error {
	data := filepath.Join(b.dir, "data")
	if err := os.RemoveAll(data); err != nil {
		return fmt.Errorf("clearing Kafka's data: %w", err)
	}
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	b.brokers = net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0]))
	controller := net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[1]))
	advertised := b.brokers
	if b.cfg.Advertise != nil {
		advertised = b.cfg.Advertise(b.brokers)
	}
	// What is not said is as in docker-compose.yml, or the default. A single node needs few internal partitions.
	settings := []string{
		"process.roles=broker,controller",
		"node.id=1",
		"controller.quorum.voters=1@" + controller,
		"listeners=PLAINTEXT://" + b.brokers + ",CONTROLLER://" + controller,
		"advertised.listeners=PLAINTEXT://" + advertised,
		"controller.listener.names=CONTROLLER",
		"inter.broker.listener.name=PLAINTEXT",
		"log.dirs=" + data,
		"auto.create.topics.enable=false",
		"group.initial.rebalance.delay.ms=0",
		// A broker that was killed is let in again when its old session is over.
		"broker.session.timeout.ms=2000",
		"broker.heartbeat.interval.ms=500",
		"offsets.topic.num.partitions=4",
		"offsets.topic.replication.factor=1",
		"transaction.state.log.num.partitions=4",
		"transaction.state.log.replication.factor=1",
		"transaction.state.log.min.isr=1",
		"share.coordinator.state.topic.replication.factor=1",
		"share.coordinator.state.topic.min.isr=1",
	}
	settings = append(settings, b.cfg.Settings...)
	if err := os.WriteFile(b.properties(), []byte(strings.Join(settings, "\n")+"\n"), 0o644); err != nil {
		return fmt.Errorf("writing Kafka's properties: %w", err)
	}
	const clusterID = "converge-tests-000000w" // 16 bytes in base64url, as a UUID
	out, err := b.java("kafka.tools.StorageTool", "format", "-t", clusterID, "-c", b.properties()).CombinedOutput()
	if err != nil {
		return fmt.Errorf("formatting Kafka's storage: %w\n%s", err, bytes.TrimSpace(out))
	}
	return nil
}

// java returns a command with a small heap and without what a short life cannot repay.
func (b *Broker) java(class string, args ...string) *exec.Cmd {
	flags := []string{"-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
		"-cp", filepath.Join(b.libs, "*"), class}
	cmd := exec.Command("java", append(flags, args...)...)
	cmd.Dir = b.dir
	return cmd
}

var errEnded = errors.New("the Kafka broker ended at its start")

// startTime bounds a start, with the recovery of a log that was not closed.
const startTime = 90 * time.Second

// run starts the broker and returns when it answers.
func (b *Broker) run() error {
	log, err := os.OpenFile(b.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("opening Kafka's log: %w", err)
	}
	defer log.Close() // the broker has its own
	cmd := b.java("kafka.Kafka", b.properties())
	cmd.Stdout, cmd.Stderr = log, log
	done, err := process.StartChild(cmd)
	if err != nil {
		return fmt.Errorf("starting Kafka: %w", err)
	}
	b.cmd, b.done = cmd, done
	return b.await()
}

// await returns when the broker answers a metadata request.
func (b *Broker) await() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(b.brokers))
	if err != nil {
		return fmt.Errorf("making a Kafka client: %w", err)
	}
	defer client.Close()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		asking, stop := context.WithTimeout(ctx, 2*time.Second)
		_, err := kadm.NewClient(client).BrokerMetadata(asking)
		stop()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-b.done:
			b.cmd = nil
			return fmt.Errorf("%w; its log ends with:\n%s", errEnded, b.logTail())
		case <-ctx.Done():
			return fmt.Errorf("the Kafka broker does not answer: %w; its log ends with:\n%s", err, b.logTail())
		}
	}
}

// end kills the broker if it runs, and waits until it is gone.
func (b *Broker) end() {
	if b.cmd == nil {
		return
	}
	_ = syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL) // ESRCH: it has ended already
	<-b.done
	b.cmd = nil
}

func (b *Broker) logTail() []byte {
	text, err := os.ReadFile(b.logFile())
	if err != nil {
		return []byte(err.Error())
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-15):], []byte("\n"))
}

func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("looking for a free port: %w", err)
		}
		defer l.Close() // all at once, so that no two are the same
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
