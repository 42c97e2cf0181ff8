package group_test

import (
	"bytes"
	"net"
	"net/url"
	"sync"
	"testing"
)

// proxy stands between a pool and PostgreSQL. It can be gone, so that connections are refused, and it can
// cut a connection around a COMMIT.
type proxy struct {
	t      testing.TB
	target string
	addr   string

	mu       sync.Mutex // guards all below
	listener net.Listener
	conns    map[net.Conn]bool
	silent   chan struct{} // closed when nothing passes any more
	cut      cutting
	cuts     int
	wait     sync.WaitGroup
}

// cutting says where the next COMMIT's connection is cut.
type cutting int

const (
	cutNothing cutting = iota
	cutBefore          // the server never sees the COMMIT
	cutDuring          // the server has it, the client is cut off at once
	cutAfter           // the server has answered, the client never learns
)

// commitMessage is COMMIT as pgx sends it: a simple Query of the PostgreSQL protocol.
var commitMessage = []byte("Q\x00\x00\x00\x0bcommit\x00")

// through returns a proxy to the server of the database URL, and the URL that leads through it.
func through(t testing.TB, databaseURL string) (p *proxy, proxied string) {
	t.Helper()
	u, err := url.Parse(databaseURL)
	must(t, err)
	p = &proxy{t: t, target: u.Host, addr: "127.0.0.1:0", silent: make(chan struct{}), conns: map[net.Conn]bool{}}
	p.open()
	t.Cleanup(func() { p.close(); p.wait.Wait() })
	u.Host = p.addr
	return p, u.String()
}

// open listens; after a close it listens where it did before.
func (p *proxy) open() {
	p.t.Helper()
	l, err := net.Listen("tcp", p.addr)
	must(p.t, err)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listener, p.addr = l, l.Addr().String()
	p.wait.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", p.target)
			if err != nil {
				client.Close()
				continue
			}
			p.serve(l, client, server)
		}
	})
}

// close refuses new connections and drops those that there are.
func (p *proxy) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		p.listener.Close()
		p.listener = nil
	}
	for c := range p.conns {
		c.Close()
	}
}

func (p *proxy) serve(l net.Listener, client, server net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != l { // closed meanwhile
		client.Close()
		server.Close()
		return
	}
	p.conns[client], p.conns[server] = true, true
	var swallow sync.Once
	swallowed := make(chan struct{}) // closed when the client is to hear nothing more
	p.wait.Go(func() {
		defer p.drop(client, server)
		p.forward(client, server, func() { swallow.Do(func() { close(swallowed) }) })
	})
	p.wait.Go(func() {
		defer p.drop(client, server)
		buf := make([]byte, 64<<10)
		for {
			n, err := server.Read(buf)
			p.muted()
			if err != nil {
				return
			}
			select {
			case <-swallowed:
				return // the answer to COMMIT is here: it happened
			default:
			}
			if _, err := client.Write(buf[:n]); err != nil {
				return
			}
		}
	})
}

// forward carries the client's bytes to the server and looks for COMMIT.
func (p *proxy) forward(client, server net.Conn, swallow func()) {
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		p.muted()
		if err != nil {
			return
		}
		how := cutNothing
		if bytes.HasSuffix(buf[:n], commitMessage) {
			how = p.takeCut()
		}
		switch how {
		case cutBefore:
			return
		case cutDuring:
			client.Close()
		case cutAfter:
			swallow()
		}
		if _, err := server.Write(buf[:n]); err != nil {
			return
		}
	}
}

// silence lets nothing more pass, and closes nothing.
func (p *proxy) silence() { close(p.silent) }

// muted waits for the end of the test when the proxy is silent.
func (p *proxy) muted() {
	select {
	case <-p.silent:
		<-p.t.Context().Done()
	default:
	}
}

func (p *proxy) drop(client, server net.Conn) {
	client.Close()
	server.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, client)
	delete(p.conns, server)
}

// cutNext arms the proxy for one COMMIT.
func (p *proxy) cutNext(how cutting) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = how
}

func (p *proxy) takeCut() cutting {
	p.mu.Lock()
	defer p.mu.Unlock()
	how := p.cut
	if how != cutNothing {
		p.cuts++
	}
	p.cut = cutNothing
	return how
}

func (p *proxy) cutCount() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cuts
}
