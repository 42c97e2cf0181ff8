package relay

import (
	"context"
	"sync"
	"sync/atomic"
)

// arena is a stretch of the replication stream, read from the socket once and pointed into by the
// records made of it, together with those records themselves. It goes back to its pool when the reader
// has moved on and every record is acknowledged.
type arena struct {
	pool *arenas
	buf  []byte

	rows []*row // handed out in order, reused with the arena
	used int    // rows handed out; the reading goroutine's own

	// pending is, while the reader is here, unsettled minus the acknowledgements so far; afterwards,
	// the number of records that are not acknowledged.
	pending atomic.Int64
}

// nextRow returns a row that lives as long as the arena's bytes do.
func (a *arena) nextRow(make func() *row) *row {
	if a.used == len(a.rows) {
		a.rows = append(a.rows, make())
	}
	r := a.rows[a.used]
	a.used++
	return r
}

// leave says that the reader takes no more rows from the arena.
func (a *arena) leave() {
	a.pool.leave(len(a.buf))
	if a.pending.Add(int64(a.used)-unsettled) == 0 {
		a.pool.put(a)
	}
}

// acknowledge counts one record as done with its bytes. The caller must not touch the row afterwards.
func (a *arena) acknowledge() {
	if a.pending.Add(-1) == 0 {
		a.pool.put(a)
	}
}

// arenaSize balances system calls against memory that one slow record pins.
const arenaSize = 64 << 10

// arenas is a session's memory: at most limit bytes of stream are held at any time, but for a single
// message that is itself larger.
type arenas struct {
	limit int
	room  chan struct{} // holds a token after memory was given back

	mu   sync.Mutex // guards all below
	held int
	// occupied is the part of held in which readers are. Nobody else gives that back, so nobody waits for it.
	occupied int
	free     []*arena // of exactly arenaSize
}

func newArenas(limit int) *arenas {
	return &arenas{limit: limit, room: make(chan struct{}, 1)}
}

// get returns an arena that holds at least size bytes. It blocks while the limit is reached, until
// records are acknowledged or ctx ends, and calls waiting before it does. Only one goroutine may call it.
func (p *arenas) get(ctx context.Context, size int, waiting func()) (*arena, error) {
	size = max(size, arenaSize)
	for {
		if a := p.tryGet(size); a != nil {
			a.used = 0
			a.pending.Store(unsettled)
			return a, nil
		}
		waiting()
		select {
		case <-p.room:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (p *arenas) tryGet(size int) *arena {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held > p.occupied && p.held+size > p.limit {
		return nil
	}
	p.held += size
	p.occupied += size
	if n := len(p.free); n > 0 && size == arenaSize {
		a := p.free[n-1]
		p.free[n-1] = nil
		p.free = p.free[:n-1]
		return a
	}
	return &arena{pool: p, buf: make([]byte, size)}
}

// leave notes that a reader has left an arena of the size.
func (p *arenas) leave(size int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.occupied -= size
}

func (p *arenas) put(a *arena) {
	p.mu.Lock()
	p.held -= len(a.buf)
	if len(a.buf) == arenaSize {
		p.free = append(p.free, a)
	}
	p.mu.Unlock()
	select {
	case p.room <- struct{}{}:
	default:
	}
}
