package relay_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kfake"

	"converge/relay"
)

// fillSQL inserts rows of about 300 bytes of payload, as the retry machinery and the services write them.
const fillSQL = `
INSERT INTO outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload, headers)
SELECT gen_random_uuid(), 'orders', 'order', 'order-' || n %% 1000, n, 'OrderPlaced', 'avro/binary',
       convert_to(repeat(md5(n::text), 9), 'UTF8'),
       '{"occurred_at": "2026-11-23T12:00:00.123456Z", "correlation_id": "0190163d-8694-739b-aea5-966c26f8ad91", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}'
FROM generate_series(%d, %d) AS n`

// BenchmarkRelay measures how fast a backlog leaves the database, from the start of the relay to the
// acknowledgement of its last row. The embedded Kafka throws the records away, so that the relay and the
// server are what is measured.
func BenchmarkRelay(b *testing.B) {
	for _, shape := range []struct{ rows, perTransaction int }{{200_000, 100}, {50_000, 1}, {200_000, 200_000}} {
		for _, s := range []source{source(relay.SourceWAL), polling} {
			b.Run(fmt.Sprintf("rows=%d/tx=%d/source=%s", shape.rows, shape.perTransaction, s), func(b *testing.B) {
				url, kafka := outboxDatabase(b), startBroker(b, kfake.BlackholeProduce())
				conn := connect(b, url)
				if s == polling {
					execute(b, conn, "CREATE INDEX ON outbox (seq) WHERE published_at IS NULL")
				}
				cfg := s.config(url, kafka)
				cfg.NoCreateTopics = true // a checkpoint would be thrown away too
				if err := kafka.CreateTopic("orders", 3, nil); err != nil {
					b.Fatal(err)
				}
				if err := startReady(b, cfg).stop(); err != nil {
					b.Fatal(err)
				}
				for b.Loop() {
					b.StopTimer()
					fill(b, conn, shape.rows, shape.perTransaction)
					runtime.GC()
					b.StartTimer()
					drainBacklog(b, cfg, shape.rows)
				}
				b.ReportMetric(float64(shape.rows*b.N)/b.Elapsed().Seconds(), "rows/s")
			})
		}
	}
}

func fill(b *testing.B, conn *pgx.Conn, rows, perTransaction int) {
	b.Helper()
	execute(b, conn, "SET synchronous_commit = off")
	batch := &pgx.Batch{}
	for n := 1; n <= rows; n += perTransaction {
		batch.Queue("BEGIN")
		batch.Queue(fmt.Sprintf(fillSQL, n, n+perTransaction-1))
		batch.Queue("COMMIT")
		if batch.Len() > 1000 || n+perTransaction > rows {
			if err := conn.SendBatch(b.Context(), batch).Close(); err != nil {
				b.Fatal(err)
			}
			batch = &pgx.Batch{}
		}
	}
	execute(b, conn, "CHECKPOINT") // writes the WAL that asynchronous commits left behind
}

// drainBacklog runs a relay until Kafka has acknowledged the rows.
func drainBacklog(b *testing.B, cfg relay.Config, rows int) {
	b.Helper()
	registry := prometheus.NewRegistry()
	cfg.Registerer = registry
	subject := startReady(b, cfg)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(5 * time.Minute)
	for sum(b, registry, "converge_relay_events_published_total", "topic", "orders") < float64(rows) {
		select {
		case <-tick.C:
		case <-deadline:
			b.Fatal("the backlog was not acknowledged in five minutes")
		}
	}
	b.StopTimer()
	if err := subject.stop(); err != nil {
		b.Fatal(err)
	}
	b.StartTimer()
}
