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
)

// simMember is a process with a group in it.
type simMember struct {
	s      *simulation
	name   string
	store  *memory
	cancel context.CancelFunc
	done   chan struct{}
	err    error

	mu     sync.Mutex // guards the rest
	frozen chan struct{}
	dead   bool
	conns  map[net.Conn]bool
}

func (s *simulation) newMember() *simMember {
	s.born++
	m := &simMember{s: s, name: fmt.Sprintf("member-%d", s.born), done: make(chan struct{}), conns: map[net.Conn]bool{}}
	cfg := Config{Name: prove.Service, Brokers: s.kafka.ListenAddrs(), Topics: []string{prove.Topic}, Retry: s.policy, Logger: s.logger.With("member", m.name),
		Handler: event.Handler{Each: map[string]event.Each{prove.EachType: m.apply}},
		// A fetch waits for as long as nothing comes: idle hours cost little.
		Client: []kgo.Opt{kgo.Dialer(m.dial), kgo.FetchMaxWait(5 * time.Second)}}
	g, err := newGroup(cfg, func(_ Config, ladder retry.Ladder) store {
		m.store = s.db.member(ladder)
		m.store.before = m.statement
		return m.store
	})
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
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
	took, lost := m.s.latency(name)
	if took > 0 {
		sleep(ctx, took)
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

func (m *simMember) thaw() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.frozen != nil {
		close(m.frozen)
		m.frozen = nil
	}
}

// apply is the handler. The effect comes first, so that a refusal has one to undo.
func (m *simMember) apply(ctx context.Context, tx pgx.Tx, e *event.Event) error {
	var task prove.Task
	if err := json.Unmarshal(e.Value, &task); err != nil {
		return event.Permanent(err)
	}
	m.s.tried(e)
	if _, err := tx.Exec(ctx, addEffectSQL, e.ID, string(e.Key), task.Seq, m.name, e.Attempt); err != nil {
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
