package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/internal/mutants"
	"converge/internal/nettest"
	"converge/internal/pgtest"
	"converge/internal/process"
)

// An order is placed while the process that takes it is killed, or its database, its network or its client goes
// away. Whatever happens, a client that asks again with its key has placed one order: one row, one event in the
// outbox, one record on the topic. No code of the product's knows of these tests: a trigger holds a transaction before
// its COMMIT, and a network keeps answers back.

// crashes is a converge serve orders that is struck, and what it hangs on.
type crashes struct {
	t           *testing.T
	binary      string
	environment []string
	args        []string
	addr        string
	brokers     string

	url      string         // of the database, without the proxy
	root     *pgx.Conn      // its superuser, who holds transactions up
	database *nettest.Proxy // between the process and PostgreSQL
	network  *nettest.Proxy // between clients and the process
	orders   *running
}

// holdSQL has the transaction that places an order wait while somebody has the lock. It waits for as long as it
// takes: the lock_timeout is meant for keys.
const holdSQL = `
CREATE FUNCTION public.hold() RETURNS trigger
LANGUAGE plpgsql
SET lock_timeout = 0
AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END $$;
CREATE TRIGGER hold AFTER INSERT ON orders.orders FOR EACH ROW EXECUTE FUNCTION public.hold()`

func startCrashes(t *testing.T, binary string, environment ...string) *crashes {
	t.Helper()
	c := &crashes{t: t, binary: binary, environment: environment, addr: freeAddr(t), brokers: startKafka(t).Brokers(), url: pgtest.URL(t)}
	m := launchBinary(t, binary, "", nil, "migrate", "--database", c.url, "--brokers", c.brokers)
	if code := m.wait(120 * time.Second); code != process.ExitOK {
		t.Fatalf("migrate ended with code %d: %s", code, m.output)
	}
	var err error
	if c.root, err = pgx.Connect(t.Context(), c.url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.root.Close(context.WithoutCancel(t.Context())) })
	if _, err := c.root.Exec(t.Context(), holdSQL); err != nil {
		t.Fatal(err)
	}
	var through string
	c.database, through = nettest.ToDatabase(t, c.url)
	c.database.ImplicitCommit("INTO idempotency_keys (tenant, operation, key, fingerprint, status") // with the answer: it is all of the effect
	c.network = nettest.To(t, c.addr)
	c.args = []string{"serve", "orders", "--format", "json", "--order-deadline", "10m", "--http", c.addr,
		"--database", through, "--brokers", c.brokers}
	c.start()
	return c
}

func (c *crashes) start() {
	c.t.Helper()
	c.orders = launchBinary(c.t, c.binary, c.addr, c.environment, c.args...)
	// Ready it is when Kafka has given up on the process that was killed; orders are taken before.
	eventually(c.t, 60*time.Second, func() error { return wants(http.StatusNotFound, c.orders.get("/orders/none")) })
}

// restart is what follows a kill: a process on the same address, in a world that has been mended.
func (c *crashes) restart() {
	c.t.Helper()
	c.database.Mend()
	c.network.Mend()
	c.start()
}

func placement(customer string) string {
	return fmt.Sprintf(`{"customer_id":%q,"items":[{"sku":"BOOK-1","quantity":1}]}`, customer)
}

// place asks for the customer's one order. Its key is the customer.
func (c *crashes) place(customer string) answer {
	return c.orders.do("POST", "/orders", placement(customer), map[string]string{"Idempotency-Key": customer})
}

// placing is place in the background.
func (c *crashes) placing(customer string) <-chan answer {
	answered := make(chan answer, 1)
	c.t.Cleanup(func() { <-answered })
	go func() {
		defer close(answered)
		answered <- c.place(customer)
	}()
	return answered
}

// silence is nil as long as there is no answer.
func silence(answered <-chan answer) error {
	select {
	case a := <-answered:
		return fmt.Errorf("it was answered before it was done: %d %s %w", a.status, a.body, errors.Join(a.err))
	default:
		return nil
	}
}

// hold has placed orders wait in front of their COMMIT.
func (c *crashes) hold() {
	c.t.Helper()
	c.exec("SELECT pg_advisory_lock(1)")
}

// holdNext lets go on the two orders that wait, and has all that come after them wait until let is called.
func (c *crashes) holdNext() (let func()) {
	c.t.Helper()
	conn, err := pgx.Connect(c.t.Context(), c.url)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close(context.WithoutCancel(c.t.Context())) })
	held := make(chan error, 1)
	go func() { // the lock is given in the order in which it was asked for
		_, err := conn.Exec(c.t.Context(), "SELECT pg_advisory_lock(1)")
		held <- err
	}()
	pgtest.AwaitBlocked(c.t, c.url, 3)
	c.release()
	if err := <-held; err != nil {
		c.t.Fatal(err)
	}
	return func() { conn.Close(context.WithoutCancel(c.t.Context())) }
}

// release lets go on what waits.
func (c *crashes) release() {
	c.t.Helper()
	c.exec("SELECT pg_advisory_unlock(1)")
}

func (c *crashes) exec(sql string, arguments ...any) {
	c.t.Helper()
	if _, err := c.root.Exec(c.t.Context(), sql, arguments...); err != nil {
		c.t.Fatal(err)
	}
}

func (c *crashes) count(sql, argument string) (n int) {
	c.t.Helper()
	if err := c.root.QueryRow(c.t.Context(), sql, argument).Scan(&n); err != nil {
		c.t.Fatal(err)
	}
	return n
}

const (
	ordersOfSQL = "SELECT count(*) FROM orders.orders WHERE customer_id = $1"
	eventsOfSQL = "SELECT count(*) FROM orders.outbox WHERE aggregate_id = $1"
)

// committed waits until the customer's order is in the database.
func (c *crashes) committed(customer string) {
	c.t.Helper()
	eventually(c.t, 20*time.Second, func() error {
		if n := c.count(ordersOfSQL, customer); n != 1 {
			return fmt.Errorf("%s has %d orders", customer, n)
		}
		return nil
	})
}

// again asks as a client does whose first request came to nothing that it knows of, until there is an answer that is
// not for now. Then there must be one order, the answer's and that of the answers before.
func (c *crashes) again(customer string, before ...answer) error {
	var last answer
	eventually(c.t, 30*time.Second, func() error {
		last = c.place(customer)
		if last.err != nil || last.status == http.StatusServiceUnavailable || last.status == http.StatusConflict {
			return fmt.Errorf("%d %s %w", last.status, last.body, errors.Join(last.err))
		}
		return nil
	})
	if err := wants(http.StatusAccepted, last); err != nil {
		return err
	}
	id, _ := last.json(c.t)["id"].(string)
	for _, a := range before {
		if a.err == nil && a.status == http.StatusAccepted && a.json(c.t)["id"] != id {
			return fmt.Errorf("one client was told of order %v, another of %s", a.json(c.t)["id"], id)
		}
	}
	if n := c.count(ordersOfSQL, customer); n != 1 {
		return fmt.Errorf("%d orders were placed", n)
	}
	if n := c.count("SELECT count(*) FROM orders.orders WHERE id = $1::text::uuid", id); n != 1 {
		return errors.New("the order that was answered is not there")
	}
	if n := c.count(eventsOfSQL, id); n != 1 {
		return fmt.Errorf("%d events are in the outbox", n)
	}
	return nil
}

// found is again where the answer must be the stored one.
func (c *crashes) found(customer string) error {
	if a := c.place(customer); a.header.Get("Idempotency-Replayed") != "true" {
		return fmt.Errorf("the order was not found: %d %s %w", a.status, a.body, errors.Join(a.err))
	}
	return c.again(customer)
}

// blows are the ways to strike. Each is given a customer of its own and says what is wrong afterwards.
var blows = map[string]func(*crashes, string) error{
	"killed before the COMMIT": func(c *crashes, customer string) error {
		c.hold()
		answered := c.placing(customer)
		pgtest.AwaitBlocked(c.t, c.url, 1)
		early := silence(answered)
		c.orders.kill()
		c.exec(endBlockedSQL)
		c.release()
		if n := c.count(ordersOfSQL, customer); n != 0 {
			return errors.New("there is an order without its COMMIT")
		}
		c.restart()
		return errors.Join(early, c.again(customer))
	},
	"killed when the COMMIT was sent": func(c *crashes, customer string) error {
		c.hold()
		answered := c.placing(customer)
		pgtest.AwaitBlocked(c.t, c.url, 1)
		early := silence(answered)
		c.orders.kill()
		c.release() // PostgreSQL goes on with what it has got
		c.restart()
		return errors.Join(early, c.again(customer))
	},
	"killed after the COMMIT, before it knows": func(c *crashes, customer string) error {
		c.hold()
		answered := c.placing(customer)
		pgtest.AwaitBlocked(c.t, c.url, 1)
		c.database.Poison(nettest.Toxic{Silent: true}, nettest.Down)
		c.release()
		c.committed(customer)
		early := silence(answered)
		c.orders.kill()
		c.restart()
		return errors.Join(early, c.found(customer))
	},
	"killed while the reply is on its way": func(c *crashes, customer string) error {
		before := c.accepted()
		c.network.Poison(nettest.Toxic{Silent: true}, nettest.Down)
		conn := c.dial(c.network.Addr())
		defer conn.Close()
		c.write(conn, customer)
		eventually(c.t, 20*time.Second, func() error {
			if n := c.accepted(); n != before+1 {
				return fmt.Errorf("%d orders were answered, want one more than %d", n, before)
			}
			return nil
		})
		c.orders.kill()
		c.restart()
		return c.found(customer)
	},
	"the COMMIT does not arrive": func(c *crashes, customer string) error { return c.cut(nettest.CutBefore, customer) },
	"the connection ends during the COMMIT": func(c *crashes, customer string) error {
		return c.cut(nettest.CutDuring, customer)
	},
	"the answer to the COMMIT is lost": func(c *crashes, customer string) error { return c.cut(nettest.CutAfter, customer) },
	"the database is away": func(c *crashes, customer string) error {
		c.database.Close()
		a := c.place(customer)
		c.database.Open()
		if err := wants(http.StatusServiceUnavailable, a); err != nil {
			return err
		}
		if a.header.Get("Retry-After") == "" || a.json(c.t)["type"] != "/problems/dependency-unavailable" {
			return fmt.Errorf("without a database the answer is %v %s", a.header, a.body)
		}
		return c.again(customer)
	},
	"a slow client": func(c *crashes, customer string) error {
		conn := c.dial(c.addr)
		defer conn.Close()
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for _, char := range []byte(c.request(customer)) {
			<-tick.C
			if _, err := conn.Write([]byte{char}); err != nil {
				return err
			}
		}
		var head [12]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil || string(head[:]) != "HTTP/1.1 202" {
			return fmt.Errorf("the slow client got %q %w", head, err)
		}
		return c.found(customer)
	},
	"a client that leaves in the middle of its request": func(c *crashes, customer string) error {
		text := c.request(customer)
		conn := c.dial(c.addr)
		if _, err := io.WriteString(conn, text[:len(text)-5]); err != nil {
			return err
		}
		if err := conn.Close(); err != nil {
			return err
		}
		return c.again(customer)
	},
	"a client that leaves before its answer": func(c *crashes, customer string) error {
		c.hold()
		conn := c.dial(c.addr)
		c.write(conn, customer)
		pgtest.AwaitBlocked(c.t, c.url, 1)
		err := conn.Close()
		c.release()
		c.committed(customer)
		return errors.Join(err, c.found(customer))
	},
	"killed in a storm of 64 clients on one key": func(c *crashes, customer string) error {
		one := func(int) string { return customer }
		c.hold()
		before := c.storm(one, func() {
			pgtest.AwaitBlocked(c.t, c.url, 2)
			c.orders.kill()
			c.release()
		})
		c.restart()
		before = append(before, c.storm(one, func() {})...)
		return c.again(customer, before...)
	},
	together: func(c *crashes, customer string) error {
		each := func(n int) string { return fmt.Sprint(customer, "-", n) }
		c.hold()
		before := c.storm(each, func() {
			pgtest.AwaitBlocked(c.t, c.url, 2) // one order in each transaction; all others wait
			let := c.holdNext()
			pgtest.AwaitBlocked(c.t, c.url, 1) // many in one
			c.orders.kill()
			c.exec(endBlockedSQL)
			let()
		})
		c.restart()
		var wrong []error
		for n, a := range before {
			if placed := c.count(ordersOfSQL, each(n)); a.err == nil && a.status == http.StatusAccepted && placed != 1 {
				wrong = append(wrong, errors.New("an order was accepted and is not there"))
			}
			wrong = append(wrong, c.again(each(n), a))
		}
		return errors.Join(wrong...)
	},
}

const together = "killed while 64 clients' orders share a transaction"

// endBlockedSQL ends what waits for a lock.
const endBlockedSQL = `
SELECT pg_terminate_backend(pid, 10000)
FROM pg_stat_activity
WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0`

// cut places an order whose COMMIT meets a network that breaks. The process commits other things too: when it was
// one of those, the next order it is.
func (c *crashes) cut(how nettest.Cut, customer string) error {
	for n := range 20 {
		name, before := fmt.Sprintf("%s-%d", customer, n), c.database.Cuts()
		c.database.CutNext(how)
		a := c.place(name)
		if c.database.Cuts() != before+1 {
			return errors.New("no COMMIT was cut")
		}
		if wants(http.StatusAccepted, a) == nil {
			continue
		}
		if err := wants(http.StatusServiceUnavailable, a); err != nil {
			return err
		}
		if how == nettest.CutAfter {
			return c.found(name)
		}
		return c.again(name)
	}
	return errors.New("no order's COMMIT was cut")
}

// storm has 64 clients place the order of the customer that it names, strikes while they wait, and returns what they
// were told.
func (c *crashes) storm(customer func(client int) string, strike func()) []answer {
	answers := make([]answer, 64)
	var wait sync.WaitGroup
	for i := range answers {
		wait.Go(func() { answers[i] = c.place(customer(i)) })
	}
	strike()
	wait.Wait()
	return answers
}

func (c *crashes) dial(addr string) net.Conn {
	c.t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		c.t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second)) // a connection that is gone says so at once
	return conn
}

func (c *crashes) request(customer string) string {
	body := placement(customer)
	return fmt.Sprintf("POST /orders HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nIdempotency-Key: %s\r\nContent-Length: %d\r\n\r\n%s",
		c.addr, customer, len(body), body)
}

func (c *crashes) write(conn net.Conn, customer string) {
	c.t.Helper()
	if _, err := io.WriteString(conn, c.request(customer)); err != nil {
		c.t.Fatal(err)
	}
}

var acceptedMetric = regexp.MustCompile(`(?m)^converge_api_requests_total\{code="202",method="POST",route="/orders"\} (\d+)$`)

// accepted is how many orders the process has answered with 202.
func (c *crashes) accepted() int {
	c.t.Helper()
	found := acceptedMetric.FindSubmatch(c.orders.get("/metrics").body)
	if found == nil {
		c.t.Fatal("the metrics do not count the orders")
	}
	n, err := strconv.Atoi(string(found[1]))
	if err != nil {
		c.t.Fatal(err)
	}
	return n
}

func TestEndToEndCrashesEndInOneEffect(t *testing.T) {
	c := startCrashes(t, binary(t))
	slot := "crash_" + c.addr[strings.LastIndexByte(c.addr, ':')+1:] // slots belong to the whole server
	start(t, freeAddr(t), "relay", "--database", c.url, "--brokers", c.brokers, "--on-missing-slot", "backfill",
		"--slot", slot, "--publication", slot, "--table", "orders.outbox").ready()
	for i, name := range slices.Sorted(maps.Keys(blows)) {
		t.Run(name, func(t *testing.T) {
			if err := blows[name](c, fmt.Sprint("customer-", i)); err != nil {
				t.Error(err)
			}
		})
	}
	c.published()
}

// published holds the topic against the orders: a record of each, and no other.
func (c *crashes) published() {
	c.t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(c.brokers, ",")...), kgo.ConsumeTopics("orders"))
	if err != nil {
		c.t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(c.t.Context(), 60*time.Second)
	defer cancel()
	admin := kadm.NewClient(client)
	end := func() (n int64) {
		offsets, err := admin.ListEndOffsets(ctx, "orders")
		if err != nil {
			c.t.Fatal(err)
		}
		offsets.Each(func(o kadm.ListedOffset) { n += o.Offset })
		return n
	}
	rows, err := c.root.Query(ctx, "SELECT id::text FROM orders.orders")
	if err != nil {
		c.t.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		c.t.Fatal(err)
	}
	eventually(c.t, 30*time.Second, func() error {
		if n := end(); n < int64(len(ids)) {
			return fmt.Errorf("the topic has %d records, want %d", n, len(ids))
		}
		return nil
	})
	records := map[string]int{}
	for seen, all := 0, int(end()); seen < all; {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			c.t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) { seen++; records[string(r.Key)]++ })
	}
	for _, id := range ids {
		if records[id] != 1 {
			c.t.Errorf("order %s has %d records on the topic", id, records[id])
		}
	}
	if len(ids) < len(blows) || len(records) != len(ids) {
		c.t.Errorf("%d blows, %d orders, records of %d", len(blows), len(ids), len(records))
	}
}

// The tests are worth what they catch.
func TestCrashesFindPlantedFaults(t *testing.T) {
	binary := mutants.Build(t, []mutants.Fault{
		{"producers/httpapi/idempotency.go", "for _, s := range c.statements {",
			`if planted("the key has a transaction of its own") {
			if err := o.pool.SendBatch(ctx, &batch).Close(); err != nil {
				return err
			}
			batch = pgx.Batch{}
		}
		for _, s := range c.statements {`},
		{"producers/httpapi/idempotency.go", "if err := o.share(ctx, c); err != nil {",
			`if planted("the reply comes before the COMMIT") {
			go o.share(context.WithoutCancel(ctx), c)
			return c.response, nil
		}
		if err := o.share(ctx, c); err != nil {`},
		{"producers/httpapi/group.go", "err = g.run(ctx, calls)", `if planted("those that share are told before the COMMIT") {
		for _, c := range all[1:] {
			c.turn <- false
			c.turn = make(chan bool, 1)
		}
	}
	err = g.run(ctx, calls)`},
		{"producers/httpapi/idempotency.go", "batch.Queue(claimAnsweredSQL,", `if planted("keys are not kept") {
			for _, s := range c.statements {
				batch.Queue(s.SQL, s.Arguments...)
			}
			continue
		}
		batch.Queue(claimAnsweredSQL,`},
	}, "build", "converge/cmd/converge")
	for fault, verdict := range map[string]struct{ blow, says string }{
		"the key has a transaction of its own":        {"killed before the COMMIT", "0 orders were placed"},
		"the reply comes before the COMMIT":           {"killed before the COMMIT", "answered before it was done"},
		"those that share are told before the COMMIT": {together, "was accepted and is not there"},
		"keys are not kept":                           {"killed after the COMMIT, before it knows", "the order was not found"},
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			c := startCrashes(t, binary, "PLANTED="+fault)
			err := blows[verdict.blow](c, "customer")
			if err == nil {
				t.Fatal("nothing was found wrong")
			}
			if !strings.Contains(err.Error(), verdict.says) {
				t.Errorf("another reason was found than %q: %v", verdict.says, err)
			}
		})
	}
}
