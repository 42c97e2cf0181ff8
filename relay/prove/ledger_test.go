package prove

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"

	"converge/internal/proof"
)

// The tables of the ledger's own: next is the number that the key's next row gets, and whoever has the key's
// row locked is the only one to write the key, until its commit is in the log.
const ledgerSQL = `
CREATE SCHEMA prove;
CREATE TABLE prove.keys (key text PRIMARY KEY, next bigint NOT NULL);
CREATE INDEX ON orders.outbox (event_id);`

const (
	hotKeys   = 3
	coldKeys  = 60
	badTopic  = "no such topic!"
	deadTopic = slot + ".relay.dlq"
)

// topics are where the rows go: a key has one, and the topic for what cannot be published.
var topics = []string{"topic-0", "topic-1", "topic-2"}

func keyName(k int) string { return fmt.Sprintf("key-%d", k) }
func topicOf(k int) string { return topics[k%len(topics)] }
func allTopics() []string  { return append(slices.Clone(topics), deadTopic) }
func content(parts ...[]byte) uint64 {
	h := fnv.New64a()
	var size [8]byte
	for _, p := range parts {
		n := uint64(len(p))
		if p == nil {
			n = 1 << 63 // no value is not an empty one
		}
		binary.BigEndian.PutUint64(size[:], n)
		h.Write(size[:])
		h.Write(p)
	}
	return h.Sum64()
}

// ledger is what the writers know.
type ledger struct {
	url  string
	rate float64 // rows per second of all writers together

	mu   sync.Mutex // guards rows
	rows []Row
}

const writers = 4

// write writes with all writers until ctx ends.
func (l *ledger) write(ctx context.Context, seed uint64) error {
	var group sync.WaitGroup
	errs := make(chan error, writers)
	for n := range writers {
		w := &writer{ledger: l, rng: rand.New(rand.NewPCG(seed, uint64(n+1)))}
		group.Go(func() { errs <- w.run(ctx) })
	}
	group.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// writer is one connection that writes. It goes on when its server goes away.
type writer struct {
	ledger *ledger
	rng    *rand.Rand
	conn   *pgx.Conn
}

func (w *writer) run(ctx context.Context) error {
	defer func() {
		if w.conn != nil {
			w.conn.Close(context.Background())
		}
	}()
	for {
		began := time.Now()
		// What began is brought to an end whatever ctx says, so that its outcome is known.
		rows, err := w.transaction(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		due := time.Duration(float64(rows*writers) / w.ledger.rate * float64(time.Second))
		select {
		case <-time.After(min(due, 10*time.Second) - time.Since(began)):
		case <-ctx.Done():
			return nil
		}
	}
}

// connect returns when there is a connection.
func (w *writer) connect(ctx context.Context) error {
	if w.conn != nil && !w.conn.IsClosed() {
		return nil
	}
	deadline := time.After(proof.Patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		conn, err := pgx.Connect(attempt, w.ledger.url)
		cancel()
		if err == nil {
			w.conn = conn
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("the ledger's writer cannot connect: %w", err)
		}
	}
}

// size draws how many rows a transaction has.
func (w *writer) size() int {
	switch n := w.rng.IntN(1000); {
	case n < 550:
		return 1 + w.rng.IntN(3)
	case n < 900:
		return 4 + w.rng.IntN(30)
	case n < 996:
		return 30 + w.rng.IntN(200)
	default:
		return 1000 + w.rng.IntN(2000)
	}
}

// keys draws up to five keys, in the order in which all writers lock them.
func (w *writer) keys() []string {
	var keys []string
	for range 1 + w.rng.IntN(5) {
		k := w.rng.IntN(hotKeys)
		if w.rng.IntN(2) == 0 {
			k = hotKeys + w.rng.IntN(coldKeys)
		}
		keys = append(keys, keyName(k))
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// draft is a row that is not in the ledger yet, with what it takes to insert it.
type draft struct {
	Row
	topic   string
	payload []byte
}

// transaction writes one transaction and enters its rows into the ledger. An error is the run's end: that the
// server is away is none.
func (w *writer) transaction(ctx context.Context) (int, error) {
	if err := w.connect(ctx); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, proof.Patience)
	defer cancel()
	var rows []draft
	xid, err := w.fill(ctx, &rows)
	enter := func(outcome Outcome, unanswered bool) {
		w.ledger.mu.Lock()
		defer w.ledger.mu.Unlock()
		for _, d := range rows {
			if d.Outcome != RolledBack { // to a savepoint
				d.Outcome, d.Unanswered = outcome, unanswered
			}
			w.ledger.rows = append(w.ledger.rows, d.Row)
		}
	}
	if err != nil { // nobody asked for a commit
		w.hangUp()
		enter(RolledBack, false)
		return len(rows), nil
	}
	switch end := w.rng.IntN(100); {
	case end < 12:
		if _, err := w.conn.Exec(ctx, "ROLLBACK"); err != nil {
			w.hangUp()
		}
		enter(RolledBack, false)
		return len(rows), nil
	case end < 20:
		w.cutInCommit()
	default:
		if _, err = w.conn.Exec(ctx, "COMMIT"); err == nil {
			enter(Committed, false)
			return len(rows), nil
		}
		w.hangUp()
	}
	outcome, err := w.find(ctx, xid, rows)
	enter(outcome, true)
	return len(rows), err
}

// hangUp drops the connection without a word.
func (w *writer) hangUp() {
	w.conn.PgConn().Conn().Close()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	w.conn.Close(ended)
}

// cutInCommit sends COMMIT, or a part of it, and hangs up.
func (w *writer) cutInCommit() {
	commit, err := (&pgproto3.Query{String: "COMMIT"}).Encode(nil)
	if err != nil {
		panic(err) // a constant
	}
	conn := w.conn.PgConn().Conn()
	if w.rng.IntN(4) == 0 {
		commit = commit[:w.rng.IntN(len(commit))]
	}
	if tcp, ok := conn.(*net.TCPConn); ok && w.rng.IntN(2) == 0 {
		_ = tcp.SetLinger(0) // a reset instead of an orderly end
	}
	_, _ = conn.Write(commit) // whether it arrived is what has to be found out
	w.hangUp()
}

const (
	statusSQL = "SELECT coalesce(pg_xact_status($1::text::xid8), 'forgotten')"
	thereSQL  = "SELECT EXISTS (SELECT FROM orders.outbox WHERE event_id = $1)"
)

// find asks what became of a transaction: first until it is over, then whether its rows are there, because a
// server that crashed may have given the number to another transaction.
func (w *writer) find(ctx context.Context, xid string, rows []draft) (Outcome, error) {
	kept := slices.IndexFunc(rows, func(d draft) bool { return d.Outcome != RolledBack })
	if kept < 0 {
		return RolledBack, nil
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := w.connect(ctx); err != nil {
			return Unknown, err
		}
		var status string
		var there bool
		err := w.conn.QueryRow(ctx, statusSQL, xid).Scan(&status)
		if err == nil && status != "in progress" {
			if err = w.conn.QueryRow(ctx, thereSQL, rows[kept].Event).Scan(&there); err == nil {
				if there {
					return Committed, nil
				}
				return RolledBack, nil
			}
		}
		if err != nil {
			w.hangUp()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return Unknown, nil
		}
	}
}

const lockSQL = `
SELECT key, next
FROM prove.keys
WHERE key = ANY($1)
ORDER BY key
FOR UPDATE`

// fill begins a transaction and inserts its rows, some of them behind a savepoint that is rolled back.
func (w *writer) fill(ctx context.Context, rows *[]draft) (xid string, err error) {
	if _, err := w.conn.Exec(ctx, "BEGIN"); err != nil {
		return "", err
	}
	if err := w.conn.QueryRow(ctx, "SELECT pg_current_xact_id()::text").Scan(&xid); err != nil {
		return "", err
	}
	keys := w.keys()
	next := map[string]int64{}
	locked, err := w.conn.Query(ctx, lockSQL, keys)
	if err != nil {
		return "", err
	}
	var key string
	var n int64
	if _, err := pgx.ForEachRow(locked, []any{&key, &n}, func() error { next[key] = n; return nil }); err != nil {
		return "", err
	}
	if len(next) != len(keys) {
		return "", fmt.Errorf("%d of %d keys are there", len(next), len(keys))
	}
	for left := w.size(); left > 0; {
		some := min(left, 1+w.rng.IntN(500))
		left -= some
		undo := w.rng.IntN(8) == 0
		before := map[string]int64{}
		for k, n := range next {
			before[k] = n
		}
		if undo {
			if _, err := w.conn.Exec(ctx, "SAVEPOINT s"); err != nil {
				return "", err
			}
		}
		drafts := w.draw(some, keys, next)
		*rows = append(*rows, drafts...)
		if err := w.insert(ctx, drafts); err != nil {
			return "", err
		}
		if undo {
			if _, err := w.conn.Exec(ctx, "ROLLBACK TO s"); err != nil {
				return "", err
			}
			next = before
			for i := len(*rows) - some; i < len(*rows); i++ {
				(*rows)[i].Outcome = RolledBack
			}
		}
	}
	for _, key := range keys {
		if _, err := w.conn.Exec(ctx, "UPDATE prove.keys SET next = $2 WHERE key = $1", key, next[key]); err != nil {
			return "", err
		}
	}
	return xid, nil
}

// draw makes rows of the keys.
func (w *writer) draw(n int, keys []string, next map[string]int64) []draft {
	drafts := make([]draft, n)
	for i := range drafts {
		d := &drafts[i]
		key := keys[w.rng.IntN(len(keys))]
		var k int
		fmt.Sscanf(key, "key-%d", &k)
		d.Event, d.Key, d.Sequence, d.Outcome = uuid.New(), key, next[key], Unknown
		next[key]++
		d.topic = topicOf(k)
		d.Topic = d.topic
		switch size := w.rng.IntN(2000); {
		case size == 0:
			d.payload = bytes.Repeat([]byte{'x'}, 100_000+w.rng.IntN(100_000))
		case size < 20: // no value
		default:
			d.payload = make([]byte, w.rng.IntN(300))
			for i := range d.payload {
				d.payload[i] = byte(w.rng.Uint32())
			}
		}
		if w.rng.IntN(200) == 0 {
			d.topic, d.Topic = badTopic, deadTopic
			d.Content = content(d.payload, []byte(badTopic), []byte(eventType))
			continue
		}
		d.Content = content(d.payload, []byte(eventType), []byte(aggregateType), fmt.Append(nil, d.Sequence), []byte(contentType), d.Event[:])
	}
	return drafts
}

const (
	eventType     = "Happened"
	aggregateType = "thing"
	contentType   = "application/octet-stream"
	ownHeader     = "correlation_id"
)

var insertColumns = []string{"event_id", "topic", "aggregate_type", "aggregate_id", "aggregate_version", "event_type", "content_type", "payload", "headers"}

// insert uses COPY, which puts many rows on one position of the log, or a statement for each.
func (w *writer) insert(ctx context.Context, drafts []draft) error {
	values := func(d *draft) []any {
		return []any{[16]byte(d.Event), d.topic, aggregateType, d.Key, d.Sequence, eventType, contentType, d.payload,
			[]byte(fmt.Sprintf(`{%q: %q}`, ownHeader, d.Event))}
	}
	if len(drafts) > 20 || w.rng.IntN(3) == 0 {
		_, err := w.conn.CopyFrom(ctx, pgx.Identifier{service, "outbox"}, insertColumns,
			pgx.CopyFromSlice(len(drafts), func(i int) ([]any, error) { return values(&drafts[i]), nil }))
		return err
	}
	batch := &pgx.Batch{}
	for i := range drafts {
		batch.Queue(`
INSERT INTO orders.outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload, headers)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`, values(&drafts[i])...)
	}
	return w.conn.SendBatch(ctx, batch).Close()
}

// finished returns the rows with the commits that the judge found in the log, and the events of those that no
// writer wrote.
func (l *ledger) finished(ends map[uuid.UUID]LSN) (rows []Row, strangers []uuid.UUID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := 0
	for i := range l.rows {
		var there bool
		if l.rows[i].End, there = ends[l.rows[i].Event]; there {
			known++
		}
	}
	if known < len(ends) {
		all := make(map[uuid.UUID]bool, len(l.rows))
		for i := range l.rows {
			all[l.rows[i].Event] = true
		}
		for event := range ends {
			if !all[event] {
				strangers = append(strangers, event)
			}
		}
	}
	slices.SortStableFunc(l.rows, func(a, b Row) int { return cmp.Compare(a.End, b.End) })
	return l.rows, strangers
}
