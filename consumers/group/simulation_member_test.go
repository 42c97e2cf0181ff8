//go:build synctests

package group

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/event"
	"converge/consumers/prove"
	"converge/consumers/retry"
	"converge/producers/outbox"
)

// simMember is a process with a group in it.
type simMember struct {
	s      *simulation
	group  *Group
	name   string
	store  *memory
	cancel context.CancelFunc
	done   chan struct{}
	err    error

	mu     sync.Mutex // guards the rest
	frozen chan struct{}
	dozes  time.Duration // how long it is to freeze ahead of its next batch; 0 is not at all
	dead   bool
	conns  map[net.Conn]bool
}

func (s *simulation) newMember() *simMember {
	s.born++
	m := &simMember{s: s, name: fmt.Sprintf("member-%d", s.born), done: make(chan struct{}), conns: map[net.Conn]bool{}}
	cfg := Config{Name: prove.Service, Brokers: s.kafka.ListenAddrs(), Topics: []string{prove.Topic}, Retry: s.plan.policy, Logger: s.logger.With("member", m.name),
		Handler: event.Handler{Each: map[string]event.Each{prove.EachType: m.apply}},
		// A fetch waits for as long as nothing comes: idle hours cost little. A join waits for as long as it takes: one
		// that is sent again has kfake wait for its rebalance timeout from the start, and members that gave up in turn
		// would never be let in. Apache Kafka counts from when the rebalance began.
		Client: []kgo.Opt{kgo.Dialer(m.dial), kgo.FetchMaxWait(5 * time.Second), kgo.RequestTimeoutOverhead(10 * time.Minute)}}
	g, err := newGroup(cfg, func(_ Config, ladder retry.Ladder) store {
		m.store = s.db.member(ladder)
		m.store.before = m.statement
		return m.store
	})
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.group, m.cancel = g, cancel
	go func() {
		defer close(m.done)
		m.err = g.Run(ctx)
	}()
	return m
}

// stays blocks while the member is frozen, and reports whether it lives.
func (m *simMember) stays() bool {
	for {
		m.mu.Lock()
		frozen, dead := m.frozen, m.dead
		m.mu.Unlock()
		if dead || frozen == nil {
			return !dead
		}
		<-frozen
	}
}

// statement is the way to the database: it takes a while, now and then a long one.
func (m *simMember) statement(ctx context.Context, name string) error {
	m.s.meet(ctx, name)
	took, lost := m.s.latency(name)
	if took > 0 {
		sleep(ctx, took)
	}
	if name == "take on" {
		m.doze()
	}
	switch {
	case !m.stays():
		return errGone
	case lost:
		return sqlState("40001", "")
	}
	return ctx.Err()
}

func (m *simMember) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if !m.stays() {
		return nil, errGone
	}
	return m.s.dial(ctx, network, address, m)
}

// simConn is a connection to Kafka of a member's, or of nobody's.
type simConn struct {
	net.Conn
	s      *simulation
	member *simMember
}

func (c *simConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.member != nil && !c.member.stays() {
		return 0, errGone
	}
	return n, err
}

func (c *simConn) Write(b []byte) (int, error) {
	if c.member != nil && !c.member.stays() {
		return 0, errGone
	}
	return c.Conn.Write(b)
}

func (c *simConn) Close() error {
	c.s.mu.Lock()
	delete(c.s.conns, c)
	c.s.mu.Unlock()
	return c.Conn.Close()
}

// die ends the member without a goodbye. Its transactions are rolled back when the server notices.
func (m *simMember) die(noticed time.Duration) {
	m.thaw()
	m.mu.Lock()
	m.dead = true
	m.mu.Unlock()
	m.s.db.mu.Lock()
	m.store.cut = true
	m.s.db.mu.Unlock()
	if noticed == 0 {
		m.killTransactions()
	} else {
		time.AfterFunc(noticed, m.killTransactions)
	}
	m.s.cutConnections(m)
	m.cancel()
}

func (m *simMember) killTransactions() {
	m.s.db.mu.Lock()
	defer m.s.db.mu.Unlock()
	for t := range m.s.db.open {
		if t.store == m.store {
			t.killed = true
			t.end(false)
		}
	}
}

// stop freezes the member. The server ends the transactions of one that is silent for too long.
func (m *simMember) stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.frozen != nil || m.dead {
		return
	}
	frozen := make(chan struct{})
	m.frozen = frozen
	time.AfterFunc(20*time.Second+graceTime, func() {
		m.mu.Lock()
		still := m.frozen == frozen
		m.mu.Unlock()
		if still {
			m.killTransactions()
		}
	})
}

// doze freezes the member if a strike has said so. It wakes up when others have its partitions, and with time left
// for its batch: the fence alone is in its way.
func (m *simMember) doze() {
	m.mu.Lock()
	dozes := m.dozes
	m.dozes = 0
	m.mu.Unlock()
	if dozes > 0 {
		m.stop()
		time.AfterFunc(dozes, m.thaw)
	}
}

func (m *simMember) thaw() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.frozen != nil {
		close(m.frozen)
		m.frozen = nil
	}
}

// echoes is the outbox of the handlers.
var echoes = outbox.New(echo{})

type echo struct{}

// Encode implements outbox.Encoder.
func (echo) Encode(string, any) (topic, contentType string, value []byte, err error) {
	return prove.EchoTopic, "text/plain", []byte("done"), nil
}

// apply is the handler. What it writes comes first, so that a refusal has something to undo.
func (m *simMember) apply(ctx context.Context, tx pgx.Tx, e *event.Event) error {
	var task prove.Task
	if err := json.Unmarshal(e.Value, &task); err != nil {
		return event.Permanent(err)
	}
	m.s.tried(e)
	if _, err := tx.Exec(ctx, addEffectSQL, e.ID, string(e.Key), task.Seq, m.name, e.Attempt); err != nil {
		return err
	}
	if err := echoes.Append(ctx, tx, outbox.Event{Type: "Echoed", AggregateID: string(e.Key)}); err != nil {
		return err
	}
	calls, mended := m.s.called(e.ID)
	switch {
	case mended:
		return nil
	case task.How == slowly:
		sleep(ctx, time.Duration(task.Slow)*time.Millisecond)
		return nil
	case task.How == inOutage && calls <= task.Slow:
		return errGone
	case task.How == inContention && calls <= task.Slow:
		return sqlState("40P01", "")
	case task.How == prove.ForGood:
		return event.Permanent(errors.New("it makes no sense"))
	case e.Attempt >= task.Fails:
		return nil
	case task.How == prove.Panics:
		panic("no stock")
	case task.How == later:
		return event.RetryAfter(errors.New("come again"), 3*time.Minute)
	default:
		return errors.New("no stock")
	}
}
