package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"converge/internal/usage"
)

// trial is one of the cases that are measured.
type trial struct {
	Name           string
	rows           int
	perTransaction int
	rate           int // rows per second; 0 for a backlog
}

// Measurement is one pass of one contender.
type Measurement struct {
	Case      string `json:"case"`
	Contender string `json:"contender"`
	Round     int    `json:"round"`
	Rows      int    `json:"rows"`

	// Seconds is from the contender's start to its last row on the topic; FirstToLast from its first row there, which
	// leaves out its own start and the server's decoding ahead of the first row. 0: not known.
	Seconds     float64 `json:"seconds,omitempty"`
	FirstToLast float64 `json:"first_to_last_seconds,omitempty"`
	// P50 and P99 are milliseconds from the insertion of a row, right before its commit, to its arrival at an
	// independent consumer.
	P50 float64 `json:"p50_ms,omitempty"`
	P99 float64 `json:"p99_ms,omitempty"`

	// Processor seconds: of the contender, of the server's process that decodes for it, and of the broker.
	CPU          float64 `json:"cpu_seconds"`
	WALSenderCPU float64 `json:"walsender_cpu_seconds"`
	BrokerCPU    float64 `json:"broker_cpu_seconds,omitempty"`
	PeakBytes    int64   `json:"peak_rss_bytes"`

	// Shares of the machine's processor time during the pass: what the hypervisor stole, and what everybody else used.
	StealPercent float64 `json:"steal_percent"`
	OtherPercent float64 `json:"other_percent"`
}

// bench is what all measurements share.
type bench struct {
	database  *database
	kafka     *kafka
	rivals    []contender
	rounds    int
	seconds   int // of a steady pass
	passes    int
	completed []Measurement
	failures  []error // of passes, which then are no result
}

// patience bounds every wait for progress.
const patience = 2 * time.Minute

// until polls until check says so.
func until(ctx context.Context, what string, check func() (bool, error)) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		ok, err := check()
		if err != nil {
			return fmt.Errorf("waiting until %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-limit.C:
			return fmt.Errorf("waiting until %s: %w", what, context.DeadlineExceeded)
		}
	}
}

// run measures a case: each round lets every contender work once, so that a disturbance meets all of them.
func (b *bench) run(ctx context.Context, t trial) error {
	var end string
	if t.rate == 0 {
		progress("%s: writing %d rows", t.Name, t.rows)
		var err error
		if end, err = b.database.fill(ctx, t.rows, t.perTransaction); err != nil {
			return err
		}
	}
	for round := 1; round <= b.rounds; round++ {
		for _, c := range b.rivals {
			if _, only := c.(*yardstick); only && t.rate > 0 {
				continue // what it throws away cannot be seen to arrive
			}
			m, err := b.pass(ctx, t, c, end)
			if err != nil {
				err = fmt.Errorf("%s, %s, round %d: %w", t.Name, c.name(), round, err)
				if ctx.Err() != nil {
					return err
				}
				// The others are measured all the same.
				progress("%v", err)
				b.failures = append(b.failures, err)
				continue
			}
			m.Case, m.Contender, m.Round, m.Rows = t.Name, c.name(), round, t.rows
			b.completed = append(b.completed, m)
			progress("%s, round %d of %d: %s", t.Name, round, b.rounds, m.line())
		}
	}
	return b.database.dropSlot(ctx, baseSlot)
}

// pass lets one contender work on a slot of its own.
func (b *bench) pass(ctx context.Context, t trial, c contender, end string) (m Measurement, err error) {
	b.passes++
	slot := fmt.Sprintf("bench_%d", b.passes)
	if t.rate > 0 {
		if err = b.database.empty(ctx); err == nil {
			err = b.database.createSlot(ctx, slot)
		}
	} else {
		err = b.database.copySlot(ctx, slot)
	}
	if err != nil {
		return m, err
	}
	defer func() {
		// Also after a failure: a slot that is left holds back the WAL of what comes.
		clearing, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		err = errors.Join(err, b.database.dropSlot(clearing, slot))
	}()
	watch, err := startWatch(ctx, b, slot)
	if err != nil {
		return m, err
	}
	defer watch.close()
	began := time.Now()
	p, err := c.start(ctx, task{slot: slot, end: end, swift: t.rate > 0})
	if err != nil {
		return m, err
	}
	stopped := false
	defer func() {
		if !stopped {
			stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
			defer cancel()
			err = errors.Join(err, p.stop(stopping))
		}
	}()
	from := watch.from
	if y, ok := p.(*receiving); ok {
		if err = y.await(ctx); err == nil {
			m.Seconds = time.Since(began).Seconds()
		}
	} else if t.rate > 0 {
		err = b.steady(ctx, t, p, watch, &m)
	} else {
		err = b.drained(ctx, t, p, from, began, &m)
	}
	if err == nil {
		err = watch.read(p, &m)
	}
	if err != nil {
		return m, err
	}
	stopped = true
	if err = p.stop(ctx); err != nil {
		return m, err
	}
	if _, ok := p.(*receiving); ok {
		return m, nil
	}
	to, err := b.kafka.ends(ctx)
	if err == nil {
		err = checkTopic(ctx, b.kafka.brokers, from, to, t.rows)
	}
	if err == nil {
		err = b.kafka.forget(ctx)
	}
	return m, err
}

// drained returns when all rows are on the topic.
func (b *bench) drained(ctx context.Context, t trial, p pass, from offsets, began time.Time, m *Measurement) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var first, moved time.Time
	moved = began
	for count := int64(0); ; {
		to, err := b.kafka.ends(ctx)
		if err != nil {
			return err
		}
		now := time.Now()
		if n := to.sum() - from.sum(); n > count {
			if count == 0 {
				first = now
			}
			count, moved = n, now
		}
		if count >= int64(t.rows) {
			m.Seconds, m.FirstToLast = now.Sub(began).Seconds(), now.Sub(first).Seconds()
			return nil
		}
		if err := p.failed(); err != nil {
			return fmt.Errorf("after %d of %d rows: %w", count, t.rows, err)
		}
		if now.Sub(moved) > patience {
			return fmt.Errorf("after %d of %d rows: no more came for %s", count, t.rows, patience)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// warmRows is the part of a steady pass that is not counted.
const warmPart = 5 // one in five

// steady writes rows at a steady rate and takes the time that each needs.
func (b *bench) steady(ctx context.Context, t trial, p pass, watch *watch, m *Measurement) error {
	if err := until(ctx, "the slot is read", func() (bool, error) { return watch.walsender() != 0, p.failed() }); err != nil {
		return err
	}
	writer, err := connect(ctx, b.database.url)
	if err != nil {
		return err
	}
	defer writer.Close(context.WithoutCancel(ctx))
	client, err := consumer(b.kafka.brokers, watch.from)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, patience+time.Duration(b.seconds)*time.Second)
	defer cancel()
	// What starting took is not what a row costs.
	if err := watch.restart(p); err != nil {
		return err
	}
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error {
		pid := int(writer.PgConn().PID())
		before, err := usage.CPU(pid)
		if err != nil {
			return err
		}
		if _, err := writer.Exec(ctx, "CALL bench.steady($1, $2)", t.rows, t.rate); err != nil {
			return fmt.Errorf("writing rows: %w", err)
		}
		after, err := usage.CPU(pid)
		watch.writing = after - before
		return err
	})
	var latencies []float64
	work.Go(func() (err error) {
		latencies, err = arrivals(ctx, client, t.rows)
		return err
	})
	if err := work.Wait(); err != nil {
		return errors.Join(err, p.failed())
	}
	slices.Sort(latencies)
	m.P50, m.P99 = latencies[len(latencies)/2], latencies[len(latencies)*99/100]
	return nil
}

// arrivals returns how many milliseconds each row took, but for the first ones.
func arrivals(ctx context.Context, client *kgo.Client, rows int) ([]float64, error) {
	latencies := make([]float64, 0, rows)
	c := newChecker(rows)
	for !c.complete() {
		fetches := client.PollFetches(ctx)
		now := time.Now().UnixMicro()
		if err := fetches.Err0(); err != nil {
			return nil, fmt.Errorf("reading the topic after %d of %d records: %w", c.count, rows, err)
		}
		for _, r := range fetches.Records() {
			n, err := c.take(r)
			if err != nil {
				return nil, err
			}
			if n > rows/warmPart {
				latencies = append(latencies, float64(now-placedAt(r.Value))/1000)
			}
		}
	}
	return latencies, nil
}

// placedAt returns when a payload was made, in microseconds since 1970.
func placedAt(payload []byte) int64 {
	_, rest, _ := strings.Cut(string(payload[:min(len(payload), 200)]), `"placed_at":`)
	digits, _, _ := strings.Cut(rest, ",")
	micros, _ := strconv.ParseInt(digits, 10, 64) // the checker has seen the payload's shape
	return micros
}

// watch follows what a pass costs outside the contender.
type watch struct {
	bench  *bench
	from   offsets
	stop   context.CancelFunc
	done   chan struct{}
	sender chan senderTime // holds the latest

	machine     usage.Processors
	own, broker float64
	contender   float64
	decoding    float64
	writing     float64 // by the server's process that writes rows meanwhile
}

// senderTime is what is known of the server's process that decodes.
type senderTime struct {
	pid     int
	seconds float64
}

func startWatch(ctx context.Context, b *bench, slot string) (*watch, error) {
	w := &watch{bench: b, done: make(chan struct{}), sender: make(chan senderTime, 1)}
	var err error
	if w.from, err = b.kafka.ends(ctx); err != nil {
		return nil, err
	}
	conn, err := connect(ctx, b.database.url)
	if err != nil {
		return nil, err
	}
	w.sender <- senderTime{}
	following, stop := context.WithCancel(ctx)
	w.stop = stop
	go func() {
		defer close(w.done)
		defer conn.Close(context.WithoutCancel(ctx))
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for pid := 0; ; {
			if pid == 0 {
				_ = conn.QueryRow(following, "SELECT coalesce(max(active_pid), 0) FROM pg_replication_slots WHERE slot_name = $1", slot).Scan(&pid)
			}
			if seconds, err := threadSeconds(pid); err == nil && pid != 0 {
				<-w.sender
				w.sender <- senderTime{pid, seconds}
			}
			select {
			case <-tick.C:
			case <-following.Done():
				return
			}
		}
	}()
	return w, w.restart(nil)
}

// threadSeconds returns the processor time of a process of one thread, more finely than [usage.CPU].
func threadSeconds(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
	if err != nil {
		return 0, fmt.Errorf("reading the server's processor time: %w", err)
	}
	running, _, _ := strings.Cut(string(text), " ")
	nanos, err := strconv.ParseFloat(running, 64)
	if err != nil {
		return 0, fmt.Errorf("reading the server's processor time: %w", err)
	}
	return nanos / 1e9, nil
}

func (w *watch) latest() senderTime {
	s := <-w.sender
	w.sender <- s
	return s
}

// walsender returns the process that decodes for the slot, 0 while there is none.
func (w *watch) walsender() int { return w.latest().pid }

// restart begins the count anew. p is the contender if it works already.
func (w *watch) restart(p pass) (err error) {
	if w.machine, err = usage.ReadProcessors(); err != nil {
		return err
	}
	if w.own, err = usage.CPU(os.Getpid()); err != nil {
		return err
	}
	if w.bench.kafka.pid != 0 {
		if w.broker, err = usage.CPU(w.bench.kafka.pid); err != nil {
			return err
		}
	}
	w.contender, w.decoding = 0, w.latest().seconds
	if p != nil {
		w.contender, err = p.cpu()
	}
	return err
}

// read fills in what the pass has cost since the last restart.
func (w *watch) read(p pass, m *Measurement) (err error) {
	used, err := p.cpu()
	if err != nil {
		return err
	}
	if m.PeakBytes, err = p.peak(); err != nil {
		return err
	}
	m.CPU, m.WALSenderCPU = used-w.contender, w.latest().seconds-w.decoding
	own, err := usage.CPU(os.Getpid())
	if err != nil {
		return err
	}
	if w.bench.kafka.pid != 0 {
		broker, err := usage.CPU(w.bench.kafka.pid)
		if err != nil {
			return err
		}
		m.BrokerCPU = broker - w.broker
	}
	now, err := usage.ReadProcessors()
	if err != nil {
		return err
	}
	passed := now.Since(w.machine)
	known := m.CPU + m.WALSenderCPU + m.BrokerCPU + w.writing + own - w.own
	m.StealPercent = 100 * passed.Stolen / passed.Total
	m.OtherPercent = 100 * max(0, passed.Total-passed.Idle-passed.Stolen-known) / passed.Total
	return nil
}

func (w *watch) close() {
	w.stop()
	<-w.done
}
