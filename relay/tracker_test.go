package relay

import (
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"converge/relay/pgoutput"
)

// modelTransaction is what the property test knows of a transaction: plainly, with every record.
type modelTransaction struct {
	handle      *transaction
	end         pgoutput.LSN // 0 while open
	sent, acked int64
}

// TestWatermarkNeverPassesAnUnacknowledgedTransaction drives the tracker with random histories, and
// after every step compares it with the definition: the end of the longest prefix of finished
// transactions, or the latest keepalive when that prefix is all there is.
func TestWatermarkNeverPassesAnUnacknowledgedTransaction(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var (
			subject tracker
			history []*modelTransaction
			log     pgoutput.LSN // how far the server's WAL goes
			idle    pgoutput.LSN
			last    pgoutput.LSN
		)
		open := func() *modelTransaction {
			if n := len(history); n > 0 && history[n-1].end == 0 {
				return history[n-1]
			}
			return nil
		}
		advance := func() pgoutput.LSN {
			log += pgoutput.LSN(rapid.IntRange(1, 100).Draw(t, "wal"))
			return log
		}
		t.Repeat(map[string]func(*rapid.T){
			"begin": func(t *rapid.T) {
				if open() != nil {
					t.Skip("one transaction at a time")
				}
				history = append(history, &modelTransaction{handle: subject.begin(1, time.Unix(1, 0))})
			},
			"send": func(t *rapid.T) {
				x := open()
				if x == nil {
					t.Skip("no transaction is open")
				}
				x.sent++
				x.handle.sent++
			},
			"commit": func(t *rapid.T) {
				x := open()
				if x == nil {
					t.Skip("no transaction is open")
				}
				x.end = advance()
				if done := subject.commit(x.end); done != (x.acked == x.sent) {
					t.Fatalf("commit reports done %t with %d of %d records acknowledged", done, x.acked, x.sent)
				}
			},
			"acknowledge": func(t *rapid.T) {
				var waiting []*modelTransaction
				for _, x := range history {
					if x.acked < x.sent {
						waiting = append(waiting, x)
					}
				}
				if len(waiting) == 0 {
					t.Skip("nothing waits")
				}
				x := rapid.SampledFrom(waiting).Draw(t, "transaction")
				x.acked++
				if done := x.handle.acknowledge(); done != (x.end != 0 && x.acked == x.sent) {
					t.Fatalf("acknowledge reports done %t with %d of %d records, end %s", done, x.acked, x.sent, x.end)
				}
			},
			"keepalive": func(*rapid.T) {
				// The server's position: never inside a transaction that it is still sending.
				if open() == nil {
					advance()
				}
				idle = log
				subject.keepalive(idle)
			},
			"": func(t *rapid.T) {
				want, all := last, true
				for _, x := range history {
					if x.end == 0 || x.acked < x.sent {
						all = false
						break
					}
					want = max(want, x.end)
				}
				if all {
					want = max(want, idle)
				}
				got := subject.watermark()
				if got != want {
					t.Fatalf("watermark %s, want %s", got, want)
				}
				if got < last {
					t.Fatalf("watermark went back from %s to %s", last, got)
				}
				last = got
				if isOpen := open() != nil; subject.isOpen() != isOpen {
					t.Fatalf("open is %t, want %t", subject.isOpen(), isOpen)
				}
			},
		})
	})
}

// TestTrackerUnderConcurrentAcknowledgements lets a reader, a promise goroutine and a status goroutine
// meet, for the race detector and for the reuse of transactions.
func TestTrackerUnderConcurrentAcknowledgements(t *testing.T) {
	const transactions, records = 5_000, 3
	var (
		subject  tracker
		parts    sync.WaitGroup
		promises = make(chan *transaction, 64)
		done     = make(chan struct{})
	)
	parts.Go(func() {
		for x := range promises {
			x.acknowledge()
		}
		close(done)
	})
	parts.Go(func() {
		var last pgoutput.LSN
		for {
			now := subject.watermark()
			if now < last {
				t.Errorf("watermark went back from %s to %s", last, now)
				return
			}
			last = now
			select {
			case <-done:
				return
			default:
			}
		}
	})
	for i := range transactions {
		x := subject.begin(1, time.Unix(int64(i), 0))
		for range records {
			x.sent++
			promises <- x
		}
		subject.commit(pgoutput.LSN(i + 1))
	}
	close(promises)
	parts.Wait()
	if got := subject.watermark(); got != transactions {
		t.Errorf("watermark %s after all was acknowledged, want %s", got, pgoutput.LSN(transactions))
	}
	if since := subject.oldest(); !since.IsZero() {
		t.Errorf("a transaction of %s still waits", since)
	}
}
