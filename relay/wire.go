package relay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"converge/relay/pgoutput"
)

// wire is a replication connection in its streaming phase. One goroutine calls next; sendStatus,
// interrupt and close are safe from any.
type wire struct {
	conn   net.Conn
	reader io.Reader
	memory *arenas
	// push is called when nothing more comes for a moment: what was made of the stream so far should
	// not wait for more. Set before the first next.
	push func()

	// Invariant: cur.buf[r:w] is what was received and not yet returned. Bytes before r belong to the
	// records that point there.
	cur  *arena
	r, w int

	// lag is how old the transaction that comes in is, by the server's clock alone.
	lag time.Duration

	little   time.Time // when the last read ended, if it brought little
	unpushed int       // bytes read since the last push
	brought  int       // bytes read since the last breath
	// pace is the longest breath that does not make the server wait.
	pace time.Duration
	// waiting is when the read that is under way began, in Unix nanoseconds, 0 when none is. A reader
	// that waits for memory is not waiting for the server.
	waiting atomic.Int64

	// server is who is at the other end.
	server identity

	writing sync.Mutex // guards conn's writes and status
	status  []byte
}

// errStopped is what next returns after interrupt.
var errStopped = errors.New("reading was stopped")

const (
	connectTimeout = 5 * time.Second
	writeTimeout   = 10 * time.Second
	// walSenderTimeout makes the server hang up on a relay that went away without a word, so that a
	// standby can take the slot over. A live relay reports every second.
	walSenderTimeout = "15s"
)

// dialer finds out about a peer that is gone within half a minute.
var dialer = net.Dialer{
	Timeout:         connectTimeout,
	KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3},
}

// replicationConfig returns how to connect for streaming.
func replicationConfig(databaseURL string) (*pgconn.Config, error) {
	cfg, err := pgconn.ParseConfig(databaseURL)
	if err != nil {
		return nil, fmt.Errorf("reading the database URL: %w", err)
	}
	cfg.ConnectTimeout = connectTimeout
	cfg.DialFunc = dialer.DialContext
	cfg.RuntimeParams["replication"] = "database"
	cfg.RuntimeParams["client_encoding"] = "UTF8"
	cfg.RuntimeParams["application_name"] = applicationName
	cfg.RuntimeParams["wal_sender_timeout"] = walSenderTimeout
	return cfg, nil
}

// openWire connects in replication mode and starts streaming the slot from its confirmed position.
func openWire(ctx context.Context, c *Config, memory *arenas) (*wire, error) {
	cfg, err := replicationConfig(c.DatabaseURL)
	if err != nil {
		return nil, err
	}
	var reader io.Reader
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		reader = r
		return pgproto3.NewFrontend(&exactly{from: r}, w)
	}
	pg, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connecting for replication: %w", err)
	}
	server, err := identify(ctx, pg)
	if err != nil {
		closeQuietly(pg)
		return nil, err
	}
	if err := startReplication(ctx, pg, c.Slot, c.pluginOptions()); err != nil {
		closeQuietly(pg)
		return nil, fmt.Errorf("starting replication from slot %s: %w", c.Slot, err)
	}
	hijacked, err := pg.Hijack()
	if err != nil {
		closeQuietly(pg)
		return nil, fmt.Errorf("taking over the connection: %w", err)
	}
	// The deadlines that ConnectConfig and ReceiveMessage left behind are not ours.
	if err := hijacked.Conn.SetDeadline(time.Time{}); err != nil {
		hijacked.Conn.Close()
		return nil, fmt.Errorf("taking over the connection: %w", err)
	}
	return &wire{conn: hijacked.Conn, reader: reader, memory: memory, server: server}, nil
}

// identity tells one server's history from another's: LSNs compare within one system, and beyond the fork
// of two timelines the same LSN is two things.
type identity struct {
	System   string `json:"system_identifier"`
	Timeline int    `json:"timeline"`
}

func identify(ctx context.Context, pg *pgconn.PgConn) (id identity, err error) {
	results, err := pg.Exec(ctx, "IDENTIFY_SYSTEM").ReadAll()
	if err != nil {
		return id, fmt.Errorf("asking the server who it is: %w", err)
	}
	row := results[0].Rows[0]
	if id.Timeline, err = strconv.Atoi(string(row[1])); err != nil {
		return id, fmt.Errorf("asking the server who it is: %w", err)
	}
	id.System = string(row[0])
	return id, nil
}

// pluginOptions is what the server's side of the stream is asked for.
func (c *Config) pluginOptions() string {
	protocol := "proto_version '1'"
	if c.SpillDir != "" {
		protocol = "proto_version '2', streaming 'on'"
	}
	if c.Source == SourceMessage {
		protocol += ", messages 'true'"
	}
	return protocol + ", binary 'true', publication_names " + quoteLiteral(quoteIdentifier(c.Publication))
}

// startReplication asks for the slot's own position (0/0): a position kept anywhere else could belong
// to another timeline, and the server would skip ahead without a word.
func startReplication(ctx context.Context, pg *pgconn.PgConn, slot, options string) error {
	pg.Frontend().SendQuery(&pgproto3.Query{String: "START_REPLICATION SLOT " + quoteIdentifier(slot) +
		" LOGICAL 0/0 (" + options + ")"})
	if err := pg.Frontend().Flush(); err != nil {
		return err
	}
	for {
		message, err := pg.ReceiveMessage(ctx)
		if err != nil {
			return err
		}
		switch m := message.(type) {
		case *pgproto3.CopyBothResponse:
			return nil
		case *pgproto3.ErrorResponse:
			return pgconn.ErrorResponseToPgError(m)
		case *pgproto3.ReadyForQuery:
			return errors.New("the server did not begin to stream")
		}
	}
}

// exactly hands the handshake's frontend one message at a time, so that nothing of the stream behind
// the handshake ends up in the frontend's buffer, where it would be lost.
type exactly struct {
	from   io.Reader
	header [5]byte
	have   int // bytes of header delivered
	body   int // bytes of the body still to deliver
}

func (e *exactly) Read(p []byte) (int, error) {
	if e.have == len(e.header) && e.body == 0 {
		e.have = 0
	}
	if e.have < len(e.header) {
		p = p[:min(len(p), len(e.header)-e.have)]
		n, err := e.from.Read(p)
		copy(e.header[e.have:], p[:n])
		if e.have += n; e.have == len(e.header) {
			e.body = int(binary.BigEndian.Uint32(e.header[1:])) - 4
			if e.body < 0 {
				return n, fmt.Errorf("%w: message length %d", pgoutput.ErrMalformed, e.body+4)
			}
		}
		return n, err
	}
	n, err := e.from.Read(p[:min(len(p), e.body)])
	e.body -= n
	return n, err
}

const (
	frameHeader = 5
	// smallestRead keeps the tail of an arena from being filled in drops.
	smallestRead = 4 << 10
	// gulp is what a read should bring while much is coming, and breath how long it is worth waiting
	// for. A push costs about 0.2 ms of processor time, whatever it carries.
	gulp   = 16 << 10
	breath = time.Millisecond
	// A backlog is worth waiting for longer: a part of its age, in which nobody sees a difference.
	lagPart       = 4
	longestBreath = 50 * time.Millisecond
	// ample is what a breath should bring at most. A connection on one machine holds about 4 MB; a server that
	// finds it full waits.
	ample = 2 << 20
	// batch is how much is read at most before it is pushed on, while much is coming.
	batch = 256 << 10
	// largestFrame is PostgreSQL's own limit for a message.
	largestFrame = 1<<30 - 1
)

// next returns the body of the next CopyData message and the arena it lies in. It blocks until one
// arrives, memory is free and ctx lives; after interrupt it returns errStopped, and the stream can be
// read on. An end that the server declares is an error too.
func (w *wire) next(ctx context.Context) ([]byte, *arena, error) {
	for {
		frame, err := w.frame(ctx)
		if err != nil {
			return nil, nil, err
		}
		body := frame[frameHeader:]
		switch frame[0] {
		case 'd':
			return body, w.cur, nil
		case 'E':
			var response pgproto3.ErrorResponse
			if err := response.Decode(body); err != nil {
				return nil, nil, fmt.Errorf("reading the server's error: %w", err)
			}
			return nil, nil, fmt.Errorf("streaming: %w", pgconn.ErrorResponseToPgError(&response))
		case 'c', 'C', 'Z': // copy done, command complete, ready for query
			return nil, nil, fmt.Errorf("streaming: the server ended the stream: %w", io.EOF)
		case 'N', 'S': // notice, parameter status
		default:
			return nil, nil, fmt.Errorf("%w: unexpected message %q", pgoutput.ErrMalformed, frame[0])
		}
	}
}

// frame returns the next whole message, header included.
func (w *wire) frame(ctx context.Context) ([]byte, error) {
	for {
		need := frameHeader
		if have := w.w - w.r; have >= frameHeader {
			size := binary.BigEndian.Uint32(w.cur.buf[w.r+1:])
			if size < 4 || size > largestFrame {
				return nil, fmt.Errorf("%w: message length %d", pgoutput.ErrMalformed, size)
			}
			need = 1 + int(size)
			if have >= need {
				frame := w.cur.buf[w.r : w.r+need : w.r+need]
				w.r += need
				return frame, nil
			}
		}
		if err := w.fill(ctx, need); err != nil {
			return nil, err
		}
	}
}

// fill reads at least one byte more of a message of need bytes, in a new arena when this one is full.
func (w *wire) fill(ctx context.Context, need int) error {
	if w.cur == nil || w.r+need > len(w.cur.buf) || len(w.cur.buf)-w.w < smallestRead && w.w < w.r+need {
		if err := w.move(ctx, need); err != nil {
			return err
		}
	}
	if !w.little.IsZero() || w.unpushed >= batch {
		w.pushNow()
		w.breathe()
	}
	w.waiting.Store(time.Now().UnixNano())
	n, err := w.reader.Read(w.cur.buf[w.w:])
	w.waiting.Store(0)
	w.w += n
	w.unpushed += n
	w.brought += n
	if n < gulp && w.w < len(w.cur.buf) {
		w.little = time.Now()
	}
	switch {
	case n > 0:
		return nil
	case err == nil:
		return nil // a reader may do that; the caller asks again
	case isTimeout(err):
		return errStopped
	default:
		return fmt.Errorf("reading the stream: %w", err)
	}
}

func (w *wire) pushNow() {
	w.unpushed = 0
	w.push()
}

// breathe keeps reads that bring little a moment apart. The server flushes every row; a reader that
// wakes for each costs the server a system call and a switch per row, and hands Kafka requests of one
// row, which together can keep the two busier than the rows themselves do. Rows that come seldom are
// not delayed.
func (w *wire) breathe() {
	if w.little.IsZero() {
		return
	}
	if w.brought > ample {
		w.pace = w.pace * ample / time.Duration(w.brought)
	} else {
		w.pace = min(2*max(w.pace, breath), longestBreath)
	}
	w.brought = 0
	breath := max(breath, min(w.lag/lagPart, w.pace))
	if wait := breath - time.Since(w.little); wait > 0 {
		time.Sleep(wait)
	}
	w.little = time.Time{}
}

// move carries what is not yet returned over to a new arena that has room for need bytes.
func (w *wire) move(ctx context.Context, need int) error {
	fresh, err := w.memory.get(ctx, need, w.pushNow)
	if err != nil {
		return err
	}
	n := 0
	if w.cur != nil {
		n = copy(fresh.buf, w.cur.buf[w.r:w.w])
		w.cur.leave()
	}
	w.cur, w.r, w.w = fresh, 0, n
	return nil
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// interrupt makes the read that is under way, and those that begin after d has passed, return
// errStopped.
func (w *wire) interrupt(d time.Duration) error { return w.conn.SetReadDeadline(time.Now().Add(d)) }

// silence returns how long the server has been silent although we listen.
func (w *wire) silence(now time.Time) time.Duration {
	if began := w.waiting.Load(); began != 0 {
		return now.Sub(time.Unix(0, began))
	}
	return 0
}

// sendStatus confirms position to the server. It blocks for writeTimeout at most.
func (w *wire) sendStatus(position pgoutput.LSN, replyRequested bool) error {
	w.writing.Lock()
	defer w.writing.Unlock()
	now := time.Now()
	w.status = pgoutput.AppendStatus(w.status[:0], position, pgoutput.Micros(now), replyRequested)
	if err := w.conn.SetWriteDeadline(now.Add(writeTimeout)); err != nil {
		return fmt.Errorf("confirming %s: %w", position, err)
	}
	crash(crashStatus)
	crashTorn(w)
	if _, err := w.conn.Write(w.status); err != nil {
		return fmt.Errorf("confirming %s: %w", position, err)
	}
	crash(crashStatusSent)
	return nil
}

// finish ends the stream in good order and waits until the server has taken note, so that the last
// status is not lost to a connection reset. It waits for d at most, and belongs to the goroutine that
// calls next.
func (w *wire) finish(ctx context.Context, d time.Duration) error {
	if err := w.interrupt(d); err != nil {
		return fmt.Errorf("ending the stream: %w", err)
	}
	w.writing.Lock()
	_, err := w.conn.Write([]byte{'c', 0, 0, 0, 4}) // copy done
	w.writing.Unlock()
	for err == nil {
		_, _, err = w.next(ctx) // what was still under way comes again from the slot
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return fmt.Errorf("ending the stream: %w", err)
}

// close hangs up; a read that is under way returns an error.
func (w *wire) close() { w.conn.Close() }

func closeQuietly(pg *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	pg.Close(ctx) //nolint:errcheck // the error that led here is the one to report
}
