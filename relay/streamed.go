package relay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"converge/relay/pgoutput"
)

// streamed handles what concerns transactions that are sent before they have ended, and reports whether
// the message did.
func (s *session) streamed(ctx context.Context, header pgoutput.Header, message []byte) (bool, error) {
	if s.spill.receiving() {
		return true, s.receive(message)
	}
	switch message[0] {
	case pgoutput.KindStreamStart:
		start, err := pgoutput.ParseStreamStart(message)
		if err != nil {
			return true, err
		}
		return true, s.spill.start(start)
	case pgoutput.KindStreamAbort:
		abort, err := pgoutput.ParseStreamAbort(message)
		if err != nil {
			return true, err
		}
		return true, s.spill.abort(abort)
	case pgoutput.KindStreamCommit:
		commit, err := pgoutput.ParseStreamCommit(message)
		if err != nil {
			return true, err
		}
		return true, s.streamCommitted(ctx, header, commit)
	}
	return false, nil
}

// receive takes a message inside a block.
func (s *session) receive(message []byte) error {
	switch message[0] {
	case pgoutput.KindStreamStop:
		return s.spill.stop()
	case pgoutput.KindRelation:
		s.described++
	case pgoutput.KindInsert, pgoutput.KindMessage:
	default:
		return nil
	}
	return s.spill.add(message, s.described)
}

// streamCommitted publishes a transaction out of its file, as if all of it had come now.
//
// Its relations are its own: the server describes a table to each such transaction by itself. Behind the
// commit it takes them for described on the connection, too, unless it has described them anew since.
func (s *session) streamCommitted(ctx context.Context, header pgoutput.Header, c pgoutput.StreamCommit) error {
	x, err := s.spill.take(c.XID)
	if err != nil {
		return err
	}
	connection := s.layouts
	s.layouts = make(map[uint32]*layout)
	s.begin(pgoutput.Begin{CommitLSN: c.CommitLSN, Micros: c.Micros, XID: c.XID}, header)
	if err := s.publishSpilled(ctx, x); err != nil {
		return err
	}
	if err := s.commit(c.Commit); err != nil {
		return err
	}
	adopt(connection, s.layouts)
	s.layouts = connection
	return s.spill.drop(x)
}

// adopt takes over what a transaction was told of its tables. Of a table that the connection was told of since,
// the server thinks that we know the newer.
func adopt(connection, transaction map[uint32]*layout) {
	for id, l := range transaction {
		if known := connection[id]; known != nil && known.described > l.described {
			continue
		}
		connection[id] = l
	}
}

func (s *session) publishSpilled(ctx context.Context, x *spilled) error {
	if x.size == 0 {
		return nil
	}
	file, err := os.Open(x.path)
	if err != nil {
		return unusable(s.spill.root, err)
	}
	defer file.Close()
	in := unspill{from: file, left: x.size, memory: s.memory, push: s.push}
	defer in.leave()
	var until time.Time // when a drain stops in the middle
	for {
		if ctx.Err() != nil {
			cause := context.Cause(ctx)
			if !errors.Is(cause, errStopped) || !until.IsZero() && time.Now().After(until) {
				return cause
			}
			if until.IsZero() {
				until = time.Now().Add(transactionGrace)
			}
		}
		frame, err := in.next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if x.takenBack(frame.xid) {
			continue
		}
		if err := s.kept(ctx, frame, in.cur); err != nil {
			return err
		}
	}
}

// kept takes a message out of a file.
func (s *session) kept(ctx context.Context, f spillFrame, in *arena) error {
	if f.message[0] == pgoutput.KindRelation {
		return s.relation(f.message, f.described)
	}
	return s.message(ctx, pgoutput.Header{}, f.message, in)
}

// unspill reads a file back, into arenas like what comes from the server.
type unspill struct {
	from   io.Reader
	left   int64 // bytes of the file that are not read
	memory *arenas
	push   func()

	// Invariant: cur.buf[r:w] is what was read and not returned.
	cur      *arena
	r, w     int
	unpushed int // bytes read since the last push
}

// spillFrame is a message out of a file.
type spillFrame struct {
	xid, described uint32
	message        []byte // in the arena
}

// next returns the next message, io.EOF behind the last one.
func (u *unspill) next(ctx context.Context) (f spillFrame, err error) {
	if u.w == u.r && u.left == 0 {
		return f, io.EOF
	}
	head, err := u.take(ctx, spillHeader)
	if err != nil {
		return f, err
	}
	size := binary.BigEndian.Uint32(head)
	f.xid, f.described = binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint32(head[8:])
	if size == 0 || size > largestFrame {
		return f, fmt.Errorf("%w: %d bytes out of a file", pgoutput.ErrMalformed, size)
	}
	f.message, err = u.take(ctx, int(size))
	return f, err
}

// take returns the next n bytes.
func (u *unspill) take(ctx context.Context, n int) ([]byte, error) {
	for u.w-u.r < n {
		if u.cur == nil || u.r+n > len(u.cur.buf) {
			if err := u.move(ctx, n); err != nil {
				return nil, err
			}
		}
		got, err := u.from.Read(u.cur.buf[u.w:min(len(u.cur.buf), u.w+int(min(u.left, arenaSize)))])
		u.w += got
		if u.left -= int64(got); got == 0 {
			// What was written is not there: it is lost with the session, and comes again.
			return nil, fmt.Errorf("reading a large transaction back: %w", errors.Join(err, io.ErrUnexpectedEOF))
		}
		if u.unpushed += got; u.unpushed >= batch {
			u.unpushed = 0
			u.push()
		}
	}
	part := u.cur.buf[u.r : u.r+n : u.r+n]
	u.r += n
	return part, nil
}

// move carries what is not yet returned over to a new arena that has room for n bytes.
func (u *unspill) move(ctx context.Context, n int) error {
	fresh, err := u.memory.get(ctx, n, u.push)
	if err != nil {
		return err
	}
	kept := 0
	if u.cur != nil {
		kept = copy(fresh.buf, u.cur.buf[u.r:u.w])
		u.cur.leave()
	}
	u.cur, u.r, u.w = fresh, 0, kept
	return nil
}

// leave says that no more rows come.
func (u *unspill) leave() {
	if u.cur != nil {
		u.cur.leave()
		u.cur = nil
	}
}
