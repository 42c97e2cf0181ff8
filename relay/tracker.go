package relay

import (
	"sync"
	"sync/atomic"
	"time"

	"converge/relay/pgoutput"
)

// tracker decides which position may be confirmed. It is a queue of transactions in commit order; the
// watermark is the end of the last transaction up to which every record is acknowledged. While nothing
// waits in the queue it also follows the server's keepalives, which is all that it takes to release the
// WAL of a database whose outboxes are idle.
//
// A transaction that the server sends before it has ended is not in the queue, and does not keep the keepalives
// from counting: a keepalive's position is how far the server has decoded, and it has not decoded a commit that it
// has not sent. So the commit lies at or behind every position that is confirmed before, and the server, which
// keeps the WAL from the first row of whatever is open on, sends the transaction anew to the next connection.
//
// The zero tracker is ready; its watermark is the zero LSN, which tells the server nothing.
//
// begin, commit and keepalive belong to the reading goroutine, [transaction.acknowledge] to the Kafka
// client's promises, watermark and oldest to anyone.
type tracker struct {
	mu sync.Mutex // guards all below
	// Invariant: head..tail are the transactions begun and not yet passed by the watermark, in commit
	// order; only tail may be open.
	head, tail *transaction
	open       bool
	// Invariant: every record of every transaction that ends at or before confirmed is acknowledged.
	confirmed pgoutput.LSN
	// covered is when the last transaction that ends at or before confirmed committed, zero if none did.
	covered time.Time
	// idle is the latest keepalive's position. Every transaction that committed before it has been
	// begun on this connection or is not ours.
	idle pgoutput.LSN
	free *transaction
}

// transaction is one committed transaction of the WAL. It is in the queue once, and reused only after
// all its records are acknowledged.
type transaction struct {
	next *transaction
	end  pgoutput.LSN // 0 while open
	lsn  pgoutput.LSN // of its commit record: with a row's place in it, the row's identity

	committed   time.Time
	committedAt []byte // committed in RFC 3339, shared by the headers of its records

	// sent counts the records produced; it is the reading goroutine's own until commit.
	sent int64
	// skipped counts the rows that are not produced because they are on their topics already.
	skipped int64
	// pending is, while open, unsettled minus the acknowledgements so far; after commit, the number of
	// records that are not acknowledged. Counting down from a bias spares the reader an atomic
	// operation per record and keeps an open transaction from ever looking done.
	pending atomic.Int64
}

const unsettled = 1 << 40

// acknowledge counts one record as durable on its topic, and reports whether it was the last of a
// transaction that is also closed.
func (x *transaction) acknowledge() (done bool) { return x.pending.Add(-1) == 0 }

// begin opens the next transaction.
func (t *tracker) begin(lsn pgoutput.LSN, committed time.Time) *transaction {
	t.mu.Lock()
	t.advance()
	x := t.free
	if x == nil {
		x = new(transaction)
	} else {
		t.free = x.next
	}
	if t.tail == nil {
		t.head = x
	} else {
		t.tail.next = x
	}
	t.tail, t.open = x, true
	x.next, x.end, x.lsn, x.sent, x.skipped = nil, 0, lsn, 0, 0
	x.pending.Store(unsettled)
	x.committed = committed
	t.mu.Unlock()
	x.committedAt = committed.AppendFormat(x.committedAt[:0], time.RFC3339Nano)
	return x
}

// commit closes the open transaction at its end position, and reports whether all its records are
// acknowledged already.
func (t *tracker) commit(end pgoutput.LSN) (done bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.tail
	x.end = end
	t.open = false
	return x.pending.Add(x.sent-unsettled) == 0
}

// keepalive notes how far the server has decoded.
func (t *tracker) keepalive(end pgoutput.LSN) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.idle = max(t.idle, end)
}

// watermark returns the position up to which nothing is waiting. It never goes back.
func (t *tracker) watermark() pgoutput.LSN {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.advance()
	return t.confirmed
}

// position returns the watermark, and when the last transaction before it committed.
func (t *tracker) position() (pgoutput.LSN, time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.advance()
	return t.confirmed, t.covered
}

// advance passes the finished transactions at the head. The caller holds mu.
func (t *tracker) advance() {
	for x := t.head; x != nil && x.pending.Load() == 0; x = t.head {
		t.confirmed = max(t.confirmed, x.end)
		t.covered = x.committed
		t.head = x.next
		if t.head == nil {
			t.tail = nil
		}
		x.next = t.free
		t.free = x
	}
	if t.head == nil {
		// A keepalive that came while transactions were waiting counts too: each of them began before
		// it and is in confirmed now, or began after it and ends beyond it.
		t.confirmed = max(t.confirmed, t.idle)
	}
}

// isOpen reports whether a transaction is begun and not committed.
func (t *tracker) isOpen() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.open
}

// newest returns the commit record's position of the transaction that was begun last, 0 if none waits.
func (t *tracker) newest() pgoutput.LSN {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tail == nil {
		return 0
	}
	return t.tail.lsn
}

// oldest returns when the oldest waiting transaction committed, the zero time if none waits.
func (t *tracker) oldest() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.advance()
	if t.head == nil {
		return time.Time{}
	}
	return t.head.committed
}
