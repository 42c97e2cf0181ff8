// Package nettest is a network between two sides of a test that goes bad on demand: slow, narrow, silent,
// reset, gone, or cut around a COMMIT of PostgreSQL's.
//
// What passes is never changed, reordered or left out while its connection stands: a fault that a TCP
// connection cannot have would prove nothing.
package nettest

import (
	"bytes"
	"net"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// Direction is one of a connection's two.
type Direction int

// Up is from the side that connects, Down is towards it.
const (
	Up Direction = iota
	Down
)

// Toxic makes one direction of every connection bad: those there are, and those to come.
type Toxic struct {
	Latency time.Duration // of each read, besides the network's own
	Rate    int           // bytes a second; 0 is no bound
	Silent  bool          // nothing passes, and nothing is closed
}

// Cut says where the next COMMIT's connection is cut.
type Cut int

// Cuts around a COMMIT.
const (
	CutNothing Cut = iota
	CutBefore      // the server never sees the COMMIT
	CutDuring      // the server has it, the client is cut off at once
	CutAfter       // the server has answered, the client never learns
)

// isCommit reports whether a message of pgx's is or ends in a COMMIT: a simple Query of the PostgreSQL protocol, or
// the Bind of a statement that the client has prepared, which follows an empty name, of its portal.
func (p *Proxy) isCommit(message []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range prepared.FindAllSubmatch(message, -1) {
		if sql := string(m[2]); sql == "commit" || p.implicit != "" && strings.Contains(sql, p.implicit) {
			p.commits[string(m[1])] = true
		}
	}
	if bytes.HasSuffix(message, []byte("Q\x00\x00\x00\x0bcommit\x00")) {
		return true
	}
	for name := range p.commits {
		if bytes.Contains(message, []byte("\x00"+name+"\x00")) {
			return true
		}
	}
	return false
}

// prepared is what a Parse of pgx's holds: the statement's name and its text.
var prepared = regexp.MustCompile(`(stmtcache_[0-9a-f]{48})\x00([^\x00]+)\x00`)

// ImplicitCommit has the proxy take the statements that have the text in them for COMMITs: pipelines that they are in
// are transactions by themselves. It is called before the first connection.
func (p *Proxy) ImplicitCommit(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.implicit = text
}

// Proxy leads to a server. Its methods are safe for concurrent use.
type Proxy struct {
	t      testing.TB
	target string

	mu       sync.Mutex // guards all below
	addr     string
	listener net.Listener
	pairs    map[*pair]bool
	toxics   [2]Toxic
	resets   bool
	reset    time.Duration
	cut      Cut
	cuts     int
	implicit string
	commits  map[string]bool // the names of statements that commit
	wait     sync.WaitGroup
}

// To returns an open proxy to an address. It is closed when the test ends.
func To(t testing.TB, target string) *Proxy {
	t.Helper()
	p := &Proxy{t: t, target: target, addr: "127.0.0.1:0", pairs: map[*pair]bool{}, commits: map[string]bool{}}
	p.Open()
	t.Cleanup(func() { p.Close(); p.wait.Wait() })
	return p
}

// ToDatabase returns a proxy to the server of a database's URL, and the URL that leads through it.
func ToDatabase(t testing.TB, databaseURL string) (p *Proxy, proxied string) {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	p = To(t, u.Host)
	u.Host = p.Addr()
	return p, u.String()
}

// Addr is where the proxy listens, for as long as the test runs.
func (p *Proxy) Addr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addr
}

// Open listens, in good health; after a Close it listens where it did before.
func (p *Proxy) Open() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	l, err := net.Listen("tcp", p.addr)
	if err != nil {
		p.t.Errorf("opening a proxy to %s: %v", p.target, err)
		return
	}
	p.listener, p.addr, p.toxics, p.resets = l, l.Addr().String(), [2]Toxic{}, false
	p.wait.Go(func() { p.accept(l) })
}

// Close refuses new connections and drops those that there are.
func (p *Proxy) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		p.listener.Close()
		p.listener = nil
	}
	for c := range p.pairs {
		c.drop(false)
	}
}

// Mend is Close and Open: toxics end, and so do the connections that suffered them.
func (p *Proxy) Mend() {
	p.t.Helper()
	p.Close()
	p.Open()
}

// Poison puts a toxic on the directions named.
func (p *Proxy) Poison(toxic Toxic, directions ...Direction) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range directions {
		p.toxics[d] = toxic
	}
}

// Reset ends every connection with a RST, those there are and those to come, when it has lasted so long.
func (p *Proxy) Reset(after time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.resets, p.reset = true, after
	for c := range p.pairs {
		c.resetAfter(after)
	}
}

// CutNext arms the proxy for one COMMIT.
func (p *Proxy) CutNext(how Cut) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = how
}

// Cuts counts the COMMITs that were cut.
func (p *Proxy) Cuts() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cuts
}

func (p *Proxy) takeCut() Cut {
	p.mu.Lock()
	defer p.mu.Unlock()
	how := p.cut
	if how != CutNothing {
		p.cuts++
	}
	p.cut = CutNothing
	return how
}

func (p *Proxy) accept(l net.Listener) {
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
		p.serve(l, &pair{client: client.(*net.TCPConn), server: server.(*net.TCPConn), gone: make(chan struct{}), swallow: make(chan struct{})})
	}
}

func (p *Proxy) serve(l net.Listener, c *pair) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != l { // closed meanwhile
		c.drop(false)
		return
	}
	p.pairs[c] = true
	if p.resets {
		c.resetAfter(p.reset)
	}
	p.wait.Go(func() { defer p.drop(c); p.carry(c, Up) })
	p.wait.Go(func() { defer p.drop(c); p.carry(c, Down) })
}

func (p *Proxy) drop(c *pair) {
	c.drop(false)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pairs, c)
}

// carry moves the bytes of one direction until the connection ends.
func (p *Proxy) carry(c *pair, d Direction) {
	from, to := c.client, c.server
	if d == Down {
		from, to = c.server, c.client
	}
	buf := make([]byte, 256<<10)
	for {
		n, err := from.Read(buf)
		if err != nil || !p.pass(c, d, n) {
			return
		}
		if d == Down {
			select {
			case <-c.swallow:
				return // the answer to COMMIT is here: it happened
			default:
			}
		} else if p.isCommit(buf[:n]) {
			switch p.takeCut() {
			case CutBefore:
				return
			case CutDuring:
				c.client.Close()
			case CutAfter:
				close(c.swallow)
			}
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// pass waits as long as the direction's toxic has bytes wait. It reports whether the connection still stands.
func (p *Proxy) pass(c *pair, d Direction, bytes int) bool {
	p.mu.Lock()
	toxic := p.toxics[d]
	p.mu.Unlock()
	if toxic.Silent {
		<-c.gone
		return false
	}
	wait := toxic.Latency
	if toxic.Rate > 0 {
		wait += time.Duration(bytes) * time.Second / time.Duration(toxic.Rate)
	}
	if wait <= 0 {
		return true
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.gone:
		return false
	}
}

// pair is the two connections that look like one.
type pair struct {
	client, server *net.TCPConn
	swallow        chan struct{} // closed when the client is to hear nothing more

	mu    sync.Mutex
	ended bool
	gone  chan struct{} // closed when it has ended
	timer *time.Timer
}

func (c *pair) drop(reset bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	c.ended = true
	close(c.gone)
	if c.timer != nil {
		c.timer.Stop()
	}
	if reset { // unsent bytes are thrown away, and the other end is told so
		_ = c.client.SetLinger(0)
		_ = c.server.SetLinger(0)
	}
	c.client.Close()
	c.server.Close()
}

func (c *pair) resetAfter(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended && c.timer == nil {
		c.timer = time.AfterFunc(d, func() { c.drop(true) })
	}
}
