package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5/pgconn"
)

// markBackfill is the replay header of rows that are older than the slot.
const markBackfill = "backfill"

// errBackfill is why a relay that sends the rows older than its slot is not ready.
var errBackfill = errors.New("sending the rows that are older than the slot")

// makeBackfilledSlot makes the publication and the slot if the policy is to backfill and there is no slot,
// and keeps the snapshot that shows exactly the rows older than it. The checkpoint says first that they are
// pending, so that a slot without them never looks finished.
func (s *session) makeBackfilledSlot(ctx context.Context) error {
	r := s.relay
	if r.cfg.OnMissingSlot != BackfillMissingSlot || r.hasStreamed {
		return nil
	}
	version, err := r.checkServer(ctx, s.control)
	if err != nil {
		return err
	}
	slot, err := s.control.slot(ctx, r.cfg.Slot)
	if err != nil || slot.exists {
		return err
	}
	if err := r.preparePublication(ctx, s.control, version, true); err != nil {
		return err
	}
	if err := s.checkpoints.mark(ctx); err != nil {
		return err
	}
	crash(crashBackfillMarked)
	return s.exportSlot(ctx)
}

// exportSlot makes the slot and takes its snapshot over.
func (s *session) exportSlot(ctx context.Context) error {
	name := s.relay.cfg.Slot
	cfg, err := replicationConfig(s.relay.cfg.DatabaseURL)
	if err != nil {
		return err
	}
	pg, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return fmt.Errorf("connecting for replication: %w", err)
	}
	defer closeQuietly(pg)
	results, err := pg.Exec(ctx, "CREATE_REPLICATION_SLOT "+quoteIdentifier(name)+" LOGICAL pgoutput EXPORT_SNAPSHOT").ReadAll()
	if err != nil {
		return fmt.Errorf("creating slot %s: %w", name, err)
	}
	s.log.Info("slot created", slog.String(keySlot, name))
	// The snapshot lives until the connection that exported it is asked something else.
	return s.openSnapshot(ctx, "; SET TRANSACTION SNAPSHOT "+quoteLiteral(string(results[0].Rows[0][2])))
}

// openSnapshot opens a transaction that sees the tables as they are at one moment.
func (s *session) openSnapshot(ctx context.Context, then string) (err error) {
	if s.snapshot, err = openControl(ctx, s.relay.cfg.DatabaseURL); err != nil {
		return err
	}
	if err := s.snapshot.do(ctx, "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"+then); err != nil {
		return fmt.Errorf("looking at the rows older than the slot: %w", err)
	}
	return nil
}

// backfill sends the rows older than the slot, and returns when the checkpoint says that they are sent. The
// slot is ours meanwhile, and what it has comes behind.
//
// Begun again, it sees the tables as they are now: rows that are newer than the slot are sent twice, in
// the same order both times.
func (s *session) backfill(ctx context.Context) error {
	if s.snapshot == nil {
		if err := s.openSnapshot(ctx, ""); err != nil {
			return err
		}
	}
	s.log.Info("the backfill begins", slog.String(keySlot, s.relay.cfg.Slot))
	if err := s.publishTables(ctx, s.snapshot, s.memory, s.checkpoints.next.Tables, Range{Mark: markBackfill}); err != nil {
		return err
	}
	s.snapshot.close() // a transaction that stays open keeps the server from cleaning up
	s.snapshot = nil
	crash(crashBackfilled)
	finish := s.checkpoints.finished
	if s.exact != nil {
		finish = s.exact.finished
	}
	if err := finish(ctx); err != nil {
		return err
	}
	s.log.Info("the backfill is done", slog.String(keySlot, s.relay.cfg.Slot), slog.Int64(keyRows, s.acknowledged.Load()))
	return nil
}
