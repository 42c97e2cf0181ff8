package retry

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"converge/consumers/event"
	"converge/producers/outbox"
)

const burySQL = `
INSERT INTO dead_letters (consumer, event_id, event_type, topic, key, partition, "offset", recorded_at, record_key,
                          headers, payload, error_class, error, state, attempts, first_failed_at, last_failed_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::jsonb, $11, $12, $13, 'dead', $14, $15, $16)
ON CONFLICT (consumer, event_id) DO UPDATE
SET state = 'dead', payload = excluded.payload, headers = excluded.headers, error_class = excluded.error_class, error = excluded.error,
    attempts = dead_letters.attempts + excluded.attempts, deaths = dead_letters.deaths + 1,
    last_failed_at = excluded.last_failed_at`

// Bury makes the failed events dead letters: a row each, and a record each on the dead-letter topic, in
// the transaction that takes responsibility for them. An event that dies again, redriven or because two
// records bear its id and say different days, is the same letter with one more death; it holds the latest
// content, the topic holds each.
func (l Ladder) Bury(ctx context.Context, tx pgx.Tx, dead []Failure) error {
	records := make([]outbox.Record, 0, len(dead))
	for _, f := range dead {
		e, now := f.Event, time.Now()
		stored, err := marshalHeaders(e.Headers)
		if err != nil {
			return err
		}
		class := event.Classify(f.Err).String()
		_, err = tx.Exec(ctx, burySQL, l.Consumer, e.ID, plain(e.Type), e.Topic, l.KeyOf(e), e.Partition, e.Offset,
			e.RecordedAt, e.Key, stored, e.Value, class, errorText(f.Err), f.Attempts, f.FirstAt, now)
		if err != nil {
			return fmt.Errorf("writing a dead letter: %w", err)
		}
		headers := l.originHeaders(f)
		headers["attempts"] = strconv.Itoa(f.Attempts)
		headers["first_failed_at"] = f.FirstAt.UTC().Format(time.RFC3339Nano)
		headers["last_failed_at"] = now.UTC().Format(time.RFC3339Nano)
		records = append(records, outbox.Record{EventID: e.ID, Topic: deadTopic(e.Topic, l.Consumer), Key: plain(string(e.Key)),
			ContentType: plain(e.ContentType), Value: e.Value, Headers: headers})
	}
	return outbox.AppendRecords(ctx, tx, records...)
}
