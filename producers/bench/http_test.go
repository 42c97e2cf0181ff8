package bench

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"converge/internal/process"
	"converge/internal/sandbox"
	"converge/internal/usage"
)

// The kinds of load.
const (
	fresh   = "fresh keys"
	replays = "replays"
)

// bound is how late the 99th of a hundred answers may be.
const bound = 20 * time.Millisecond

// step is one rate, held for a while.
type step struct {
	Kind     string  `json:"kind"`
	Round    int     `json:"round"`
	Due      int     `json:"due_per_second"`
	Answered float64 `json:"answered_per_second"`
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
	Most     float64 `json:"most_ms"`
	RSS      int64   `json:"server_rss_bytes"`
	// Shared is how many fresh keys one transaction had, on average.
	Shared float64 `json:"requests_per_transaction,omitzero"`
	// Of the server, PostgreSQL and the load generator, for 1000 requests.
	CPU struct {
		Server     float64 `json:"server"`
		PostgreSQL float64 `json:"postgresql"`
		Load       float64 `json:"load_generator"`
	} `json:"cpu_seconds_per_1000"`
	Machine   usage.Reading `json:"machine"`
	Sustained bool          `json:"sustained"`
}

// storm is one key and many clients at once.
type storm struct {
	Clients int     `json:"clients"`
	Effects int     `json:"effects"`
	MS      float64 `json:"ms"` // until all are answered
}

// server is a converge process that serves payments.
type server struct {
	cmd  *exec.Cmd
	done <-chan struct{}
	addr string
	log  bytes.Buffer
}

func (b *bench) serve() *server {
	t := b.t
	t.Helper()
	binary := filepath.Join(t.TempDir(), "converge")
	if text, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "converge/cmd/converge").CombinedOutput(); err != nil {
		t.Fatalf("building converge: %v\n%s", err, text)
	}
	kafka, err := sandbox.StartKafka(sandbox.KafkaConfig{Dir: t.TempDir(), Addr: "127.0.0.1:0"})
	must(t, err)
	t.Cleanup(kafka.Close)
	at := []string{"--database", b.server.URL(), "--brokers", kafka.Brokers()[0]}
	if text, err := exec.CommandContext(t.Context(), binary, append([]string{"migrate"}, at...)...).CombinedOutput(); err != nil {
		t.Fatalf("migrating: %v\n%s", err, text)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := &server{addr: l.Addr().String()}
	must(t, l.Close())
	s.cmd = exec.Command(binary, append([]string{"serve", "payments", "--format", "json", "--http", s.addr}, at...)...)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	s.done, err = process.StartChild(s.cmd)
	must(t, err)
	t.Cleanup(func() {
		_ = s.cmd.Process.Signal(os.Interrupt) // ended already: done says so
		select {
		case <-s.done:
		case <-time.After(patience):
			_ = s.cmd.Process.Signal(syscall.SIGKILL)
			<-s.done
		}
		if t.Failed() {
			t.Log(s.log.String())
		}
	})
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; {
		res, err := http.Get("http://" + s.addr + "/readyz")
		if err == nil {
			must(t, res.Body.Close())
			if res.StatusCode == http.StatusOK {
				return s
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("converge serve payments is not ready: %v", err)
		}
		<-tick.C
	}
}

// overHTTP raises the rate of each kind by half until two in a row are too high, in every round, and then tries one
// more, between the highest that was not and the next.
func (b *bench) overHTTP() {
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // the load generator's garbage is nobody's concern
	s := b.serve()
	b.step(s, step{Kind: fresh, Due: *first, Round: -1}) // warms up, and is not counted
	for round := range *rounds {
		for _, kind := range []string{fresh, replays} {
			try := func(rate int) bool {
				taken := b.step(s, step{Kind: kind, Due: rate, Round: round})
				b.found.Steps = append(b.found.Steps, taken)
				return taken.Sustained
			}
			best := 0
			for rate, failed := *first, 0; rate <= *last && failed < 2; rate += rate / 2 {
				if failed++; try(rate) {
					best, failed = rate, 0
				}
			}
			if between := best + best/4; best > 0 && between <= *last {
				try(between)
			}
		}
		b.storm(s, round)
	}
}

// stored is how many keys the replays ask for again.
const stored = 256

func (b *bench) step(s *server, wanted step) step {
	t := b.t
	t.Helper()
	_, err := b.root.Exec(t.Context(), "CHECKPOINT")
	must(t, err)
	l := load{addr: s.addr, rate: wanted.Due, n: max(1, int(float64(wanted.Due)**seconds)), want: http.StatusCreated,
		key: func(n int) string { return fmt.Sprintf("%d-%d-%d", wanted.Round, wanted.Due, n) }}
	if wanted.Kind == replays {
		name := func(n int) string { return fmt.Sprintf("again-%d-%d-%d", wanted.Round, wanted.Due, n%stored) }
		before := l
		before.n, before.key = stored, name
		_, _, err := before.run(*clients)
		must(t, err)
		l.want, l.key = http.StatusOK, name
	}
	began := time.Now()
	meter := usage.Start(map[string]func() (float64, error){
		"server":         func() (float64, error) { return usage.CPU(s.cmd.Process.Pid) },
		"postgresql":     func() (float64, error) { return usage.Family(b.server.PID()) },
		"load generator": usage.Self,
	})
	latencies, took, err := l.run(*clients)
	must(t, err)
	wanted.Machine = meter.Read()
	cost := func(party string) float64 { return wanted.Machine.Seconds[party] / float64(l.n) * 1000 }
	wanted.CPU.Server, wanted.CPU.PostgreSQL, wanted.CPU.Load = cost("server"), cost("postgresql"), cost("load generator")
	var made, transactions int
	must(t, b.root.QueryRow(t.Context(), "SELECT count(*), count(DISTINCT xmin::text) FROM payments.payments WHERE created_at >= $1", began).
		Scan(&made, &transactions))
	wanted.Shared = float64(made) / float64(max(1, transactions))
	if effects := map[string]int{fresh: l.n, replays: 0}[wanted.Kind]; made != effects {
		t.Fatalf("%d requests with %s made %d payments, want %d", l.n, wanted.Kind, made, effects)
	}
	at := func(share float64) float64 { return latencies[int(share*float64(len(latencies)-1))].Seconds() * 1000 }
	wanted.RSS, _ = usage.Resident(s.cmd.Process.Pid) // 0: not known
	wanted.Answered = float64(l.n) / took.Seconds()
	wanted.P50, wanted.P99, wanted.Most = at(0.5), at(0.99), at(1)
	wanted.Sustained = wanted.P99 <= bound.Seconds()*1000
	t.Logf("%s, %d/s: p50 %.2f ms, p99 %.2f ms, %.1f a transaction, CPU s per 1000 %+v, stolen %.0f %%, others %.0f %%", wanted.Kind, wanted.Due, wanted.P50, wanted.P99,
		wanted.Shared, wanted.CPU, wanted.Machine.Stolen, wanted.Machine.Other)
	return wanted
}

func (b *bench) count(sql string, arguments ...any) (n int) {
	b.t.Helper()
	must(b.t, b.root.QueryRow(b.t.Context(), sql, arguments...).Scan(&n))
	return n
}

// storm sends one request from all clients in the same moment.
func (b *bench) storm(s *server, round int) {
	t := b.t
	t.Helper()
	const many = 64
	before := b.count("SELECT count(*) FROM payments.payments")
	var wait sync.WaitGroup
	errs := make([]error, many)
	created := make([]bool, many)
	open := make(chan struct{})
	for i := range many {
		c, err := dial(s.addr)
		must(t, err)
		defer c.conn.Close()
		wait.Go(func() {
			<-open
			status, err := c.send(fmt.Sprint("storm ", round))
			if created[i] = status == http.StatusCreated; err == nil && status > http.StatusCreated {
				err = fmt.Errorf("a client in the storm was answered %d", status)
			}
			errs[i] = err
		})
	}
	began := time.Now()
	close(open)
	wait.Wait()
	found := storm{Clients: many, MS: time.Since(began).Seconds() * 1000}
	must(t, errors.Join(errs...))
	found.Effects = b.count("SELECT count(*) FROM payments.payments") - before
	firsts := 0
	for _, is := range created {
		if is {
			firsts++
		}
	}
	if found.Effects != 1 || firsts != 1 {
		t.Fatalf("%d clients with one key made %d payments and got %d times 201", many, found.Effects, firsts)
	}
	b.found.Storms = append(b.found.Storms, found)
}
