package relay

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"converge/relay/pgoutput"
)

// transactional publishes in Kafka transactions, each of which holds rows and the checkpoint that says up to where
// they go, so that either both are there or neither is:
//
//	rows … checkpoint {confirmed P, open L, ordinal n} │ commit ──▶ P may be confirmed
//
//	crash before the commit: the next relay's transactional id ends the transaction, nobody has seen it; the
//	  last checkpoint is the one that belongs to what is on the topics
//	crash behind the commit: the slot is behind, and what the checkpoint covers is read again and skipped: the
//	  transactions that committed before P, and the first n rows of the one that committed at L
//
// A Kafka transaction ends by time, so that a large transaction of PostgreSQL's is in several and many small
// ones are in one. The order is the one of a relay that does not do this: acknowledged, written, confirmed.
//
// A relay that was cut off and comes back (a zombie) may still have an open Kafka transaction. The one that
// took the slot over asks for the transactional id before it reads the checkpoint: that raises the id's epoch
// and aborts what is open, so that nothing of the zombie's can be committed behind the checkpoint.
//
// Skipping relies on the server decoding a transaction into the same rows in the same order each time, which
// it does as long as the publication stays as it is; and on LSNs that mean the same, so that on another
// timeline nothing is skipped.
type transactional struct {
	client      *kgo.Client
	checkpoints *checkpoints
	life        context.Context

	mu sync.Mutex // guards all below, and that the client's transaction does not end while a row is produced
	// begun means that the client is in a transaction.
	begun bool
	// next is the checkpoint of what is produced so far.
	next checkpoint
	// start is where the session began: what it covers is skipped.
	start checkpoint
	// passing means that the transaction being read is covered as a whole.
	passing bool
	written time.Time // when a transaction was last committed
}

const (
	// transactionInterval is how long rows wait at most for their Kafka transaction's end.
	transactionInterval = 50 * time.Millisecond
	// transactionTimeout is when brokers abort the transaction of a relay that is gone, for readers of
	// committed records to go on. The next relay on the slot does so sooner.
	transactionTimeout = 30 * time.Second
)

// transactionalID is the same for every relay that reads the slot.
func transactionalID(slot string) string { return slot + ".relay" }

// fence makes every other producer of the transactional id end in an error, and aborts what it had open.
func fence(ctx context.Context, client *kgo.Client) error {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	if _, _, err := client.ProducerID(ctx); err != nil {
		return fmt.Errorf("taking over the transactional id: %w", err)
	}
	return nil
}

func newTransactional(client *kgo.Client, c *checkpoints, life context.Context) *transactional {
	return &transactional{client: client, checkpoints: c, life: life, next: c.next, start: c.next}
}

// opened notes that a transaction begins, and returns how many of its rows are on their topics already.
func (t *transactional) opened(commit pgoutput.LSN) (skip int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	// A position is covered up to the byte before it: a commit record that lies at it is not.
	if t.passing = commit < t.start.Confirmed; t.passing {
		return unsettled
	}
	if commit == t.start.Open {
		skip = t.start.Ordinal
	}
	t.next.Open, t.next.Ordinal = commit, skip
	return skip
}

// closed notes that the transaction is read to its end.
func (t *transactional) closed(end pgoutput.LSN, committed time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.passing {
		return
	}
	t.next.Open, t.next.Ordinal = 0, 0
	t.next.Confirmed, t.next.Covered = max(t.next.Confirmed, end), committed
}

// idle notes how far the server has decoded, outside a transaction.
func (t *transactional) idle(end pgoutput.LSN) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if end <= t.next.Confirmed {
		return
	}
	if t.next.Confirmed = end; t.next.Open < end {
		t.next.Open, t.next.Ordinal = 0, 0 // it is not published any more
	}
}

// produce hands a row's record to the client, inside a Kafka transaction.
func (t *transactional) produce(r *row) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.begin(); err != nil {
		return err
	}
	if t.next.Open != 0 { // the rows of a backfill have no place
		t.next.Ordinal++
	}
	t.client.Produce(context.Background(), &r.record, r.promise)
	return nil
}

// begin makes sure that there is a transaction. The caller holds mu.
func (t *transactional) begin() error {
	if t.begun {
		return nil
	}
	if err := t.client.BeginTransaction(); err != nil {
		return fmt.Errorf("beginning a Kafka transaction: %w", err)
	}
	t.begun = true
	return nil
}

// end commits what was produced so far together with its checkpoint, if there is anything new.
func (t *transactional) end(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.begun && t.next.Confirmed <= pgoutput.LSN(t.checkpoints.confirmed.Load()) {
		return nil
	}
	return t.commit(ctx)
}

// commit does so in any case. The caller holds mu.
func (t *transactional) commit(ctx context.Context) error {
	if err := t.begin(); err != nil {
		return err
	}
	written := make(chan error, 1)
	t.checkpoints.produce(t.next, func(err error) { written <- err })
	if t.client.Flush(ctx) != nil {
		return fmt.Errorf("ending a Kafka transaction: %w", context.Cause(ctx))
	}
	if err := <-written; err != nil {
		return err
	}
	// A record that was refused has ended the session by now: promises run before Flush returns.
	if t.life.Err() != nil {
		return context.Cause(t.life)
	}
	crash(crashTransactionEnd)
	if err := t.client.EndTransaction(ctx, kgo.TryCommit); err != nil {
		return fmt.Errorf("committing a Kafka transaction: %w", err)
	}
	t.begun, t.written = false, time.Now()
	crash(crashCheckpoint)
	t.checkpoints.confirm(t.next.Confirmed)
	return nil
}

// finished commits that the backfill is done.
func (t *transactional) finished(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next.Pending = false
	return t.commit(ctx)
}

// run ends transactions by time.
func (t *transactional) run() error {
	tick := time.NewTicker(transactionInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-t.life.Done():
			return nil
		}
		if err := t.due(); err != nil {
			return err
		}
	}
}

func (t *transactional) due() error {
	t.mu.Lock()
	rest := !t.begun && time.Since(t.written) < statusInterval
	t.mu.Unlock()
	if rest {
		return nil // a position alone is worth a transaction a second
	}
	return t.end(t.life)
}
