package relay

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"

	"converge/relay/pgoutput"
)

// spill keeps, on disk, the transactions that the server sends before they have ended. Nothing of them is
// published until the server says that they committed:
//
//	StreamStart ─▶ receiving ── row, relation ──▶ the transaction's file
//	                  │ StreamStop                      ▲
//	                  ▼                                 │ the next block
//	                kept ───────────────────────────────┘
//	                  │ StreamAbort of a subtransaction: its rows are passed over later
//	                  ├ StreamAbort ──▶ the file is deleted
//	                  └ StreamCommit ─▶ the file is read back and published, then deleted
//
// The files are no durable state and never synced: while the server has not heard that the transaction's
// end is confirmed, it sends all of it again to the next session. Each session has a directory of its
// own, named after the slot and the server, and removes what others of that name have left behind; it may, because the slot
// is its own by then. A relay that has lost the slot and does not know yet finds its directory gone.
//
// A file holds messages as they would have come outside a stream, each behind a header:
//
//	length of the message │ its transaction or subtransaction │ relations described before it on the connection
//	       4 bytes        │              4 bytes              │                    4 bytes
//
// It belongs to the reading goroutine.
type spill struct {
	root  string // as configured
	dir   string // the session's own
	bytes prometheus.Gauge
	kept  map[uint32]*spilled

	// Invariant: current is set from StreamStart to StreamStop, file only if current has rows in this block.
	current *spilled
	file    *os.File
	out     *bufio.Writer
	header  [spillHeader]byte
}

// spilled is a transaction that has not ended.
type spilled struct {
	xid  uint32
	path string
	size int64 // of the file; there is none while it is 0
	// aborted are the subtransactions that were taken back. A transaction may have millions.
	aborted []uint32
}

const (
	spillHeader = 4 + 4 + 4
	spillBuffer = 64 << 10
	spillSuffix = ".spill"
)

// newSpill makes the session's directory. The slot is the caller's by now.
func newSpill(root, slot string, server identity, bytes prometheus.Gauge) (*spill, error) {
	bad := func(err error) (*spill, error) { return nil, unusable(root, err) }
	if err := os.MkdirAll(root, 0o700); err != nil {
		return bad(err)
	}
	// No slot's name has a dot in it, and slots of one name on different servers are different slots.
	name := slot + "." + server.System + "."
	left, err := os.ReadDir(root)
	if err != nil {
		return bad(err)
	}
	for _, entry := range left {
		if matches, _ := filepath.Match(name+"*"+spillSuffix, entry.Name()); !matches { // the pattern is well formed
			continue
		}
		if err := os.RemoveAll(filepath.Join(root, entry.Name())); err != nil {
			return bad(err)
		}
	}
	dir, err := os.MkdirTemp(root, name+"*"+spillSuffix)
	if err != nil {
		return bad(err)
	}
	return &spill{root: root, dir: dir, bytes: bytes, kept: make(map[uint32]*spilled), out: bufio.NewWriterSize(nil, spillBuffer)}, nil
}

// lookAtSpillDir returns why large transactions could not be kept in the directory, without making it.
func lookAtSpillDir(root string) error {
	nearest := filepath.Clean(root)
	info, err := os.Stat(nearest)
	for errors.Is(err, fs.ErrNotExist) && nearest != filepath.Dir(nearest) {
		nearest = filepath.Dir(nearest)
		info, err = os.Stat(nearest)
	}
	if err == nil && !info.IsDir() {
		err = &fs.PathError{Op: "open", Path: nearest, Err: syscall.ENOTDIR}
	}
	if err == nil {
		const writable = 2 // W_OK of access(2)
		err = syscall.Access(nearest, writable)
	}
	if err != nil {
		return unusable(root, err)
	}
	return nil
}

// unusable names the directory and what to do. Only what the operator chose wrongly is no outage.
func unusable(root string, err error) error {
	err = fmt.Errorf("keeping large transactions in %s: %w", root, err)
	const fix = "give the relay a directory that it may write, with room for the transactions that are open at a time"
	for _, wrong := range []error{fs.ErrPermission, syscall.ENOTDIR, syscall.EROFS} {
		if errors.Is(err, wrong) {
			return &misconfiguredError{err, fix}
		}
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: make room, or %s", err, fix)
	}
	return err
}

// receiving reports whether a block is open, to which the next message belongs.
func (s *spill) receiving() bool { return s != nil && s.current != nil }

// start opens a block.
func (s *spill) start(b pgoutput.StreamStart) error {
	x := s.kept[b.XID]
	if s.current != nil || (x == nil) != b.First {
		return fmt.Errorf("%w: a block of transaction %d where none can be", pgoutput.ErrMalformed, b.XID)
	}
	if x == nil {
		x = &spilled{xid: b.XID, path: filepath.Join(s.dir, fmt.Sprint(b.XID))}
		s.kept[b.XID] = x
	}
	s.current = x
	return nil
}

// add keeps a message of the open block. described is the number of relations that came before it.
func (s *spill) add(message []byte, described uint32) error {
	xid, rest, err := pgoutput.CutXID(message)
	if err != nil {
		return err
	}
	x := s.current
	if s.file == nil {
		// A file that has been there before is not made anew: without it rows would be missing.
		flags := os.O_WRONLY | os.O_APPEND
		if x.size == 0 {
			flags |= os.O_CREATE | os.O_EXCL
		}
		if s.file, err = os.OpenFile(x.path, flags, 0o600); err != nil {
			return unusable(s.root, err)
		}
		s.out.Reset(s.file)
	}
	binary.BigEndian.PutUint32(s.header[0:], uint32(1+len(rest)))
	binary.BigEndian.PutUint32(s.header[4:], xid)
	binary.BigEndian.PutUint32(s.header[8:], described)
	// A bufio.Writer keeps its first error and returns it from then on.
	_, _ = s.out.Write(s.header[:])
	_ = s.out.WriteByte(message[0])
	if _, err = s.out.Write(rest); err != nil {
		return unusable(s.root, err)
	}
	written := int64(spillHeader + 1 + len(rest))
	x.size += written
	s.bytes.Add(float64(written))
	return nil
}

// stop closes the block.
func (s *spill) stop() error {
	if s.current == nil {
		return fmt.Errorf("%w: the end of a block that has not begun", pgoutput.ErrMalformed)
	}
	s.current = nil
	if s.file == nil {
		return nil
	}
	err := s.out.Flush()
	if closed := s.file.Close(); err == nil {
		err = closed
	}
	if s.file = nil; err != nil {
		return unusable(s.root, err)
	}
	return nil
}

// abort takes back a transaction or a subtransaction. One that had no block is none of ours.
func (s *spill) abort(a pgoutput.StreamAbort) error {
	x := s.kept[a.XID]
	switch {
	case x == nil:
		return nil
	case a.Sub != a.XID:
		x.aborted = append(x.aborted, a.Sub)
		return nil
	default:
		return s.drop(x)
	}
}

// take returns the transaction that commits; the caller drops it when it is published.
func (s *spill) take(xid uint32) (*spilled, error) {
	x := s.kept[xid]
	if x == nil || s.current != nil {
		return nil, fmt.Errorf("%w: the commit of transaction %d where none can be", pgoutput.ErrMalformed, xid)
	}
	slices.Sort(x.aborted)
	return x, nil
}

func (s *spill) drop(x *spilled) error {
	delete(s.kept, x.xid)
	if x.size == 0 {
		return nil
	}
	s.bytes.Sub(float64(x.size))
	if err := os.Remove(x.path); err != nil {
		return unusable(s.root, err)
	}
	return nil
}

// close removes all that is left. A session that ends has its own error to report.
func (s *spill) close() {
	if s == nil {
		return
	}
	if s.file != nil {
		_ = s.file.Close()
	}
	_ = os.RemoveAll(s.dir)
	s.bytes.Set(0)
}

// takenBack reports whether a message belongs to a subtransaction that was rolled back.
func (x *spilled) takenBack(xid uint32) bool {
	_, found := slices.BinarySearch(x.aborted, xid)
	return found
}
