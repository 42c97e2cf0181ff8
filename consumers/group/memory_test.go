package group

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"converge/consumers/event"
	"converge/consumers/retry"
)

// memoryDB is the tables of one consumer without PostgreSQL, which cannot live in a bubble of testing/synctest.
// What PostgreSQL does that the protocol leans on is here too: READ COMMITTED (a transaction's writes are a list
// that its COMMIT carries out), row locks that last as long as their transaction, the foreign key and the unique
// keys, deadlocks found, and transactions that are of no use after an error.
type memoryDB struct {
	mu       sync.Mutex // guards all below, and the transactions
	ended    *sync.Cond // a transaction has ended: who waits for a lock looks again
	offsets  map[partition]int64
	inbox    map[uuid.UUID]bool
	held     map[holdKey]heldKey
	waiting  map[holdKey][]heldEvent // by seq
	letters  map[uuid.UUID]letter
	effects  []effect
	outbox   []outgoing // committed, and not yet taken by a relay
	locks    map[row]map[*memTx]lockMode
	open     map[*memTx]bool
	sequence int64
	down     bool
	random   *rand.Rand

	// commits says what becomes of a COMMIT and its reply; nil: all is well.
	commits func() fate
	// violated is told of what no interleaving may do.
	violated func(what string)
	// committed is told of a COMMIT and the effects that it brought, with mu held; nil does nothing.
	committed func(effects []effect)
	// diesAgain is told of a letter that is to die once more, as it was, with mu held; nil does nothing.
	diesAgain func(id uuid.UUID, before letter)
}

type (
	holdKey struct{ topic, key string }
	heldKey struct {
		token, nudges             int64
		attempt                   int
		dueAt, nudgedAt, failedAt time.Time
		blocked                   bool // by a dead letter, until a person decides
	}
	heldEvent struct {
		seq      int64
		redriven bool
		event    *event.Event
	}
	letter struct {
		seq              int64
		event            *event.Event
		key, state       string
		class            string
		attempts, deaths int
		firstAt          time.Time
	}
	// effect is what a handler leaves behind, in the order of the commits.
	effect struct {
		id      uuid.UUID
		key     string
		seq     int
		by      string
		attempt int
	}
	outgoing struct {
		id      uuid.UUID
		topic   string
		key     string
		value   []byte
		headers map[string]string
	}
	row struct{ table, key string }
)

func newMemoryDB(seed uint64) *memoryDB {
	db := &memoryDB{offsets: map[partition]int64{}, inbox: map[uuid.UUID]bool{}, held: map[holdKey]heldKey{},
		waiting: map[holdKey][]heldEvent{}, letters: map[uuid.UUID]letter{}, locks: map[row]map[*memTx]lockMode{},
		open: map[*memTx]bool{}, random: rand.New(rand.NewPCG(seed, 1)), violated: func(what string) { panic(what) }}
	db.ended = sync.NewCond(&db.mu)
	return db
}

// lockMode is a row lock of PostgreSQL's, as far as the protocol uses them.
type lockMode int

const (
	keyShare    lockMode = iota // a foreign key's look at its row
	noKeyUpdate                 // a claim, an UPDATE
	exclusive                   // a DELETE, an INSERT that is not committed
)

func (m lockMode) conflicts(other lockMode) bool {
	return m == exclusive || other == exclusive || m == noKeyUpdate && other == noKeyUpdate
}

// errGone is a connection that broke.
var errGone = &net.OpError{Op: "read", Net: "memory", Err: errors.New("connection reset by peer")}

func sqlState(code, constraint string) error {
	return &pgconn.PgError{Code: code, ConstraintName: constraint, Message: "memory says " + code}
}

// memory is one member's way to the tables.
type memory struct {
	*memoryDB
	ladder retry.Ladder
	// cut says that this member's connections are gone, and no new one is to be had; memoryDB.mu guards it.
	cut bool
	// before is called ahead of every statement, outside mu; nil does nothing.
	before func(ctx context.Context, statement string) error
}

var _ store = (*memory)(nil)

func (db *memoryDB) member(ladder retry.Ladder) *memory { return &memory{memoryDB: db, ladder: ladder} }

// memTx is a transaction.
type memTx struct {
	pgx.Tx  // nil: what is not written here is not to be called
	store   *memory
	writes  []func(*memoryDB)
	holds   map[holdKey]bool // keys that it holds first
	waits   []*memTx         // those whose end it waits for
	aborted bool             // after an error
	closed  bool
	killed  bool // by the server
}

// statement does one statement of a transaction of its own.
func (m *memory) statement(ctx context.Context, name string, do func(t *memTx) error) error {
	t, err := m.start(ctx, name)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := t.do(ctx, do); err != nil {
		t.end(false)
		return err
	}
	return t.conclude()
}

func (m *memory) start(ctx context.Context, name string) (*memTx, error) {
	if m.before != nil {
		if err := m.before(ctx, name); err != nil {
			return nil, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down || m.cut {
		return nil, errGone
	}
	t := &memTx{store: m, holds: map[holdKey]bool{}}
	m.open[t] = true
	return t, nil
}

// in does a statement inside a transaction.
func (m *memory) in(ctx context.Context, tx pgx.Tx, name string, do func(t *memTx) error) error {
	if m.before != nil {
		if err := m.before(ctx, name); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return root(tx).do(ctx, do)
}

// do runs one statement; mu is held.
func (t *memTx) do(ctx context.Context, do func(t *memTx) error) error {
	if err := t.usable(ctx); err != nil {
		return err
	}
	err := do(t)
	if err != nil {
		t.aborted = true
	}
	return err
}

func (t *memTx) usable(ctx context.Context) error {
	switch {
	case t.killed:
		return errGone
	case t.closed:
		return pgx.ErrTxClosed
	case t.aborted:
		return sqlState("25P02", "")
	}
	return ctx.Err()
}

// lock takes a row lock, and waits for those that stand against it.
func (t *memTx) lock(ctx context.Context, r row, mode lockMode) error {
	for {
		var against []*memTx
		for other, theirs := range t.store.locks[r] {
			if other != t && mode.conflicts(theirs) {
				against = append(against, other)
			}
		}
		if len(against) == 0 {
			if t.store.locks[r] == nil {
				t.store.locks[r] = map[*memTx]lockMode{}
			}
			t.store.locks[r][t] = max(mode, t.store.locks[r][t])
			return nil
		}
		if err := t.await(ctx, against); err != nil {
			return err
		}
	}
}

// await waits until one of the transactions may have ended.
func (t *memTx) await(ctx context.Context, others []*memTx) error {
	t.waits = others
	defer func() { t.waits = nil }()
	if t.circular(t, map[*memTx]bool{}) {
		return sqlState("40P01", "")
	}
	stop := context.AfterFunc(ctx, func() {
		t.store.mu.Lock()
		defer t.store.mu.Unlock()
		t.store.ended.Broadcast()
	})
	defer stop()
	t.store.ended.Wait()
	return t.usable(ctx)
}

func (t *memTx) circular(from *memTx, seen map[*memTx]bool) bool {
	for _, other := range from.waits {
		if other == t {
			return true
		}
		if !seen[other] {
			seen[other] = true
			if t.circular(other, seen) {
				return true
			}
		}
	}
	return false
}

func (t *memTx) write(do func(*memoryDB)) { t.writes = append(t.writes, do) }

// end ends the transaction on the server; mu is held.
func (t *memTx) end(committed bool) {
	if committed {
		db := t.store.memoryDB
		before := len(db.effects)
		for _, write := range t.writes {
			write(db)
		}
		if db.committed != nil {
			db.committed(db.effects[before:])
		}
	}
	t.closed = true
	delete(t.store.open, t)
	for r, holders := range t.store.locks {
		delete(holders, t)
		if len(holders) == 0 {
			delete(t.store.locks, r)
		}
	}
	t.store.ended.Broadcast()
}

// fate is what becomes of a COMMIT.
type fate int

const (
	told       fate = iota
	lostBefore      // the server never hears of it, and takes a while to see that the client is gone
	lostDuring      // the client gives up while it is under way; it happens
	lostAfter       // it has happened, the reply is lost
)

// Commit implements pgx.Tx.
func (t *memTx) Commit(ctx context.Context) error {
	m := t.store
	if m.before != nil {
		if err := m.before(ctx, "commit"); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if t.aborted && !t.closed {
		t.end(false)
		return pgx.ErrTxCommitRollback
	}
	if err := t.usable(ctx); err != nil {
		return err
	}
	return t.conclude()
}

// conclude is the COMMIT on the server and its reply; mu is held.
func (t *memTx) conclude() error {
	m, what := t.store, told
	if m.commits != nil {
		what = m.commits()
	}
	if what == told || what == lostAfter {
		t.end(true)
		if what == lostAfter {
			return errGone
		}
		return nil
	}
	t.closed = true // for the client
	time.AfterFunc(time.Duration(m.random.Int64N(int64(3*time.Second))), func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if !t.killed {
			t.end(what == lostDuring)
		}
	})
	return errGone
}

// Rollback implements pgx.Tx.
func (t *memTx) Rollback(context.Context) error {
	t.store.mu.Lock()
	defer t.store.mu.Unlock()
	switch {
	case t.closed:
		return pgx.ErrTxClosed
	case t.store.cut: // the server does not hear of it
		return errGone
	}
	t.end(false)
	return nil
}

// addEffectSQL is a statement of handlers, and with what package outbox writes all that the tables in memory know.
const addEffectSQL = "INSERT INTO effects (event_id, key, seq, applied_by, attempt) VALUES ($1, $2, $3, $4, $5)"

// Exec implements pgx.Tx.
func (t *memTx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return pgconn.CommandTag{}, t.store.in(ctx, t, "handler", func(t *memTx) error {
		switch sql {
		case lateSQL:
		case addEffectSQL:
			e := effect{args[0].(uuid.UUID), args[1].(string), args[2].(int), args[3].(string), args[4].(int)}
			t.write(func(db *memoryDB) { db.effects = append(db.effects, e) })
		default:
			if !strings.HasPrefix(sql, "\nINSERT INTO outbox (") {
				return sqlState("42601", "")
			}
			return t.emit(args)
		}
		return nil
	})
}

// emit takes the columns that package outbox inserts.
func (t *memTx) emit(args []any) error {
	ids, topics, keys, values, texts := args[0].([]uuid.UUID), args[1].([]string), args[3].([]string), args[7].([][]byte), args[8].([]string)
	for i, id := range ids {
		o := outgoing{id: id, topic: topics[i], key: keys[i], value: values[i]}
		if err := json.Unmarshal([]byte(texts[i]), &o.headers); err != nil {
			return sqlState("22P02", "")
		}
		t.write(func(db *memoryDB) { db.outbox = append(db.outbox, o) })
	}
	return nil
}

// memSavepoint is a savepoint. It keeps the locks of what it undoes, as one of PostgreSQL's may.
type memSavepoint struct {
	*memTx
	mark   int
	closed bool
}

// Begin implements pgx.Tx.
func (t *memTx) Begin(ctx context.Context) (pgx.Tx, error) {
	s := &memSavepoint{memTx: t}
	if err := t.store.in(ctx, t, "savepoint", func(t *memTx) error { s.mark = len(t.writes); return nil }); err != nil {
		return nil, err
	}
	return s, nil
}

// Commit implements pgx.Tx.
func (s *memSavepoint) Commit(ctx context.Context) error {
	if s.closed {
		return pgx.ErrTxClosed
	}
	s.closed = true
	return s.store.in(ctx, s.memTx, "release savepoint", func(*memTx) error { return nil })
}

// Rollback implements pgx.Tx.
func (s *memSavepoint) Rollback(context.Context) error {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	switch {
	case s.closed:
		return pgx.ErrTxClosed
	case s.killed:
		return errGone
	case s.memTx.closed:
		return pgx.ErrTxClosed
	}
	s.closed = true
	s.writes, s.memTx.aborted = s.writes[:s.mark], false
	return nil
}

func root(tx pgx.Tx) *memTx {
	if s, ok := tx.(*memSavepoint); ok {
		return s.memTx
	}
	return tx.(*memTx)
}

func offsetRow(p partition) row  { return row{"consumer_offsets", fmt.Sprintf("%s/%d", p.topic, p.id)} }
func heldRow(k holdKey) row      { return row{"held_keys", k.topic + "/" + k.key} }
func letterRow(id uuid.UUID) row { return row{"dead_letters", id.String()} }

// others returns who else has the row locked like that.
func (t *memTx) others(r row, mode lockMode) (found []*memTx) {
	for other, theirs := range t.store.locks[r] {
		if other != t && theirs >= mode {
			found = append(found, other)
		}
	}
	return found
}

func (m *memory) readStored(ctx context.Context, partitions []partition) (map[partition]int64, error) {
	stored := map[partition]int64{}
	err := m.statement(ctx, "read stored offsets", func(t *memTx) error {
		for _, p := range partitions {
			stored[p] = m.offsets[p] // the statement's snapshot is older than the wait
			for against := t.others(offsetRow(p), noKeyUpdate); len(against) > 0; against = t.others(offsetRow(p), noKeyUpdate) {
				if err := t.await(ctx, against); err != nil {
					return err
				}
			}
			t.write(func(db *memoryDB) { db.offsets[p] += 0 })
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading stored offsets: %w", err)
	}
	return stored, nil
}

func (m *memory) movedBack(ctx context.Context, known map[partition]int64) (map[partition]int64, error) {
	back := map[partition]int64{}
	return back, m.statement(ctx, "moved back", func(*memTx) error {
		for p, at := range known {
			if stored, ok := m.offsets[p]; ok && stored < at {
				back[p] = stored
			}
		}
		return nil
	})
}

func (m *memory) begin(ctx context.Context) (pgx.Tx, error) {
	t, err := m.start(ctx, "begin")
	if err != nil {
		return nil, err
	}
	return t, nil
}

func (m *memory) takeOn(ctx context.Context, b batch) (taken, error) {
	t, err := m.start(ctx, "take on")
	if err != nil {
		return taken{}, err
	}
	took := taken{tx: t, fresh: map[uuid.UUID]bool{}, forgotten: map[uuid.UUID]bool{}}
	m.mu.Lock()
	defer m.mu.Unlock()
	err = t.do(ctx, func(t *memTx) error {
		if err := t.fence(ctx, b); err != nil {
			return err
		}
		ids := map[uuid.UUID]bool{}
		for _, e := range b.events {
			ids[e.ID] = true
		}
		for _, id := range slices.SortedFunc(maps.Keys(ids), func(a, b uuid.UUID) int { return cmp.Compare(a.String(), b.String()) }) {
			if m.inbox[id] {
				continue
			}
			if err := t.lock(ctx, row{"inbox", id.String()}, exclusive); err != nil {
				return err
			}
			if !m.inbox[id] {
				took.fresh[id] = true
				t.write(func(db *memoryDB) { db.inbox[id] = true })
			}
		}
		for k := range m.held {
			took.anyHeld = took.anyHeld || k.topic == b.topic && !m.ladder.Policy.Unordered
		}
		return nil
	})
	if err != nil {
		if !t.closed {
			t.end(false)
		}
		return taken{}, err
	}
	return took, nil
}

func (t *memTx) fence(ctx context.Context, b batch) error {
	if stored, ok := t.store.offsets[b.partition]; !ok || stored != b.expected || b.next <= b.expected {
		return errFenced
	}
	if err := t.lock(ctx, offsetRow(b.partition), noKeyUpdate); err != nil {
		return err
	}
	if t.store.offsets[b.partition] != b.expected {
		return errFenced
	}
	t.write(func(db *memoryDB) {
		if b.next <= db.offsets[b.partition] {
			db.violated(fmt.Sprintf("%v went from %d to %d", b.partition, db.offsets[b.partition], b.next))
		}
		db.offsets[b.partition] = b.next
	})
	return nil
}

func (m *memory) Held(ctx context.Context, tx pgx.Tx, topic string, keys []string) (map[string]bool, error) {
	held := map[string]bool{}
	return held, m.in(ctx, tx, "held", func(*memTx) error {
		for _, key := range keys {
			if _, ok := m.held[holdKey{topic, key}]; ok {
				held[key] = true
			}
		}
		return nil
	})
}
