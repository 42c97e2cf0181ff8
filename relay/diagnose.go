package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"converge/relay/pgoutput"
)

// Level says how bad a [Finding] is.
type Level string

const (
	// OK is as it should be.
	OK Level = "ok"
	// Warn does not keep the relay from streaming today.
	Warn Level = "warn"
	// Fail keeps the relay from streaming.
	Fail Level = "fail"
)

// Finding is what one check of [Diagnose] found.
type Finding struct {
	Check string `json:"check"`
	Level Level  `json:"level"`
	Found string `json:"found"`         // what is, for people
	Fix   string `json:"fix,omitempty"` // what to do about it, in the imperative
}

// advice is what a check says of something that works today.
type advice struct {
	err error
	fix string
}

func (a *advice) Error() string { return fmt.Sprintf("%v: %s", a.err, a.fix) }
func (a *advice) Unwrap() error { return a.err }

// Diagnose runs the checks that [Relay.Run] makes before it streams, and those of what it will meet then, each
// on its own: a check that fails keeps none from running but those that need what it missed. It changes
// nothing, neither in the database nor in Kafka, and may run beside the relay.
//
// It blocks for some seconds for each side that does not answer. The error is a wrong configuration, or ctx's.
func Diagnose(ctx context.Context, cfg Config) ([]Finding, error) {
	cfg.Registerer = nil
	r, err := New(cfg)
	if err != nil {
		return nil, err
	}
	x := &examination{relay: r}
	x.database(ctx)
	if dir := r.cfg.SpillDir; dir != "" {
		x.note("spill directory", lookAtSpillDir(dir), "%s can be written, or made", dir)
	}
	x.kafka(ctx)
	return x.findings, ctx.Err()
}

// examination collects findings.
type examination struct {
	relay    *Relay
	findings []Finding
	topics   map[string]int // that the rows name → bytes of the largest payload seen for it
	server   identity       // the zero identity if it could not be asked
	position pgoutput.LSN   // of the slot, 0 if there is none
}

// note adds a finding by what a check returned: nil is found as it should be.
func (x *examination) note(check string, err error, format string, args ...any) bool {
	f := Finding{Check: check, Level: Fail}
	var hint *advice
	var fatal *fatalError
	var refused *misconfiguredError
	switch {
	case err == nil:
		f.Level, f.Found = OK, fmt.Sprintf(format, args...)
	case errors.As(err, &hint):
		f.Level, f.Found, f.Fix = Warn, hint.err.Error(), hint.fix
	case errors.As(err, &fatal):
		f.Found, f.Fix = fatal.err.Error(), fatal.fix
	case errors.As(err, &refused):
		f.Found, f.Fix = refused.err.Error(), refused.fix
	default:
		f.Found = err.Error()
		if fatal, ok := asFatal(err, false); ok {
			f.Fix = fatal.fix
		}
	}
	f.Found = oneLine(f.Found)
	x.findings = append(x.findings, f)
	return f.Level != Fail
}

// oneLine joins the lines of a driver's error, which says the same of each attempt.
func oneLine(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, " ")
}

// unreached gives an error of a side that does not answer a fix of last resort.
func unreached(err error, fix string) error {
	var refused *misconfiguredError
	if _, ok := asFatal(err, false); ok || errors.As(err, &refused) {
		return err
	}
	return &fatalError{err, fix}
}

func (x *examination) database(ctx context.Context) {
	cfg := &x.relay.cfg
	c, err := openControl(ctx, cfg.DatabaseURL)
	if err != nil {
		x.note("database", unreached(err, "start PostgreSQL, or correct the database URL: host, port, database, sslmode"), "")
		return
	}
	defer c.close()
	who, err := c.identity(ctx)
	if !x.note("database", err, "%s", who) {
		return
	}
	s, err := c.server(ctx)
	if err != nil {
		x.note("server version", err, "")
		return
	}
	x.note("server version", s.checkVersion(), "PostgreSQL %d.%d", s.version/10000, s.version%10000)
	if !x.note("primary", s.checkPrimary(), "the server is no standby") {
		return // it has no current WAL position
	}
	if cfg.Source == SourcePolling {
		x.polling(ctx, c)
		return
	}
	x.note("wal_level", s.checkWALLevel(), "logical")
	x.note("role", s.checkRole(), "%s may replicate", s.role)
	x.server, err = checkReplication(ctx, cfg.DatabaseURL)
	x.note("replication connection", err, "pg_hba.conf admits it; system %s", x.server.System)
	x.publication(ctx, c, s.version)
	x.slot(ctx, c, s)
	x.note("wal_sender_timeout", nil, "%s for the relay's own connection (the server's is %s)", walSenderTimeout, s.senderTimeout)
}

func (x *examination) publication(ctx context.Context, c *control, version int) {
	cfg := &x.relay.cfg
	p, err := c.publication(ctx, cfg.Publication)
	if err == nil && !p.exists && cfg.OnMissingSlot != FailOnMissingSlot && (len(cfg.Tables) > 0 || cfg.Source == SourceMessage) {
		x.note("publication", nil, "%s does not exist and will be created", p.name)
		x.sample(ctx, c, cfg.Tables)
		return
	}
	if err == nil {
		err = p.checkExists(cfg, version)
	}
	if !x.note("publication", err, "%s exists", p.name) {
		x.sample(ctx, c, cfg.Tables)
		return
	}
	x.note("inserts only", p.checkInserts(), "inserts are all that is published, so no table needs a REPLICA IDENTITY")
	if x.note("partitions", p.checkRoot(), "published under their table's name") { // else partitions are all that is listed
		x.note("tables", p.checkTables(cfg), "%s", cmp.Or(strings.Join(p.tables, ", "), "none, as it should be for messages"))
	}
	x.note("columns", c.checkColumns(ctx, cfg, version), "each table has those that the relay reads")
	x.sample(ctx, c, p.tables)
}

func (x *examination) slot(ctx context.Context, c *control, s serverState) {
	cfg := &x.relay.cfg
	slot, err := c.slot(ctx, cfg.Slot)
	switch {
	case err != nil:
		x.note("slot", err, "")
		return
	case !slot.exists && cfg.OnMissingSlot != FailOnMissingSlot:
		x.note("slot", nil, "%s does not exist and will be created", cfg.Slot)
	case slot.active:
		x.note("slot", slot.check(cfg.Slot, false), "%s is read by %s (server process %s)", cfg.Slot, slot.reader(), slot.pid)
	default:
		x.note("slot", slot.check(cfg.Slot, false), "%s exists, nobody reads it", cfg.Slot)
	}
	x.position, _ = pgoutput.ParseLSN(slot.confirmed) // "" without a slot
	if slot.exists && slot.walStatus != "lost" {
		x.note("wal_status", slot.checkRoom(), "%s, %s of WAL retained", slot.walStatus, bytesText(slot.retainedBytes))
	}
	x.note("max_slot_wal_keep_size", s.checkKeepSize(), "%s", s.keepSize)
	x.note("max_replication_slots", s.checkSlotsLeft(slot.exists), "%d of %d left", s.slotsLeft, s.slots)
	x.note("max_wal_senders", s.checkSendersLeft(slot.active), "%d of %d left", s.sendersLeft, s.senders)
}

const identitySQL = `
SELECT current_user,
       current_database(),
       s.ssl,
       coalesce(s.version, '')
FROM pg_stat_ssl s
WHERE s.pid = pg_backend_pid()`

// identity says who is connected to what, and how.
func (c *control) identity(ctx context.Context) (string, error) {
	rows, err := c.rows(ctx, identitySQL)
	if err != nil {
		return "", fmt.Errorf("asking who we are: %w", err)
	}
	security := "no TLS"
	if len(rows) > 0 && rows[0][2] == yes {
		security = rows[0][3]
	}
	if len(rows) == 0 { // a Unix socket or a server built without TLS
		return "connected", nil
	}
	return fmt.Sprintf("%s at %s as %s, %s", rows[0][1], c.pg.Conn().RemoteAddr(), rows[0][0], security), nil
}

// checkReplication opens a connection as the stream's, and returns which system answered.
func checkReplication(ctx context.Context, databaseURL string) (server identity, err error) {
	cfg, err := replicationConfig(databaseURL)
	if err != nil {
		return server, err
	}
	pg, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return server, certificateRefused(fmt.Errorf("connecting for replication: %w", err))
	}
	defer closeQuietly(pg)
	return identify(ctx, pg)
}

const columnsSQL = `
SELECT t.schemaname,
       t.tablename,
       a.attname,
       a.atttypid
FROM pg_publication_tables t
JOIN pg_namespace n ON n.nspname = t.schemaname
JOIN pg_class k ON k.relnamespace = n.oid AND k.relname = t.tablename
JOIN pg_attribute a ON a.attrelid = k.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE t.pubname = $1`

// checkColumns reads what the stream will say of the tables from the catalogue, and checks it in the same way.
func (c *control) checkColumns(ctx context.Context, cfg *Config, version int) error {
	publication := cfg.Publication
	shape, err := c.shape(ctx, cfg)
	if err != nil {
		return err
	}
	sql := columnsSQL
	if version >= columnListVersion {
		sql += " AND a.attname = ANY (t.attnames)"
	}
	rows, err := c.rows(ctx, sql+" ORDER BY 1, 2, a.attnum", publication)
	if err != nil {
		return fmt.Errorf("listing the columns of publication %s: %w", publication, err)
	}
	var relations []pgoutput.Relation
	for _, row := range rows {
		if n := len(relations); n == 0 || relations[n-1].Namespace != row[0] || relations[n-1].Name != row[1] {
			relations = append(relations, pgoutput.Relation{Namespace: row[0], Name: row[1]})
		}
		oid, err := strconv.ParseUint(row[3], 10, 32)
		if err != nil {
			return fmt.Errorf("listing the columns of publication %s: %w", publication, err)
		}
		last := &relations[len(relations)-1]
		last.Columns = append(last.Columns, pgoutput.Column{Name: row[2], TypeOID: uint32(oid)})
	}
	for _, relation := range relations {
		if _, err := shape.layoutOf(relation); err != nil {
			return err
		}
	}
	return nil
}

// sampleRows is how many rows of a table are looked at for the topics that they name.
const sampleRows = 10000

// sample notes the topics that rows of the tables name. A table that may not be read, or names topics in
// another way, says nothing.
func (x *examination) sample(ctx context.Context, c *control, tables []string) {
	x.topics = make(map[string]int)
	for _, table := range tables {
		rows, err := c.rows(ctx, x.relay.cfg.shape.sampleSQL(table))
		if err != nil {
			continue
		}
		for _, row := range rows {
			size, _ := strconv.Atoi(row[1]) // NULL: no payload
			x.topics[row[0]] = max(x.topics[row[0]], size)
		}
	}
}

// bytesText is a size for people.
func bytesText(n float64) string {
	for _, unit := range []string{"bytes", "KiB", "MiB"} {
		if n < 1024 && unit == "bytes" {
			return fmt.Sprintf("%.0f bytes", n)
		}
		if n < 1024 {
			return fmt.Sprintf("%.1f %s", n, unit)
		}
		n /= 1024
	}
	return fmt.Sprintf("%.1f GiB", n)
}
