package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"converge/internal/process"
	"converge/internal/sandbox"
)

// The tests of this kind mostly wait, for sessions that time out and outages that are noticed: they run side by
// side.

// apart is the topology of docker-compose.yml: the same commands, each a process of its own, against a
// PostgreSQL, a Kafka and a registry that are none of theirs.
type apart struct {
	t           *testing.T
	kafka       broker
	postgres    *sandbox.Postgres
	dir         string
	replace     *strings.Replacer
	environment []string // beside the compose file's
	containers  map[string]container
	processes   map[string]*running
}

// startApart starts everything in the compose file's order and returns when all of it is ready.
func startApart(t *testing.T, environment ...string) *apart {
	t.Helper()
	a := &apart{t: t, kafka: startKafka(t), dir: t.TempDir(), environment: environment,
		containers: map[string]container{}, processes: map[string]*running{}}
	a.startPostgres(0)
	t.Cleanup(func() {
		if err := a.postgres.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	a.replace = strings.NewReplacer("postgres://converge:converge@postgres:5432/converge", a.postgres.URL(),
		"kafka:19092", a.kafka.Brokers(), "http://registry:8080/apis/ccompat/v7", startRegistry(t))
	project, err := loadCompose(composeText(t))
	if err != nil {
		t.Fatal(err)
	}
	list, err := containers(project)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		a.containers[c.name] = c
		p := a.start(c.name)
		switch {
		case c.leaves:
			if code := p.wait(120 * time.Second); code != process.ExitOK {
				t.Fatalf("%s ended with code %d", c.name, code)
			}
			delete(a.processes, c.name)
		case c.awaited:
			p.ready()
		}
	}
	for _, name := range a.names() {
		a.processes[name].ready()
	}
	return a
}

// start starts the container's process, or starts it again where it was.
func (a *apart) start(name string) *running {
	a.t.Helper()
	c, addr := a.containers[name], ""
	if before := a.processes[name]; before != nil {
		addr = strings.TrimPrefix(before.base, "http://")
	} else {
		addr = freeAddr(a.t)
	}
	var args, environment []string
	for _, word := range c.command {
		args = append(args, strings.Replace(word, "0.0.0.0:8080", addr, 1))
	}
	for _, pair := range c.environment {
		environment = append(environment, a.replace.Replace(pair))
	}
	a.processes[name] = launch(a.t, addr, append(environment, a.environment...), args...)
	return a.processes[name]
}

func (a *apart) names() []string { return slices.Sorted(maps.Keys(a.processes)) }

// startPostgres starts the server, on a port that is free or the one where it was.
func (a *apart) startPostgres(port int) {
	a.t.Helper()
	// The backends of a server that was killed go a moment later; until then it does not start.
	eventually(a.t, 30*time.Second, func() (err error) {
		a.postgres, err = sandbox.StartPostgres(a.t.Context(), sandbox.PostgresConfig{Dir: a.dir, Port: port, Volatile: true})
		return err
	})
}

func startRegistry(t *testing.T) string {
	t.Helper()
	r, err := sandbox.OpenRegistry(sandbox.RegistryConfig{Dir: t.TempDir(), Addr: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	go func() { served <- r.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return r.URL()
}

// flow places one order and one transfer after another, until it is stopped. One that is refused for now, or
// whose answer is lost, is sent again under the same key, as a client should.
type flow struct {
	accepted  atomic.Int64
	transfers int                            // accepted; to be read after stop
	stop      func() (ids map[string]string) // of orders, by key; the method of payment is the key's first word
}

func (a *apart) flow(t *testing.T) *flow {
	for _, id := range accounts {
		open := fmt.Sprintf(`{"id":%q,"opening_balance":100}`, id)
		if err := wants(http.StatusCreated, a.processes["transfers"].do("POST", "/accounts", open, map[string]string{"Idempotency-Key": id})); err != nil {
			t.Fatalf("POST /accounts: %v", err)
		}
	}
	f := &flow{}
	ctx, cancel := context.WithCancel(t.Context())
	ids := map[string]string{}
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(40 * time.Millisecond)
		defer tick.Stop()
		orders, transfers := a.processes["orders"], a.processes["transfers"] // their addresses stay
		for n := 0; ctx.Err() == nil; {
			<-tick.C
			if transfers.transferNumber(f.transfers) {
				f.transfers++
			}
			method := "card-ok"
			if n%4 == 3 {
				method = "card-declined"
			}
			key := fmt.Sprintf("%s %d", method, n)
			sku, country := [...]string{"BOOK-1", "LAMP-1", "MUG-1"}[n%3], "DE"
			if n%10 == 5 {
				country = "AQ" // the shipment is refused: everything is undone
			}
			body := fmt.Sprintf(`{"customer_id":"c-%d","items":[{"sku":%q,"quantity":%d}],"payment_method":%q,"ship_to":{"country":%q}}`,
				n%7, sku, n%5+1, method, country)
			answer := orders.do("POST", "/orders", body, map[string]string{"Idempotency-Key": key})
			if answer.err == nil && answer.status == http.StatusAccepted {
				ids[key], _ = answer.json(t)["id"].(string)
				f.accepted.Add(1)
				n++
			}
		}
		for range 1500 { // one whose answer was lost is there already
			if transfers.transferNumber(f.transfers) {
				f.transfers++
				return
			}
			<-tick.C
		}
	})
	f.stop = func() map[string]string {
		cancel()
		running.Wait()
		return ids
	}
	t.Cleanup(func() { f.stop() })
	return f
}

// accounts are those that money flows between.
var accounts = []string{"alice", "bob", "carol"}

// transferNumber requests transfer n, for the first time or again, and reports whether it is accepted. Some are to
// nobody, to an account that is closed, or of more than there is.
func (r *running) transferNumber(n int) bool {
	to, amount := accounts[(n+1)%len(accounts)], n%7+1
	switch n % 10 {
	case 3:
		to = "closed"
	case 6:
		to = "nobody"
	case 9:
		amount = 1000
	}
	body := fmt.Sprintf(`{"from_account":%q,"to_account":%q,"amount":%d}`, accounts[n%len(accounts)], to, amount)
	answer := r.do("POST", "/transfers", body, map[string]string{"Idempotency-Key": fmt.Sprint("transfer ", n)})
	return answer.err == nil && answer.status == http.StatusAccepted
}

// more waits until n more orders were accepted.
func (f *flow) more(t *testing.T, n int64) {
	t.Helper()
	want := f.accepted.Load() + n
	eventually(t, 60*time.Second, func() error {
		if got := f.accepted.Load(); got < want {
			return fmt.Errorf("%d orders accepted, want %d", got, want)
		}
		return nil
	})
}

func TestEndToEndApartEveryProcessMayBeKilledAndNothingIsLostOrDoubled(t *testing.T) {
	t.Parallel()
	a := startApart(t)
	orders, inventory := a.processes["orders"], a.processes["inventory"]
	stock := inventory.available("BOOK-1")
	done, declined := orders.order("first", "card-ok", 2), orders.order("second", "card-declined", 3)
	orders.ends(done, "COMPLETED")
	if reason := orders.ends(declined, "FAILED"); reason != "payment_declined" {
		t.Errorf("the declined order's reason is %q, want payment_declined", reason)
	}
	if got := inventory.available("BOOK-1"); got != stock-2 {
		t.Errorf("available is %v, want %v: two sold, three back", got, stock-2)
	}
	put := a.processes["identity"].do("PUT", "/profiles/u-1", `{"email":"ada@example.org","display_name":"Ada"}`, map[string]string{"If-None-Match": "*"})
	if err := wants(http.StatusCreated, put); err != nil {
		t.Fatalf("PUT /profiles: %v", err)
	}
	a.shows("billing", "/billing/accounts/u-1", "version", 1.0)
	a.shows("analytics", "/analytics/profiles/u-1", "version", 1.0)
	a.shows("orderviews", "/order-views/"+done, "state", "COMPLETED")
	a.shows("orderviews", "/order-views/"+declined, "state", "FAILED")

	f := a.flow(t)
	for _, name := range a.names() {
		f.more(t, 3)
		a.processes[name].kill()
		eventually(t, 60*time.Second, func() error { return wants(http.StatusOK, a.startOnce(name).get("/healthz")) })
	}
	f.more(t, 3)
	ids := f.stop()
	last := a.processes["orders"].order("last", "card-ok", 1)
	for _, name := range a.names() {
		a.processes[name].ready()
	}
	a.processes["orders"].ends(last, "COMPLETED")
	a.settled(len(ids)+3, f.transfers)
	t.Logf("%d orders and %d transfers flowed while %d processes were killed", len(ids), f.transfers, len(a.processes))
}

// startOnce starts the process unless it runs.
func (a *apart) startOnce(name string) *running {
	select {
	case <-a.processes[name].done:
		return a.start(name)
	default:
		return a.processes[name]
	}
}

// shows waits until the process answers GET path with the member's value.
func (a *apart) shows(name, path, member string, value any) {
	a.t.Helper()
	eventually(a.t, 30*time.Second, func() error {
		answer := a.processes[name].get(path)
		if err := wants(http.StatusOK, answer); err != nil {
			return err
		}
		if got := answer.json(a.t)[member]; got != value {
			return fmt.Errorf("GET %s has %s %v, want %v", path, member, got, value)
		}
		return nil
	})
}

func TestEndToEndApartAnOutageOfKafkaOrPostgreSQLPausesAndBurnsNothing(t *testing.T) {
	t.Parallel()
	// No order ends by its deadline: only its card and its address decide.
	a := startApart(t, "CONVERGE_ORDER_DEADLINE=10m")
	if !a.kafka.Own() {
		t.Skip("KAFKA_BROKERS names a cluster that is not this test's to kill")
	}
	f := a.flow(t)
	f.more(t, 10)

	a.kafka.Kill()
	for _, name := range a.names() {
		if name != "identity" { // it has the outbox, and no use for Kafka
			a.unready(name, "kafka")
		}
	}
	f.more(t, 10) // what enters by HTTP needs the database only
	if err := wants(http.StatusOK, a.processes["identity"].get("/readyz")); err != nil {
		t.Errorf("identity without Kafka: %v", err)
	}
	a.kafka.Restart()
	a.allReady()
	f.more(t, 10)

	if err := a.postgres.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-a.postgres.Done()
	for _, name := range a.names() {
		a.unready(name, "database", "postgres")
	}
	answer := a.processes["orders"].do("POST", "/orders", `{"customer_id":"c-1","items":[{"sku":"BOOK-1","quantity":1}]}`,
		map[string]string{"Idempotency-Key": "in the outage"})
	if err := wants(http.StatusServiceUnavailable, answer); err != nil {
		t.Errorf("POST /orders without a database: %v", err)
	} else if got := answer.json(t)["type"]; got != "/problems/dependency-unavailable" {
		t.Errorf("POST /orders without a database is a problem of type %v", got)
	}
	a.startPostgres(a.postgres.Port())
	a.allReady()
	f.more(t, 10)

	ids := f.stop()
	a.settled(len(ids), f.transfers)
	a.endedByTheirCards(ids)
	t.Logf("%d orders and %d transfers flowed through both outages", len(ids), f.transfers)
}

// unready waits until the process, which must stay up, says that it is not ready, for a reason that names
// one of the words.
func (a *apart) unready(name string, words ...string) {
	a.t.Helper()
	eventually(a.t, 60*time.Second, func() error {
		p := a.processes[name]
		select {
		case <-p.done:
			a.t.Fatalf("%s ended with code %d", name, p.cmd.ProcessState.ExitCode())
		default:
		}
		answer := p.get("/readyz")
		if err := wants(http.StatusServiceUnavailable, answer); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		text := strings.ToLower(string(answer.body))
		if !slices.ContainsFunc(words, func(word string) bool { return strings.Contains(text, word) }) {
			return fmt.Errorf("%s says %s, want one of %q named", name, answer.body, words)
		}
		return nil
	})
}

func (a *apart) allReady() {
	a.t.Helper()
	for _, name := range a.names() {
		a.processes[name].ready()
	}
}
