package prove

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"converge/internal/proof"
)

const (
	drains  = 5
	backlog = 12_000 // transactions of one row; enough to be streaming when the relay is asked to end
)

// backlogSQL commits each row by itself, far faster than a client could.
const backlogSQL = `
DO $$
DECLARE id uuid;
BEGIN
    FOR i IN %d..%d LOOP
        id := gen_random_uuid();
        INSERT INTO orders.outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload, headers)
        VALUES (id, 'topic-0', 'thing', 'key-' || i %% 50, i / 50, 'Happened', 'application/octet-stream', '', jsonb_build_object('correlation_id', id));
        COMMIT;
    END LOOP;
END $$`

// drained asks the relay to end again and again in the middle of a backlog.
func drained(t *testing.T, binary, plant string) result {
	t.Helper()
	r := begin(t, binary, plant, plan{Patience: proof.Patience})
	conn, err := pgx.Connect(t.Context(), r.server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	relay := r.first
	for n := range drains {
		relay.kill()
		if _, err := conn.Exec(t.Context(), fmt.Sprintf(backlogSQL, n*backlog, (n+1)*backlog-1)); err != nil {
			t.Fatal(err)
		}
		before, since := r.received(), r.ends()
		relay = r.startRelay("")
		r.failed(r.await("the backlog comes", func() error {
			if r.received() == before {
				return errors.New("nothing came")
			}
			return nil
		}))
		r.drain(relay, since)
		relay = r.startRelay("")
		r.failed(r.settle(relay))
	}
	r.ledger.rows, err = committed(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	return r.end(relay)
}

// received counts the records so far.
func (r *run) received() int {
	r.witness.mu.Lock()
	defer r.witness.mu.Unlock()
	n := 0
	for _, records := range r.witness.records {
		n += len(records)
	}
	return n
}

// committed reads the ledger off the table, where nothing was rolled back and nobody else wrote.
func committed(ctx context.Context, conn *pgx.Conn) ([]Row, error) {
	read, err := conn.Query(ctx, "SELECT event_id, aggregate_id, aggregate_version FROM orders.outbox ORDER BY aggregate_version")
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(read, func(row pgx.CollectableRow) (Row, error) {
		var id [16]byte
		r := Row{Topic: topics[0], Outcome: Committed}
		if err := row.Scan(&id, &r.Key, &r.Sequence); err != nil {
			return r, err
		}
		r.Event = uuid.UUID(id)
		r.Content = content([]byte{}, []byte(eventType), []byte(aggregateType), fmt.Append(nil, r.Sequence), []byte(contentType), id[:])
		return r, nil
	})
}
