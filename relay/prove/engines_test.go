package prove

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/internal/database"
	"converge/internal/nettest"
	"converge/internal/sandbox"
	"converge/producers/outbox"
)

const (
	service = "orders"
	table   = service + ".outbox"
	slot    = "converge"
	// patience bounds every wait for something that should happen soon.
	patience = 2 * time.Minute
)

// server is a PostgreSQL of the run's own, the relay's way to it and what has become of it.
type server struct {
	t        testing.TB
	postgres *sandbox.Postgres // the one that runs now: the test's own goroutine's
	address  string            // a restart keeps it
	settings map[string]string
	epoch    atomic.Int64 // changes whenever it may have forgotten confirmations
	leg      *leg
}

func startServer(t testing.TB, settings map[string]string) *server {
	t.Helper()
	s := &server{t: t, settings: settings}
	s.start(t.TempDir(), 0)
	s.address = s.postgres.URL()
	t.Cleanup(func() { // one that was stopped in its tracks cannot end
		if err := s.stop(syscall.SIGINT); err != nil {
			t.Logf("stopping PostgreSQL: %v", err)
		}
	})
	err := database.Migrate(t.Context(), s.url(), database.Module{Service: service,
		Sets: []database.Set{{Name: "outbox", FS: outbox.Migrations}}})
	if err != nil {
		t.Fatal(err)
	}
	s.leg = &leg{t: t}
	s.leg.to(fmt.Sprintf("127.0.0.1:%d", s.postgres.Port()))
	return s
}

func (s *server) start(dir string, port int) {
	p, err := sandbox.StartPostgres(context.Background(), sandbox.PostgresConfig{Dir: dir, Port: port, Volatile: true, Settings: s.settings})
	if err != nil {
		s.t.Fatal(err)
	}
	s.postgres = p
}

// url is the way for everyone but the relay.
func (s *server) url() string { return s.address }

// relayURL goes through the leg.
func (s *server) relayURL() string {
	u, err := url.Parse(s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	u.Host = s.leg.proxies[0].Addr()
	return u.String()
}

// stop ends the server by a signal, SIGINT for a fast shutdown, SIGQUIT for a crash.
func (s *server) stop(how syscall.Signal) error {
	if how == syscall.SIGQUIT {
		s.epoch.Add(1)
	}
	if err := s.postgres.Signal(how); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	select {
	case <-s.postgres.Done():
		return nil
	case <-time.After(5 * time.Second): // a fast shutdown waits for the relay to take all that there is
	}
	s.epoch.Add(1)
	_ = s.postgres.Signal(syscall.SIGCONT)
	_ = s.postgres.Signal(syscall.SIGQUIT)
	select {
	case <-s.postgres.Done():
		return nil
	case <-time.After(patience):
		return errors.New("PostgreSQL does not end")
	}
}

// again starts it where it was.
func (s *server) again() {
	s.start(s.postgres.Dir, s.postgres.Port())
	s.epoch.Add(1)
}

// leg is the network between the relay and one side of it.
type leg struct {
	t       testing.TB
	proxies []*nettest.Proxy
}

// to adds a way to an address and returns where it begins.
func (l *leg) to(address string) string {
	l.proxies = append(l.proxies, nettest.To(l.t, address))
	return l.proxies[len(l.proxies)-1].Addr()
}

// poison puts a toxic on every way, in the directions named, for connections that there are and those to come.
func (l *leg) poison(toxic nettest.Toxic, directions ...nettest.Direction) {
	for _, p := range l.proxies {
		p.Poison(toxic, directions...)
	}
}

// reset ends every connection once it has lasted so long.
func (l *leg) reset(after time.Duration) {
	for _, p := range l.proxies {
		p.Reset(after)
	}
}

// cut refuses and drops connections until mend.
func (l *leg) cut() {
	for _, p := range l.proxies {
		p.Close()
	}
}

// mend makes every way good again. It drops the connections.
func (l *leg) mend() {
	for _, p := range l.proxies {
		p.Mend()
	}
}

const (
	brokers    = 2
	partitions = 3
)

// cluster is an embedded Kafka whose clients are told the leg's addresses.
type cluster struct {
	t      testing.TB
	dir    string
	kafka  *kfake.Cluster
	leg    *leg
	direct map[string]string // the address behind each of the leg's
	ports  []int
}

func startCluster(t testing.TB) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), leg: &leg{t: t}, direct: map[string]string{}}
	c.start()
	t.Cleanup(func() { c.kafka.Close() })
	return c
}

// start starts the brokers, where they were before if this is not the first time.
func (c *cluster) start() {
	opts := []kfake.Opt{kfake.NumBrokers(brokers), kfake.DefaultNumPartitions(partitions), kfake.DataDir(c.dir),
		kfake.BrokerConfigs(map[string]string{"log.segment.bytes": "8388608", "log.retention.bytes": "33554432", "log.cleaner.backoff.ms": "15000"})}
	again := len(c.ports) > 0
	if again {
		opts = append(opts, kfake.Ports(c.ports...))
	}
	started := 0
	opts = append(opts, kfake.ListenFn(func(network, address string) (net.Listener, error) {
		l, err := net.Listen(network, address)
		if err != nil {
			return nil, err
		}
		if !again {
			c.ports = append(c.ports, l.Addr().(*net.TCPAddr).Port)
			c.direct[c.leg.to(l.Addr().String())] = l.Addr().String()
		}
		started++
		return &advertised{l, c.leg.proxies[started-1].Addr()}, nil
	}))
	kafka, err := kfake.NewCluster(opts...)
	if err != nil {
		c.t.Fatalf("starting Kafka: %v", err)
	}
	c.kafka = kafka
}

// addrs are what the relay is told.
func (c *cluster) addrs() []string {
	var addrs []string
	for _, p := range c.leg.proxies {
		addrs = append(addrs, p.Addr())
	}
	return addrs
}

// client returns a client that goes around the leg.
func (c *cluster) client(opts ...kgo.Opt) *kgo.Client {
	c.t.Helper()
	var dialer net.Dialer
	client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(c.addrs()...),
		kgo.MetadataMinAge(50*time.Millisecond), kgo.MetadataMaxAge(time.Second), kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }),
		kgo.Dialer(func(ctx context.Context, network, host string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, c.direct[host])
		}))...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(client.Close)
	return client
}

// advertised is a listener that gives another address for its own.
type advertised struct {
	net.Listener
	address string
}

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

func (l *advertised) Addr() net.Addr { return address(l.address) }
