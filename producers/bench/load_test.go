package bench

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// load is requests that are due at a steady rate, whatever the answers do (an open model). Each connection takes
// the next one that is due: when all are waiting for answers, requests wait, and their latency counts it.
type load struct {
	addr string
	rate int
	n    int
	want int                // the status of every answer
	key  func(n int) string // Idempotency-Key of request n
}

// post is a request as its bytes: an http.Client would take as much of the processor as the server.
func post(addr, key string) []byte {
	return fmt.Appendf(nil, "POST /payments HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nIdempotency-Key: %s\r\nContent-Length: %d\r\n\r\n%s",
		addr, key, len(payment), payment)
}

// patience bounds the wait for one answer.
const patience = 30 * time.Second

type client struct {
	conn net.Conn
	r    *bufio.Reader
	addr string
}

func dial(addr string) (*client, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &client{conn: conn, r: bufio.NewReader(conn), addr: addr}, nil
}

func (c *client) send(key string) (int, error) {
	_ = c.conn.SetDeadline(time.Now().Add(patience)) // a connection that is gone says so at once
	if _, err := c.conn.Write(post(c.addr, key)); err != nil {
		return 0, err
	}
	return c.receive()
}

var contentLength = []byte("Content-Length: ")

// receive reads an answer and returns its status, for the same reason as post by hand: net/http's servers write a
// body's length as it is read here.
func (c *client) receive() (int, error) {
	status, length := 0, -1
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		switch {
		case status == 0:
			if len(line) < len("HTTP/1.1 200") {
				return 0, fmt.Errorf("an answer begins with %q", line)
			}
			if status, err = strconv.Atoi(string(line[len("HTTP/1.1 "):len("HTTP/1.1 200")])); err != nil {
				return 0, fmt.Errorf("an answer begins with %q", line)
			}
		case len(line) == 0:
			if length < 0 {
				return 0, errors.New("an answer does not tell its length")
			}
			_, err := c.r.Discard(length)
			return status, err
		case bytes.HasPrefix(line, contentLength):
			if length, err = strconv.Atoi(string(line[len(contentLength):])); err != nil {
				return 0, fmt.Errorf("an answer's length is %q", line)
			}
		}
	}
}

// run returns how long after it was due each request was answered, the shortest first, and how long all of it took.
func (l load) run(clients int) ([]time.Duration, time.Duration, error) {
	latencies := make([]time.Duration, l.n)
	var next atomic.Int64
	var wait sync.WaitGroup
	errs := make([]error, clients)
	connections := make([]*client, clients)
	for i := range clients {
		c, err := dial(l.addr)
		if err != nil {
			return nil, 0, err
		}
		defer c.conn.Close()
		connections[i] = c
	}
	began := time.Now()
	for i, c := range connections {
		wait.Go(func() {
			timer := time.NewTimer(0)
			defer timer.Stop()
			for {
				n := int(next.Add(1)) - 1
				if n >= l.n {
					return
				}
				due := began.Add(time.Duration(n) * time.Second / time.Duration(l.rate))
				timer.Reset(time.Until(due))
				<-timer.C
				status, err := c.send(l.key(n))
				if err == nil && status != l.want {
					err = fmt.Errorf("request %d was answered %d, want %d", n, status, l.want)
				}
				if err != nil {
					errs[i] = err
					return
				}
				latencies[n] = time.Since(due)
			}
		})
	}
	wait.Wait()
	took := time.Since(began)
	slices.Sort(latencies)
	return latencies, took, errors.Join(errs...)
}
