package prove

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/internal/proof"
)

// witness sees what the run does, around the relay: the server's log by a slot of its own, the relay's slot,
// and the topics by a consumer.
type witness struct {
	server *proof.Server
	began  time.Time
	plan   plan

	sampling sync.Mutex // held while a sample is taken, so that they stand in their order

	mu      sync.Mutex // guards all below
	ends    map[uuid.UUID]LSN
	records map[Place][]Record
	next    map[Place]int64 // the offset behind what was read, transactions' ends included
	changed []Record        // that took the place of others
	samples []Sample
	missed  int           // samples that could not be taken because a side was away
	reader  time.Duration // when the relay's slot was last seen to have a reader, since the run began
}

func newWitness(s *proof.Server, p plan) *witness {
	return &witness{server: s, began: time.Now(), plan: p, ends: map[uuid.UUID]LSN{}, records: map[Place][]Record{}, next: map[Place]int64{}}
}

const (
	judgePublicationSQL = "CREATE PUBLICATION judge FOR TABLE orders.outbox %s WITH (publish = 'insert', publish_via_partition_root = true)"
	judgeSlotSQL        = "SELECT pg_create_logical_replication_slot('judge', 'pgoutput')"
)

// prepare makes the judge's slot. It must come before the first row.
func (w *witness) prepare(ctx context.Context, conn *pgx.Conn) error {
	columns := "(event_id)"
	if w.server.Postgres.Version < 15 { // has no column lists
		columns = ""
	}
	if _, err := conn.Exec(ctx, fmt.Sprintf(judgePublicationSQL, columns)); err != nil {
		return err
	}
	_, err := conn.Exec(ctx, judgeSlotSQL)
	return err
}

const (
	peekSQL = `
SELECT data
FROM pg_logical_slot_peek_binary_changes('judge', NULL, 20000, 'proto_version', '1', 'publication_names', 'judge', 'binary', 'true')`
	advanceSQL = "SELECT pg_replication_slot_advance('judge', $1::text::pg_lsn)"
)

// readLog takes what the log holds now, and reports whether there may be more.
func (w *witness) readLog(ctx context.Context, conn *pgx.Conn) (more bool, err error) {
	rows, err := conn.Query(ctx, peekSQL)
	if err != nil {
		return false, err
	}
	messages, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil || len(messages) == 0 {
		return false, err
	}
	last, err := w.decode(messages)
	if err != nil {
		return false, err
	}
	// Only now may the server forget it.
	_, err = conn.Exec(ctx, advanceSQL, last.String())
	return true, err
}

// decode notes the commits that the messages tell of, and returns the end of the last.
func (w *witness) decode(messages [][]byte) (last LSN, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	column := 0
	var events []uuid.UUID
	for _, m := range messages {
		switch m[0] {
		case 'R':
			if column, err = columnOf(m, "event_id"); err != nil {
				return 0, err
			}
		case 'I':
			e, err := valueOf(m, column)
			if err != nil {
				return 0, err
			}
			events = append(events, e)
		case 'C': // flags, the commit's position, its end
			last = LSN(binary.BigEndian.Uint64(m[10:]))
			for _, e := range events {
				w.ends[e] = last
			}
			events = events[:0]
		}
	}
	return last, nil
}

var errLog = errors.New("the log's message is not understood")

// columnOf finds a column in a Relation message.
func columnOf(m []byte, name string) (int, error) {
	text := func(b []byte) (string, []byte) {
		for i, c := range b {
			if c == 0 {
				return string(b[:i]), b[i+1:]
			}
		}
		return "", nil
	}
	_, rest := text(m[5:])
	_, rest = text(rest)
	if len(rest) < 3 {
		return 0, errLog
	}
	n := int(binary.BigEndian.Uint16(rest[1:]))
	rest = rest[3:]
	for i := range n {
		if len(rest) < 1 {
			return 0, errLog
		}
		var column string
		column, rest = text(rest[1:])
		if column == name {
			return i, nil
		}
		if len(rest) < 8 {
			return 0, errLog
		}
		rest = rest[8:]
	}
	return 0, errLog
}

// valueOf takes a UUID out of an Insert message.
func valueOf(m []byte, column int) (uuid.UUID, error) {
	rest := m[8:] // kind, relation, 'N', number of columns
	for range column {
		if rest[0] == 'n' || rest[0] == 'u' {
			rest = rest[1:]
			continue
		}
		rest = rest[5+binary.BigEndian.Uint32(rest[1:]):]
	}
	if rest[0] != 'b' || binary.BigEndian.Uint32(rest[1:]) != 16 {
		return uuid.UUID{}, errLog
	}
	return uuid.FromBytes(rest[5:21])
}

// watch reads the log and takes samples until ctx ends. It goes on when a side is away.
func (w *witness) watch(ctx context.Context, kafka *kgo.Client) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var conn *pgx.Conn
	for looks := 0; ; looks++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			if conn != nil {
				conn.Close(context.Background())
			}
			return
		}
		look, cancel := context.WithTimeout(ctx, 10*time.Second)
		var err error
		if conn == nil {
			conn, err = pgx.Connect(look, w.server.URL())
		}
		if err == nil {
			if err = w.sample(look, conn, kafka, nil); err == nil && looks%5 == 0 {
				_, err = w.readLog(look, conn)
			}
		}
		cancel()
		if err != nil {
			w.mu.Lock()
			w.missed++
			w.mu.Unlock()
			if conn != nil {
				conn.Close(context.Background())
				conn = nil
			}
		}
	}
}

const sampleSQL = `
SELECT (confirmed_flush_lsn - '0/0'::pg_lsn)::bigint, active
FROM pg_replication_slots
WHERE slot_name = $1`

// sample looks at the slot and then at the topics. What the relay does in between can only make it look better.
func (w *witness) sample(ctx context.Context, conn *pgx.Conn, kafka *kgo.Client, since map[Place]int64) error {
	w.sampling.Lock()
	defer w.sampling.Unlock()
	s := Sample{At: time.Since(w.began), Epoch: w.server.Epoch(), Since: since}
	if w.plan.Polls {
		return w.sampleReader(ctx, conn, s.At)
	}
	var confirmed int64
	var active bool
	err := conn.QueryRow(ctx, sampleSQL, slot).Scan(&confirmed, &active)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil // not made yet
	}
	if err != nil {
		return err
	}
	s.Confirmed = LSN(confirmed)
	if s.Ends, err = ends(ctx, kafka); err != nil {
		return err
	}
	if w.server.Epoch() != s.Epoch {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if active {
		w.reader = s.At
	}
	w.samples = append(w.samples, s)
	return nil
}

// sampleReader looks whether the relay polls.
func (w *witness) sampleReader(ctx context.Context, conn *pgx.Conn, at time.Duration) error {
	var pid int
	err := conn.QueryRow(ctx, w.plan.readerSQL(), slot).Scan(&pid)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil {
		w.reader = at
	}
	return err
}

// ends returns where the topics end, those that are not there at 0.
func ends(ctx context.Context, kafka *kgo.Client) (map[Place]int64, error) {
	listed, err := kadm.NewClient(kafka).ListEndOffsets(ctx, allTopics()...)
	if err != nil {
		return nil, err
	}
	ends := map[Place]int64{}
	for topic, all := range listed {
		for partition, o := range all {
			if errors.Is(o.Err, kerr.UnknownTopicOrPartition) {
				continue
			}
			if o.Err != nil {
				return nil, o.Err
			}
			ends[Place{topic, partition}] = o.Offset
		}
	}
	return ends, nil
}

// consume receives until ctx ends.
func (w *witness) consume(ctx context.Context, kafka *kgo.Client) {
	for ctx.Err() == nil {
		fetches := kafka.PollFetches(ctx)
		w.mu.Lock()
		fetches.EachRecord(func(r *kgo.Record) {
			place := Place{r.Topic, r.Partition}
			w.next[place] = max(w.next[place], r.Offset+1)
			if r.Attrs.IsControl() {
				return
			}
			now, all := received(r, place), w.records[place]
			// A client that lost its broker may begin anew. What it reads twice must be the same.
			if n := len(all); n > 0 && r.Offset <= all[n-1].Offset {
				i, found := slices.BinarySearchFunc(all, r.Offset, func(r Record, offset int64) int { return cmp.Compare(r.Offset, offset) })
				if !found || all[i] != now {
					w.changed = append(w.changed, now)
				}
				return
			}
			w.records[place] = append(all, now)
		})
		w.mu.Unlock()
	}
}

// received is what the record says, in the ledger's terms.
func received(r *kgo.Record, place Place) Record {
	headers := map[string][]byte{}
	for _, h := range r.Headers {
		headers[h.Key] = h.Value
	}
	event, err := uuid.ParseBytes(headers["event_id"])
	if err != nil {
		event = uuid.Nil // nobody's
	}
	out := Record{Event: event, Place: place, Offset: r.Offset, Key: string(r.Key)}
	if r.Topic == deadTopic {
		out.Content = content(r.Value, headers["origin_topic"], headers["event_type"])
		return out
	}
	own, err := uuid.ParseBytes(headers[ownHeader])
	if err != nil {
		own = uuid.Nil
	}
	out.Content = content(r.Value, headers["event_type"], headers["aggregate_type"], headers["aggregate_version"], headers["content-type"], own[:])
	return out
}

// isRead reports whether the slot was seen to have a reader since a time.
func (w *witness) isRead(since time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.began.Add(w.reader).After(since)
}

// has reports whether everything up to the ends was received.
func (w *witness) has(ends map[Place]int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for place, end := range ends {
		if w.next[place] < end {
			return fmt.Errorf("%s/%d is read up to offset %d of %d", place.Topic, place.Partition, w.next[place], end)
		}
	}
	return nil
}

// history puts what was seen together with what was written.
func (w *witness) history(l *ledger) *History {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := &History{Samples: w.samples, Once: w.plan.Once}
	h.Rows, h.Strangers = l.finished(w.ends)
	for _, records := range w.records {
		h.Records = append(h.Records, records...)
	}
	h.Records = append(h.Records, w.changed...)
	return h
}
