// Package proof is what the proofs of the relay and of the consumer runtime stand on: a PostgreSQL and a Kafka
// that can be stopped, crashed, cut off and started again where they were, and decks of troubles that a seed
// deals.
package proof

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/internal/database"
	"converge/internal/kafkatest"
	"converge/internal/nettest"
	"converge/internal/sandbox"
)

// Patience bounds every wait for something that should happen soon.
const Patience = 2 * time.Minute

// Server is a PostgreSQL of the run's own, the subject's way to it and what has become of it. Its methods belong
// to one goroutine, but for URL, SubjectURL and Epoch.
type Server struct {
	Postgres *sandbox.Postgres // the one that runs now
	Leg      *Leg              // between the subject and the server

	t        testing.TB
	address  string // a restart keeps it
	settings map[string]string
	epoch    atomic.Int64
}

// StartServer starts a server with the modules' tables, until the test ends.
func StartServer(t testing.TB, settings map[string]string, modules ...database.Module) *Server {
	t.Helper()
	s := &Server{t: t, settings: settings, Leg: &Leg{t: t}}
	s.start(t.TempDir(), 0)
	s.address = s.Postgres.URL()
	t.Cleanup(func() { // one that was stopped in its tracks cannot end
		if err := s.Stop(syscall.SIGINT); err != nil {
			t.Logf("stopping PostgreSQL: %v", err)
		}
	})
	if err := database.Migrate(t.Context(), s.URL(), modules...); err != nil {
		t.Fatal(err)
	}
	s.Leg.to(fmt.Sprintf("127.0.0.1:%d", s.Postgres.Port()))
	return s
}

func (s *Server) start(dir string, port int) {
	p, err := sandbox.StartPostgres(context.Background(), sandbox.PostgresConfig{Dir: dir, Port: port, Volatile: true, Settings: s.settings})
	if err != nil {
		s.t.Fatal(err)
	}
	s.Postgres = p
}

// URL is the way for everyone but the subject.
func (s *Server) URL() string { return s.address }

// SubjectURL goes through the leg.
func (s *Server) SubjectURL() string {
	u, err := url.Parse(s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	u.Host = s.Leg.ways[0].Addr()
	return u.String()
}

// Epoch changes whenever the server may have forgotten what it had not written.
func (s *Server) Epoch() int { return int(s.epoch.Load()) }

// Stop ends the server by a signal, SIGINT for a fast shutdown, SIGQUIT for a crash.
func (s *Server) Stop(how syscall.Signal) error {
	if how == syscall.SIGQUIT {
		s.epoch.Add(1)
	}
	if err := s.Postgres.Signal(how); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	select {
	case <-s.Postgres.Done():
		return nil
	case <-time.After(5 * time.Second): // a fast shutdown waits for a relay to take all that there is
	}
	s.epoch.Add(1)
	_ = s.Postgres.Signal(syscall.SIGCONT)
	_ = s.Postgres.Signal(syscall.SIGQUIT)
	select {
	case <-s.Postgres.Done():
		return nil
	case <-time.After(Patience):
		return errors.New("PostgreSQL does not end")
	}
}

// Again starts it where it was.
func (s *Server) Again() {
	s.start(s.Postgres.Dir, s.Postgres.Port())
	s.epoch.Add(1)
}

// Leg is the network between the subject and one side of it.
type Leg struct {
	t    testing.TB
	ways []*nettest.Proxy
}

// to adds a way to an address and returns where it begins.
func (l *Leg) to(address string) string {
	l.ways = append(l.ways, nettest.To(l.t, address))
	return l.ways[len(l.ways)-1].Addr()
}

// Poison puts a toxic on every way, in the directions named, for connections that there are and those to come.
func (l *Leg) Poison(toxic nettest.Toxic, directions ...nettest.Direction) {
	for _, p := range l.ways {
		p.Poison(toxic, directions...)
	}
}

// Reset ends every connection once it has lasted so long.
func (l *Leg) Reset(after time.Duration) {
	for _, p := range l.ways {
		p.Reset(after)
	}
}

// CutNext arms every way for one COMMIT.
func (l *Leg) CutNext(how nettest.Cut) {
	for _, p := range l.ways {
		p.CutNext(how)
	}
}

// Cuts counts the COMMITs that were cut.
func (l *Leg) Cuts() (n int) {
	for _, p := range l.ways {
		n += p.Cuts()
	}
	return n
}

// Cut refuses and drops connections until Mend.
func (l *Leg) Cut() {
	for _, p := range l.ways {
		p.Close()
	}
}

// Mend makes every way good again. It drops the connections.
func (l *Leg) Mend() {
	for _, p := range l.ways {
		p.Mend()
	}
}

// Brokers is how many an embedded cluster has.
const Brokers = 2

// Cluster is a Kafka whose clients are told the leg's addresses: an embedded one, or a broker of Apache Kafka
// when the tests were asked to run on a real one ([kafkatest.Real]).
type Cluster struct {
	Kafka *kfake.Cluster // the embedded one that runs now; nil: it is a real one
	Leg   *Leg           // between the clients and the brokers

	t      testing.TB
	real   *kafkatest.Broker
	opts   []kfake.Opt
	direct map[string]string // the address behind each of the leg's
	ports  []int
}

// ClusterConfig is what a cluster is to have.
type ClusterConfig struct {
	DefaultPartitions int           // of topics that are made without saying; 0 is 10
	MinSession        time.Duration // of a group's members; 0 is Kafka's default
}

// StartCluster starts one, until the test ends.
func StartCluster(t testing.TB, cfg ClusterConfig) *Cluster {
	t.Helper()
	c := &Cluster{t: t, Leg: &Leg{t: t}, direct: map[string]string{}}
	if cfg.DefaultPartitions == 0 {
		cfg.DefaultPartitions = 10
	}
	limits := map[string]string{"log.segment.bytes": "8388608", "log.retention.bytes": "33554432", "log.cleaner.backoff.ms": "15000"}
	if kafkatest.Real() {
		settings := []string{fmt.Sprintf("num.partitions=%d", cfg.DefaultPartitions)}
		if cfg.MinSession > 0 {
			settings = append(settings, fmt.Sprintf("group.min.session.timeout.ms=%d", cfg.MinSession.Milliseconds()))
		}
		for name, value := range limits {
			settings = append(settings, name+"="+value)
		}
		c.real = kafkatest.StartOwn(t, kafkatest.Config{Settings: settings, Advertise: func(address string) string {
			c.Leg.ways = nil // to a port that somebody else took before the broker did
			return c.put(address)
		}})
		return c
	}
	c.opts = []kfake.Opt{kfake.NumBrokers(Brokers), kfake.DataDir(t.TempDir()), kfake.BrokerConfigs(limits), kfake.DefaultNumPartitions(cfg.DefaultPartitions)}
	if cfg.MinSession > 0 {
		c.opts = append(c.opts, kfake.GroupMinSessionTimeout(cfg.MinSession))
	}
	c.start()
	t.Cleanup(func() { c.Kafka.Close() })
	return c
}

// put adds a way to a broker and returns where it begins.
func (c *Cluster) put(address string) string {
	way := c.Leg.to(address)
	c.direct[way] = address
	return way
}

// Restart ends the brokers, a real one as kill -9 does, and returns what starts them where they were.
func (c *Cluster) Restart() (again func()) {
	if c.real != nil {
		c.real.Kill()
		return c.real.Restart
	}
	c.Kafka.Close()
	return c.start
}

// start starts the embedded brokers, where they were before if this is not the first time.
func (c *Cluster) start() {
	opts := slices.Clone(c.opts)
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
			c.put(l.Addr().String())
		}
		started++
		return &advertised{l, c.Leg.ways[started-1].Addr()}, nil
	}))
	kafka, err := kfake.NewCluster(opts...)
	if err != nil {
		c.t.Fatalf("starting Kafka: %v", err)
	}
	c.Kafka = kafka
}

// CreateTopics makes topics with so many partitions.
func (c *Cluster) CreateTopics(partitions int32, names ...string) {
	c.t.Helper()
	made, err := kadm.NewClient(c.Client()).CreateTopics(c.t.Context(), partitions, 1, nil, names...)
	if err == nil {
		err = made.Error()
	}
	if err != nil {
		c.t.Fatalf("making topics: %v", err)
	}
}

// Addrs are what the subject is told.
func (c *Cluster) Addrs() []string {
	var addrs []string
	for _, p := range c.Leg.ways {
		addrs = append(addrs, p.Addr())
	}
	return addrs
}

// Dialer goes around the leg.
func (c *Cluster) Dialer() kgo.Opt {
	var dialer net.Dialer
	return kgo.Dialer(func(ctx context.Context, network, host string) (net.Conn, error) {
		return dialer.DialContext(ctx, network, c.direct[host])
	})
}

// Client returns a client that goes around the leg.
func (c *Cluster) Client(opts ...kgo.Opt) *kgo.Client {
	c.t.Helper()
	client, err := kgo.NewClient(append(opts, kgo.SeedBrokers(c.Addrs()...), c.Dialer(),
		kgo.MetadataMinAge(50*time.Millisecond), kgo.MetadataMaxAge(time.Second), kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }))...)
	if err != nil {
		c.t.Fatalf("making a Kafka client: %v", err)
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

// Deck returns a function that deals the cards, each as often as any other, in an order that the seed decides.
func Deck[T any](rng *rand.Rand, all []T) func() T {
	var hand []T
	return func() T {
		if len(hand) == 0 {
			hand = slices.Clone(all)
			rng.Shuffle(len(hand), func(i, j int) { hand[i], hand[j] = hand[j], hand[i] })
		}
		card := hand[0]
		hand = hand[1:]
		return card
	}
}
