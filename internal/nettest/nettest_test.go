package nettest_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"converge/internal/nettest"
)

// echo is a server that says what it is told.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wait.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c) // it ends with the connection
			})
		}
	})
	t.Cleanup(func() { l.Close(); wait.Wait() })
	return l.Addr().String()
}

func dial(t *testing.T, p *nettest.Proxy) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return c
}

// said writes and returns what comes back.
func said(t *testing.T, c net.Conn, what []byte) []byte {
	t.Helper()
	var wait sync.WaitGroup
	wait.Go(func() {
		if _, err := c.Write(what); err != nil {
			t.Errorf("writing: %v", err)
		}
	})
	defer wait.Wait()
	back := make([]byte, len(what))
	if _, err := io.ReadFull(c, back); err != nil {
		t.Errorf("reading: %v", err)
	}
	return back
}

func TestASlowOrNarrowNetworkLeavesNothingOut(t *testing.T) {
	t.Parallel()
	p := nettest.To(t, echo(t))
	there := dial(t, p)
	bytesOf := make([]byte, 1<<20)
	_, _ = rand.Read(bytesOf) // it never fails
	for name, toxic := range map[string]nettest.Toxic{"": {}, "slow": {Latency: 20 * time.Millisecond}, "narrow": {Rate: 8 << 20}} {
		p.Poison(toxic, nettest.Up, nettest.Down)
		began := time.Now()
		for _, c := range []net.Conn{there, dial(t, p)} {
			if !bytes.Equal(said(t, c, bytesOf), bytesOf) {
				t.Errorf("%s: what came back is not what was said", name)
			}
		}
		least := 2 * 2 * toxic.Latency // two conversations, there and back
		if toxic.Rate > 0 {
			least = 2 * time.Second / 8 // the two directions overlap
		}
		if took := time.Since(began); took < least {
			t.Errorf("%s: two conversations took %v", name, took)
		}
	}
}

func TestASilentNetworkClosesNothing(t *testing.T) {
	t.Parallel()
	p := nettest.To(t, echo(t))
	c := dial(t, p)
	said(t, c, []byte("before"))
	p.Poison(nettest.Toxic{Silent: true}, nettest.Down)
	if _, err := c.Write([]byte("anyone?")); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d bytes and %v", n, err)
	}
	p.Mend()
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("mended, and read %d bytes", n)
	}
	said(t, dial(t, p), []byte("after"))
}

func TestAResetIsOne(t *testing.T) {
	t.Parallel()
	p := nettest.To(t, echo(t))
	there := dial(t, p)
	said(t, there, []byte("before"))
	p.Reset(10 * time.Millisecond)
	for _, c := range []net.Conn{there, dial(t, p)} {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("reading from a connection that is reset: %v", err)
		}
	}
}

func TestAClosedProxyRefusesAndOpensWhereItWas(t *testing.T) {
	t.Parallel()
	p := nettest.To(t, echo(t))
	c := dial(t, p)
	p.Close()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("reading from a dropped connection: %v", err)
	}
	if _, err := net.Dial("tcp", p.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("connecting to a closed proxy: %v", err)
	}
	p.Open()
	said(t, dial(t, p), []byte("again"))
}
