package relay

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"converge/relay/pgoutput"
)

// headerReplay marks a record that was made of a row in its table, not of the WAL. Its value says why.
const headerReplay = "replay"

// defaultMark is what the header says when nobody gave a reason.
const defaultMark = "true"

// Range says which rows of the outbox tables to send. The zero Range is all of them.
type Range struct {
	// From and To bound created_at, which is when the row's transaction began: From belongs to the range,
	// To does not. The zero time is no bound. A row may have committed much later than it was created.
	From, To time.Time
	// FromSeq and ToSeq bound the column seq in the same way; 0 is no bound.
	FromSeq, ToSeq int64
	// Topics keeps the rows for these topics; empty means every topic.
	Topics []string
	// Keys keeps the rows of these aggregate ids; empty means every one.
	Keys []string
	// Mark is the value of the records' replay header. Default "true".
	Mark string
}

// Replay sends the rows of [Config].Tables that lie in the range, table by table in the order of seq, and
// returns how many records are acknowledged by all in-sync replicas. It reads the tables alone: neither
// slot nor publication need exist, but for the publication when Tables is empty, and nothing is confirmed.
// It blocks until all is acknowledged, ctx ends or something fails; whatever it returns, n records were sent.
// Called again it sends everything again. A relay may stream the same tables meanwhile: a replayed record
// comes after the records that were on its topic before, whatever its age, which is what the header tells.
//
// The records are those that the relay makes, with a header replay more, and committed_at is created_at:
// the table does not know when a row committed. A row that cannot be a record goes to the dead-letter
// topic. A row that a broker refuses ends Replay with an error that names it.
func Replay(ctx context.Context, cfg Config, which Range) (n int64, err error) {
	cfg.ExactlyOnce = false // that is a matter of the stream's
	r, err := New(cfg)
	if err != nil {
		return 0, err
	}
	if r.cfg.Source == SourceMessage {
		return 0, errNoRows
	}
	if r.cfg.Preset != PresetConverge {
		return 0, &fatalError{fmt.Errorf("tables of preset %s have no order of insertion", r.cfg.Preset), "replay from tables of preset converge alone"}
	}
	c, err := openControl(ctx, r.cfg.DatabaseURL)
	if err != nil {
		return 0, err
	}
	defer c.close()
	tables := r.cfg.Tables
	if len(tables) == 0 {
		p, err := c.publication(ctx, r.cfg.Publication)
		if err != nil {
			return 0, err
		}
		tables = p.tables
	}
	p := newPublisher(ctx, r)
	defer p.end(nil)
	if p.kafka, err = newKafka(&r.cfg, r.metrics); err != nil {
		return 0, err
	}
	defer p.kafka.client.Close()
	if err := p.kafka.ping(ctx); err != nil {
		return 0, err
	}
	err = p.publishTables(ctx, c, newArenas(r.cfg.BufferBytes), tables, which)
	return p.acknowledged.Load(), err
}

// publishTables publishes the rows in the range that c sees, and returns when all are acknowledged. It
// belongs to the goroutine that publishes.
func (p *publisher) publishTables(ctx context.Context, c *control, memory *arenas, tables []string, which Range) error {
	if p.mark = []byte(which.Mark); len(p.mark) == 0 {
		p.mark = []byte(defaultMark)
	}
	defer func() { p.mark = nil }()
	// A refused record ends the reading too.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(p.life, func() { cancel(context.Cause(p.life)) })()
	for _, table := range tables {
		if err := p.publishTable(ctx, c, memory, table, which); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return fmt.Errorf("sending the rows of %s: %w", table, err)
		}
		p.log.Info("the rows of a table are sent", slog.String(keyTable, table))
	}
	return nil
}

func (p *publisher) publishTable(ctx context.Context, c *control, memory *arenas, table string, which Range) error {
	sql, args := tableSQL(p.shape.columnList(), table, which)
	binary := []int16{pgFormatBinary}
	result := c.pg.ExecParams(ctx, sql, args, nil, nil, binary)
	err := p.publishRows(ctx, result, memory, table)
	if _, closed := result.Close(); err == nil {
		err = closed
	}
	return p.noOutbox(err)
}

// noOutbox returns err with its fix if a table cannot be read for what it is.
func (p *publisher) noOutbox(err error) error {
	if sqlState(err) == stateUndefinedColumn || sqlState(err) == stateUndefinedTable {
		return &fatalError{err, "name outbox tables, which have the columns " + p.shape.columnList() + " and seq, the order of insertion"}
	}
	return err
}

func (p *publisher) publishRows(ctx context.Context, result *pgconn.ResultReader, memory *arenas, table string) error {
	var l *layout
	var tuple pgoutput.Tuple
	var x *transaction
	var created int64
	place := shelf{memory: memory}
	defer place.leave()
	for result.NextRow() {
		if l == nil {
			var err error
			if l, err = p.shape.layoutOf(relationOf(table, result.FieldDescriptions())); err != nil {
				return err
			}
		}
		in, err := place.put(ctx, result.Values(), &tuple, p.push)
		if err != nil {
			return err
		}
		if err := l.values(tuple); err != nil {
			return err
		}
		// Rows of one moment share a transaction: the tracker only counts them, it confirms nothing.
		if at := int64Of(tuple[l.index[fieldCreatedAt]]); x == nil || at != created {
			if x != nil {
				p.tracker.commit(0)
			}
			x, created = p.tracker.begin(0, pgoutput.Time(at)), at
		}
		if err := p.publish(ctx, l, tuple, x, in); err != nil {
			return err
		}
	}
	if x != nil {
		p.tracker.commit(0)
	}
	if err := p.await(ctx); err != nil {
		return err
	}
	if p.life.Err() != nil {
		return context.Cause(p.life)
	}
	return nil
}

// pgFormatBinary asks for results as the WAL has them.
const pgFormatBinary = 1

// relationOf describes a result the way the plugin describes a table.
func relationOf(table string, columns []pgconn.FieldDescription) pgoutput.Relation {
	schema, name, _ := strings.Cut(table, ".")
	relation := pgoutput.Relation{Namespace: schema, Name: name}
	for _, c := range columns {
		relation.Columns = append(relation.Columns, pgoutput.Column{Name: c.Name, TypeOID: c.DataTypeOID})
	}
	return relation
}

// tableSQL asks for the rows of a table in the range. Rows of one aggregate are numbered in the order of
// their commits, because their transactions wait for one another.
func tableSQL(columns, table string, which Range) (sql string, args [][]byte) {
	condition, args := which.condition()
	return "SELECT " + columns + "\nFROM " + quoteTable(table) + condition + "\nORDER BY seq", args
}

// condition is the range as SQL behind a table's name, "" for all rows.
func (which Range) condition() (sql string, args [][]byte) {
	var where []string
	condition := func(format, value string) {
		args = append(args, []byte(value))
		where = append(where, strings.ReplaceAll(format, "?", "$"+strconv.Itoa(len(args))))
	}
	if !which.From.IsZero() {
		condition("created_at >= ?::timestamptz", which.From.UTC().Format(time.RFC3339Nano))
	}
	if !which.To.IsZero() {
		condition("created_at < ?::timestamptz", which.To.UTC().Format(time.RFC3339Nano))
	}
	if which.FromSeq != 0 {
		condition("seq >= ?::bigint", strconv.FormatInt(which.FromSeq, 10))
	}
	if which.ToSeq != 0 {
		condition("seq < ?::bigint", strconv.FormatInt(which.ToSeq, 10))
	}
	if len(which.Topics) > 0 {
		condition("topic = ANY (?::text[])", arrayLiteral(which.Topics))
	}
	if len(which.Keys) > 0 {
		condition("aggregate_id = ANY (?::text[])", arrayLiteral(which.Keys))
	}
	if len(where) > 0 {
		sql = "\nWHERE " + strings.Join(where, "\n  AND ")
	}
	return sql, args
}

// arrayLiteral writes strings as PostgreSQL reads a text[].
func arrayLiteral(values []string) string {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v) + `"`
	}
	return "{" + strings.Join(quoted, ",") + "}"
}

// shelf puts rows that come from anywhere into arenas, one behind the other.
type shelf struct {
	memory *arenas
	cur    *arena
	used   int
}

// put copies a row's values to where its record may point, and tuple at them. It blocks for memory as
// [arenas.get] does.
func (s *shelf) put(ctx context.Context, values [][]byte, tuple *pgoutput.Tuple, waiting func()) (*arena, error) {
	size := 0
	for _, v := range values {
		size += len(v)
	}
	if s.cur == nil || s.used+size > len(s.cur.buf) {
		s.leave()
		var err error
		if s.cur, err = s.memory.get(ctx, size, waiting); err != nil {
			return nil, err
		}
		s.used = 0
	}
	*tuple = (*tuple)[:0]
	for _, v := range values {
		if v == nil {
			*tuple = append(*tuple, pgoutput.Value{Format: pgoutput.FormatNull})
			continue
		}
		at := s.cur.buf[s.used : s.used+len(v) : s.used+len(v)]
		s.used += copy(at, v)
		*tuple = append(*tuple, pgoutput.Value{Data: at, Format: pgoutput.FormatBinary})
	}
	return s.cur, nil
}

// leave says that no more rows come.
func (s *shelf) leave() {
	if s.cur != nil {
		s.cur.leave()
		s.cur = nil
	}
}
