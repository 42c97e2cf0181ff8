package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"converge/relay/pgoutput"
)

// polling is a session of [SourcePolling]. It reads the rows that are not marked, page by page in the order of
// seq, and marks a page's rows when their records are acknowledged:
//
//	rows WHERE published_at IS NULL ──▶ records ──▶ acknowledged ──▶ published_at = now()
//	                                                     │
//	                                    crash: not marked, sent again
//
// There is no cursor, so there is no gap: a row that is committed late, behind others with larger numbers, is
// one that is not marked. Rows of one aggregate are numbered in the order of their commits, because their
// transactions wait for one another.
//
// Reading and marking share a connection, which holds the lock that lets one relay poll at a time: who loses the
// lock can mark nothing.
//
// In the tracker each row is a transaction, whose position is the row's place in this session: the watermark
// says how many rows of the page may be marked.
type polling struct {
	*publisher

	control *control
	memory  *arenas
	tables  []string

	place pgoutput.LSN // of the row that was read last
	sent  marks        // of the page

	// asking is since when the server owes an answer, in Unix nanoseconds; 0 while it owes none.
	asking atomic.Int64
	// oldest is when the first row of the page was created, in microseconds of PostgreSQL's; 0 between pages.
	oldest atomic.Int64
}

// marks are rows to be marked, in the order in which they were sent.
type marks struct {
	seqs []int64
	ids  []eventID
}

// pageRows bounds what is sent before it is marked: what a crash repeats, and what one UPDATE changes.
const pageRows = 5000

// runPolling polls until ctx ends and all is marked (nil or ErrDrainTimedOut), or an error.
func (r *Relay) runPolling(ctx context.Context) error {
	s := &polling{publisher: newPublisher(ctx, r)}
	s.polled = true
	defer s.end(nil)
	if err := s.open(ctx); err != nil {
		s.close()
		return err
	}
	r.streaming()
	defer r.metrics.leader.Set(0)
	r.metrics.leader.Set(1)

	reading, stopReading := context.WithCancelCause(s.life)
	defer stopReading(nil)
	var parts sync.WaitGroup
	parts.Go(func() {
		if err := s.watch(); err != nil {
			s.end(err)
		}
	})
	parts.Go(func() {
		<-s.life.Done()
		s.close()
	})
	parts.Go(func() { // a page under way is finished, if Kafka lets it
		select {
		case <-ctx.Done():
		case <-s.life.Done():
			return
		}
		select {
		case <-time.After(r.cfg.DrainTimeout):
			stopReading(ErrDrainTimedOut)
		case <-s.life.Done():
		}
	})
	err := s.poll(reading, ctx.Done())
	if cause := context.Cause(reading); errors.Is(cause, ErrDrainTimedOut) {
		err = cause
	}
	s.end(err)
	parts.Wait()
	if cause := context.Cause(s.life); cause != context.Canceled { //nolint:errorlint // exactly what end(nil) leaves
		return cause
	}
	return nil
}

// open connects to both sides, takes the lock and checks what has to be checked. What it opened stays open on
// an error.
func (s *polling) open(ctx context.Context) (err error) {
	cfg := &s.relay.cfg
	if s.kafka, err = newKafka(cfg, s.metrics); err != nil {
		return &fatalError{err, "correct the Kafka options"}
	}
	if err = s.kafka.ping(ctx); err != nil {
		return err
	}
	if s.control, err = openControl(ctx, cfg.DatabaseURL); err != nil {
		return err
	}
	if err = s.control.do(ctx, pollingSettingsSQL); err != nil {
		return fmt.Errorf("preparing the connection: %w", err)
	}
	if s.tables, err = s.relay.preparePolling(ctx, s.control); err != nil {
		return err
	}
	if err = s.control.lockPolling(ctx, cfg.Slot); err != nil {
		return err
	}
	if s.shape, err = s.control.shape(ctx, cfg); err != nil {
		return err
	}
	s.memory = newArenas(cfg.BufferBytes)
	return nil
}

func (s *polling) close() {
	if s.control != nil {
		// Another goroutine may be asking something. The server notices by itself that nobody is there.
		s.control.pg.Conn().Close() //nolint:errcheck // it is given up
	}
	if s.kafka != nil {
		s.kafka.client.Close()
	}
}

// poll publishes what there is until stopped is closed or something fails.
func (s *polling) poll(ctx context.Context, stopped <-chan struct{}) error {
	for {
		more := false
		for _, table := range s.tables {
			select {
			case <-stopped:
				return nil
			default:
			}
			full, err := s.page(ctx, table)
			if err != nil {
				return err
			}
			more = more || full
		}
		if more {
			continue
		}
		select {
		case <-time.After(s.relay.cfg.PollInterval):
		case <-stopped:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// page publishes and marks the next rows of a table, and reports whether there were as many as go into a page.
// When a row is refused, those in front of it are marked.
func (s *polling) page(ctx context.Context, table string) (full bool, err error) {
	s.sent.seqs, s.sent.ids = s.sent.seqs[:0], s.sent.ids[:0]
	first := s.place
	defer s.oldest.Store(0)
	err = s.read(ctx, table)
	read := len(s.sent.seqs)
	if read == 0 {
		return false, err
	}
	s.push()
	var refused *refusal
	if err == nil || errors.As(err, &refused) {
		if flushed := s.await(ctx); err == nil {
			err = flushed
		}
	}
	if ended := context.Cause(s.life); ended != nil && !errors.As(err, &refused) {
		err = ended
	}
	if err != nil && !errors.As(err, &refused) {
		return false, err
	}
	acknowledged := min(read, int(s.tracker.watermark()-first)) // a row that was refused before it was sent waits for nothing
	s.sent.seqs, s.sent.ids = s.sent.seqs[:acknowledged], s.sent.ids[:acknowledged]
	if marking := s.mark(ctx, table); err == nil {
		err = marking
	}
	if err == nil {
		s.relay.passed(s.place)
	}
	return read == pageRows, err
}

// read publishes the next page of a table and notes its rows.
func (s *polling) read(ctx context.Context, table string) error {
	sql := "SELECT " + s.shape.columnList() + ", seq\nFROM " + quoteTable(table) + "\nWHERE published_at IS NULL\nORDER BY seq\nLIMIT " + strconv.Itoa(pageRows)
	s.ask()
	result := s.control.pg.ExecParams(ctx, sql, nil, nil, nil, []int16{pgFormatBinary})
	err := s.publishPage(ctx, result, table)
	if err != nil {
		// What is not read yet is given up with the connection, unless there is a row to be refused: then
		// the rest of a page is not much.
		var refused *refusal
		if !errors.As(err, &refused) {
			return err
		}
	}
	_, closed := result.Close()
	s.answered()
	if err == nil && closed != nil {
		err = s.noOutbox(fmt.Errorf("reading %s: %w", table, closed))
	}
	return err
}

func (s *polling) publishPage(ctx context.Context, result *pgconn.ResultReader, table string) error {
	var l *layout
	var tuple pgoutput.Tuple
	place := shelf{memory: s.memory}
	defer place.leave()
	for result.NextRow() {
		s.answered()
		if l == nil {
			var err error
			if l, err = s.shape.layoutOf(relationOf(table, result.FieldDescriptions())); err != nil {
				return err
			}
		}
		in, err := place.put(ctx, result.Values(), &tuple, s.push)
		if err != nil {
			return err
		}
		if err := l.values(tuple); err != nil {
			return err
		}
		created := int64Of(tuple[l.index[fieldCreatedAt]])
		if len(s.sent.seqs) == 0 {
			s.oldest.Store(created)
		}
		s.place++
		x := s.tracker.begin(s.place, pgoutput.Time(created))
		err = s.publish(ctx, l, tuple, x, in)
		s.tracker.commit(s.place)
		if x.sent == 0 {
			s.place-- // nothing was sent, the page ends in front of the row
			return err
		}
		s.sent.seqs = append(s.sent.seqs, int64Of(tuple[len(tuple)-1]))
		s.sent.ids = append(s.sent.ids, l.identity(tuple))
		if err != nil {
			return err
		}
		s.ask()
	}
	return nil
}

// markSQL marks rows by their numbers, between the first and the last, so that an index on seq finds them. The
// ids tell a row from one that took its number.
const markSQL = `
UPDATE %s AS row
SET published_at = now()
FROM unnest($1::bigint[], $2::uuid[]) AS sent (seq, event_id)
WHERE row.seq = sent.seq
  AND row.event_id = sent.event_id
  AND row.published_at IS NULL
  AND row.seq BETWEEN $3::bigint AND $4::bigint`

// mark notes in the table that the rows in sent are on their topics.
func (s *polling) mark(ctx context.Context, table string) error {
	n := len(s.sent.seqs)
	if n == 0 {
		return nil
	}
	crash(crashMark)
	var seqs, ids []byte
	for i, seq := range s.sent.seqs {
		seqs, ids = append(seqs, ','), append(ids, ',')
		seqs = strconv.AppendInt(seqs, seq, 10)
		ids = appendUUID(ids, s.sent.ids[i][:])
	}
	seqs[0], ids[0] = '{', '{'
	first, last := strconv.AppendInt(nil, s.sent.seqs[0], 10), strconv.AppendInt(nil, s.sent.seqs[n-1], 10)
	s.ask()
	result := s.control.pg.ExecParams(ctx, fmt.Sprintf(markSQL, quoteTable(table)),
		[][]byte{append(seqs, '}'), append(ids, '}'), first, last}, nil, nil, nil).Read()
	s.answered()
	if result.Err != nil {
		return fmt.Errorf("marking the rows of %s as published: %w", table, result.Err)
	}
	crash(crashMarked)
	if marked := result.CommandTag.RowsAffected(); marked != int64(n) {
		s.log.Warn("rows that were sent are not in their table any more, or marked by someone else", slog.String(keyTable, table),
			slog.Int(keyRows, n-int(marked)))
	}
	return nil
}

func (s *polling) ask()      { s.asking.Store(time.Now().UnixNano()) }
func (s *polling) answered() { s.asking.Store(0) }

// watch notes once a second that the session lives, and ends it when the server has not answered for long.
func (s *polling) watch() error {
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	progress := stall{since: time.Now()}
	for {
		var now time.Time
		select {
		case now = <-tick.C:
		case <-s.life.Done():
			return nil
		}
		if since := s.asking.Load(); since != 0 {
			if silence := now.Sub(time.Unix(0, since)); silence > giveUpAfter {
				return fmt.Errorf("polling: the server has been silent for %s: %w", silence.Round(time.Second), io.ErrNoProgress)
			}
		}
		s.alive(now, &progress)
		if created := s.oldest.Load(); created != 0 {
			s.metrics.lag.Set(max(0, now.Sub(pgoutput.Time(created)).Seconds()))
		}
	}
}

// passed forgets the suspects once a place behind them is reached: places begin anew with each session.
func (r *Relay) passed(place pgoutput.LSN) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if place >= r.suspects.until {
		r.suspects = suspects{}
	}
}
