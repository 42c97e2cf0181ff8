package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// control is an ordinary connection, for what the streaming one cannot be asked.
type control struct{ pg *pgconn.PgConn }

func openControl(ctx context.Context, databaseURL string) (*control, error) {
	cfg, err := pgconn.ParseConfig(databaseURL)
	if err != nil {
		return nil, fmt.Errorf("reading the database URL: %w", err)
	}
	cfg.ConnectTimeout = connectTimeout
	cfg.DialFunc = dialer.DialContext
	cfg.RuntimeParams["application_name"] = applicationName
	pg, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, certificateRefused(fmt.Errorf("connecting to the database: %w", err))
	}
	return &control{pg}, nil
}

// queryTimeout bounds each question; creating a slot waits for running transactions and is not one.
const queryTimeout = 10 * time.Second

// rows asks and returns the answer as text; NULL is "".
func (c *control) rows(ctx context.Context, sql string, args ...string) ([][]string, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	params := make([][]byte, len(args))
	for i, a := range args {
		params[i] = []byte(a)
	}
	result := c.pg.ExecParams(ctx, sql, params, nil, nil, nil).Read()
	if result.Err != nil {
		return nil, result.Err
	}
	rows := make([][]string, len(result.Rows))
	for i, values := range result.Rows {
		rows[i] = make([]string, len(values))
		for j, v := range values {
			rows[i][j] = string(v)
		}
	}
	return rows, nil
}

// do runs statements, waiting as long as it takes.
func (c *control) do(ctx context.Context, sql string) error {
	_, err := c.pg.Exec(ctx, sql).ReadAll()
	return err
}

func (c *control) close() { closeQuietly(c.pg) }

// yes is true as text.
const yes = "t"

// oldestVersion has binary 'true'.
const oldestVersion = 140000

// columnListVersion has column lists in publications.
const columnListVersion = 150000

// prepare is the checks that must pass before anything streams, each failing closed with its fix. It
// makes the publication and the slot where the policy allows: the publication first, because a slot
// cannot decode rows by a publication that did not exist when they were written. It returns the slot's
// state.
func (r *Relay) prepare(ctx context.Context, c *control) (slotState, error) {
	version, err := r.checkServer(ctx, c)
	if err != nil {
		return slotState{}, err
	}
	slot, err := c.slot(ctx, r.cfg.Slot)
	if err != nil {
		return slotState{}, err
	}
	// A missing slot is made by policy only before this relay has read from it: later, rows may have
	// gone with it, and that must not pass in silence.
	create := r.cfg.OnMissingSlot == CreateMissingSlot && !slot.exists && !r.hasStreamed
	if err := r.preparePublication(ctx, c, version, create); err != nil {
		return slotState{}, err
	}
	if err := c.checkColumns(ctx, &r.cfg, version); err != nil {
		return slotState{}, err
	}
	if create {
		if err := r.createSlot(ctx, c); err != nil {
			return slotState{}, err
		}
		if slot, err = c.slot(ctx, r.cfg.Slot); err != nil {
			return slotState{}, err
		}
	}
	return slot, slot.check(r.cfg.Slot, r.hasStreamed)
}

func (r *Relay) checkServer(ctx context.Context, c *control) (version int, err error) {
	s, err := c.server(ctx)
	if err != nil {
		return 0, err
	}
	for _, check := range []func() error{s.checkPrimary, s.checkVersion, s.checkWALLevel} {
		if err := check(); err != nil {
			return 0, err
		}
	}
	if err := s.checkKeepSize(); err != nil && !r.hasStreamed {
		r.log.Warn("nothing bounds the WAL that the slot retains", slog.Any(keyError, err))
	}
	return s.version, nil
}

// serverState is what the server says of itself.
type serverState struct {
	version  int // as server_version_num
	walLevel string
	standby  bool

	keepSize             string // max_slot_wal_keep_size as it is set
	senderTimeout        string
	slots, slotsLeft     int
	senders, sendersLeft int
	role                 string
	mayReplicate         bool
}

// managedRole is what Amazon RDS grants instead of the REPLICATION attribute.
const managedRole = "rds_replication"

const serverSQL = `
SELECT current_setting('server_version_num'),
       current_setting('wal_level'),
       pg_is_in_recovery(),
       current_setting('max_slot_wal_keep_size', true),
       current_setting('wal_sender_timeout'),
       current_user,
       (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user)
         OR EXISTS (SELECT FROM pg_roles WHERE rolname = $1 AND pg_has_role(current_user, oid, 'member')),
       current_setting('max_replication_slots'),
       current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots),
       current_setting('max_wal_senders'),
       current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_replication)`

func (c *control) server(ctx context.Context) (s serverState, err error) {
	rows, err := c.rows(ctx, serverSQL, managedRole)
	if err != nil {
		return s, fmt.Errorf("reading the server's settings: %w", err)
	}
	row := rows[0]
	s = serverState{walLevel: row[1], standby: row[2] == yes, keepSize: row[3], senderTimeout: row[4], role: row[5], mayReplicate: row[6] == yes}
	for i, into := range map[int]*int{0: &s.version, 7: &s.slots, 8: &s.slotsLeft, 9: &s.senders, 10: &s.sendersLeft} {
		if *into, err = strconv.Atoi(row[i]); err != nil {
			return s, fmt.Errorf("reading the server's settings: %w", err)
		}
	}
	return s, nil
}

// checkPrimary returns an error that passes: a standby may be promoted.
func (s serverState) checkPrimary() error {
	if s.standby {
		return errors.New("the server is a standby: waiting for it to be promoted or for the primary to answer")
	}
	return nil
}

func (s serverState) checkVersion() error {
	if s.version < oldestVersion {
		return &fatalError{fmt.Errorf("the server is PostgreSQL %d", s.version/10000), "use PostgreSQL 14 or later"}
	}
	return nil
}

func (s serverState) checkWALLevel() error {
	if s.walLevel != "logical" {
		return &fatalError{fmt.Errorf("wal_level is %s", s.walLevel),
			"ALTER SYSTEM SET wal_level = 'logical', then restart PostgreSQL"}
	}
	return nil
}

// checkKeepSize returns an advice: a relay that stays away must not fill the server's disk.
func (s serverState) checkKeepSize() error {
	if s.keepSize == "-1" {
		return &advice{errors.New("max_slot_wal_keep_size sets no limit: a relay that stays away fills the server's disk"),
			"ALTER SYSTEM SET max_slot_wal_keep_size = '8GB', or as much as the disk can spare, then SELECT pg_reload_conf()"}
	}
	return nil
}

// checkRole returns an advice, because the attempt to connect decides.
func (s serverState) checkRole() error {
	if !s.mayReplicate {
		return &advice{fmt.Errorf("role %s has no REPLICATION attribute", s.role),
			"ALTER ROLE " + quoteIdentifier(s.role) + " REPLICATION; on Amazon RDS: GRANT " + managedRole + " TO " + quoteIdentifier(s.role)}
	}
	return nil
}

func (s serverState) checkSlotsLeft(exists bool) error {
	if s.slotsLeft <= 0 && !exists {
		return &fatalError{fmt.Errorf("all %d replication slots are in use", s.slots), lasting[stateConfigLimitExceeded]}
	}
	return nil
}

// checkSendersLeft wants one for the relay, and advises one more for a relay that stands by.
func (s serverState) checkSendersLeft(reading bool) error {
	const fix = "raise max_wal_senders and restart PostgreSQL"
	switch {
	case reading && s.sendersLeft <= 0, !reading && s.sendersLeft == 1:
		return &advice{fmt.Errorf("%d of %d left: none for a relay that stands by", s.sendersLeft, s.senders), fix}
	case s.sendersLeft <= 0:
		return &fatalError{fmt.Errorf("all %d WAL senders are in use", s.senders), fix}
	}
	return nil
}

func (r *Relay) preparePublication(ctx context.Context, c *control, version int, create bool) error {
	name := r.cfg.Publication
	p, err := c.publication(ctx, name)
	if err != nil {
		return err
	}
	if !p.exists && create {
		if len(r.cfg.Tables) == 0 && r.cfg.Source != SourceMessage {
			return &fatalError{fmt.Errorf("publication %s does not exist", name), "name the outbox tables to create it for"}
		}
		err := c.do(ctx, r.cfg.publicationSQL(version))
		if err != nil && sqlState(err) != stateDuplicateObject && sqlState(err) != stateUniqueViolation {
			return fmt.Errorf("creating publication %s: %w", name, err)
		}
		r.log.Info("publication created", slog.String(keyPublication, name), slog.Any(keyTables, r.cfg.Tables))
		if p, err = c.publication(ctx, name); err != nil {
			return err
		}
	}
	for _, check := range []func() error{
		func() error { return p.checkExists(&r.cfg, version) },
		p.checkInserts,
		p.checkRoot,
		func() error { return p.checkTables(&r.cfg) },
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (r *Relay) createSlot(ctx context.Context, c *control) error {
	for _, table := range r.cfg.Tables {
		rows, err := c.rows(ctx, "SELECT EXISTS (SELECT FROM "+quoteTable(table)+")")
		if err != nil {
			return fmt.Errorf("looking for rows older than the slot in %s: %w", table, err)
		}
		if rows[0][0] == yes {
			r.log.Warn("rows older than the slot will not be published", slog.String(keyTable, table))
		}
	}
	err := c.do(ctx, "SELECT pg_create_logical_replication_slot("+quoteLiteral(r.cfg.Slot)+", 'pgoutput')")
	if err != nil && sqlState(err) != stateDuplicateObject {
		return fmt.Errorf("creating slot %s: %w", r.cfg.Slot, err)
	}
	r.log.Info("slot created", slog.String(keySlot, r.cfg.Slot))
	return nil
}

// slotState is one look at the slot.
type slotState struct {
	exists        bool
	logical       bool // a slot of pgoutput in this database
	active        bool
	pid           string
	application   string // of the reader, as it calls itself
	walStatus     string
	restart       string // positions, as text
	confirmed     string
	current       string
	retainedBytes float64
	behindBytes   float64
	safeBytes     float64 // -1: no limit
}

const slotSQL = `
SELECT coalesce(s.plugin = 'pgoutput' AND s.database = current_database() AND NOT s.temporary, false),
       s.active,
       s.active_pid,
       a.application_name,
       s.wal_status,
       s.restart_lsn,
       s.confirmed_flush_lsn,
       pg_current_wal_lsn(),
       coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn), 0),
       coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), s.confirmed_flush_lsn), 0),
       coalesce(s.safe_wal_size, -1)
FROM pg_replication_slots s
LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
WHERE s.slot_name = $1`

func (c *control) slot(ctx context.Context, name string) (s slotState, err error) {
	rows, err := c.rows(ctx, slotSQL, name)
	if err != nil {
		return s, fmt.Errorf("looking up slot %s: %w", name, err)
	}
	if len(rows) == 0 {
		return s, nil
	}
	row := rows[0]
	s = slotState{exists: true, logical: row[0] == yes, active: row[1] == yes, pid: row[2], application: row[3],
		walStatus: row[4], restart: row[5], confirmed: row[6], current: row[7]}
	for i, into := range []*float64{&s.retainedBytes, &s.behindBytes, &s.safeBytes} {
		if *into, err = strconv.ParseFloat(row[8+i], 64); err != nil {
			return s, fmt.Errorf("looking up slot %s: %w", name, err)
		}
	}
	return s, nil
}

// check says why the slot cannot be read, nil if it can.
func (s slotState) check(name string, hasStreamed bool) error {
	drop := "SELECT pg_drop_replication_slot(" + quoteLiteral(name) + "), make the slot anew, and send the rows it missed again"
	switch {
	case !s.exists && hasStreamed:
		return &fatalError{fmt.Errorf("slot %s is gone", name), "rows committed since it disappeared are in no slot: make it anew and send those rows again"}
	case !s.exists:
		return &fatalError{fmt.Errorf("slot %s does not exist", name),
			"start once with --on-missing-slot create, or SELECT pg_create_logical_replication_slot(" +
				quoteLiteral(name) + ", 'pgoutput'); rows committed before that are not published"}
	case !s.logical:
		return &fatalError{fmt.Errorf("slot %s belongs to another plugin or database", name), "choose another slot name"}
	case s.walStatus == "lost":
		return &fatalError{fmt.Errorf("slot %s was invalidated: the WAL it needs is gone", name), drop}
	}
	return nil
}

// checkRoom returns an advice while the server is about to take WAL away that the slot needs.
func (s slotState) checkRoom() error {
	if s.walStatus == "unreserved" {
		return &advice{fmt.Errorf("unreserved: the slot retains %s, more than max_slot_wal_keep_size, and is invalidated at the next checkpoint", bytesText(s.retainedBytes)),
			"raise max_slot_wal_keep_size now (SELECT pg_reload_conf() is enough), then let the relay catch up"}
	}
	return nil
}

// reader names who reads the slot.
func (s slotState) reader() string {
	if s.application == "" {
		return "someone"
	}
	return s.application
}

// observe publishes what was seen.
func (m *metrics) observe(s slotState) {
	m.retained.Set(s.retainedBytes)
	m.unconfirmed.Set(s.behindBytes)
	m.safe.Set(s.safeBytes)
	m.active.Set(boolean(s.active))
	for _, status := range walStatuses {
		m.walStatus.WithLabelValues(status).Set(boolean(status == s.walStatus))
	}
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
