package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"converge/internal/process"
	"converge/internal/sandbox"
)

// transfer requests a transfer in USD and returns its id.
func (r *running) transfer(key, from, to string, amount int) string {
	r.t.Helper()
	body := fmt.Sprintf(`{"from_account":%q,"to_account":%q,"amount":%d}`, from, to, amount)
	a := r.do("POST", "/transfers", body, map[string]string{"Idempotency-Key": key})
	if err := wants(http.StatusAccepted, a); err != nil {
		r.t.Fatalf("POST /transfers: %v", err)
	}
	id, _ := a.json(r.t)["id"].(string)
	return id
}

// transferred waits for the transfer's end and returns its state and reason.
func (r *running) transferred(id string) string {
	r.t.Helper()
	var end string
	eventually(r.t, 60*time.Second, func() error {
		a := r.get("/transfers/" + id + "/status")
		if err := wants(http.StatusOK, a); err != nil {
			return err
		}
		status := a.json(r.t)
		reason, _ := status["reason"].(string)
		end = fmt.Sprint(status["state"], " ", reason)
		if a.header.Get("Retry-After") != "" {
			return fmt.Errorf("transfer %s is %s: %s", id, end, a.body)
		}
		return nil
	})
	return end
}

func (r *running) balance(account string) float64 {
	r.t.Helper()
	a := r.get("/accounts/" + account)
	if err := wants(http.StatusOK, a); err != nil {
		r.t.Fatalf("GET /accounts: %v", err)
	}
	n, _ := a.json(r.t)["balance"].(float64)
	return n
}

// database returns the address of the PostgreSQL that up runs.
func (r *running) database() (url string) {
	r.t.Helper()
	eventually(r.t, 30*time.Second, func() error { // ready may be seen before it is said
		url = regexp.MustCompile(`postgres://\S+`).FindString(r.output.String())
		if url == "" {
			return errors.New("the address of PostgreSQL was not printed")
		}
		return nil
	})
	return url
}

// booksBalance holds the Ledger's tables against each other and against those of Transfers.
func (r *running) booksBalance() {
	r.t.Helper()
	conn, err := pgx.Connect(r.t.Context(), r.database())
	if err != nil {
		r.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, c := range claims[transfersBegin:] {
		if err := contradiction(r.t.Context(), conn, c.claim, c.sql); err != nil {
			r.t.Error(err)
		}
	}
}

func TestEndToEndTransfersArePaidOrGivenBackAcrossKillNine(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	args, http1 := upArgs(t, dir), freeAddr(t)
	up := start(t, http1, args...).ready()

	// Accounts and transfers at once: a transfer may overtake the opening of its accounts.
	for id, balance := range map[string]int{"alice": 100, "bob": 0} {
		body := fmt.Sprintf(`{"id":%q,"opening_balance":%d}`, id, balance)
		if err := wants(http.StatusCreated, up.do("POST", "/accounts", body, map[string]string{"Idempotency-Key": "open-" + id})); err != nil {
			t.Fatal(err)
		}
	}
	paid := up.transfer("one", "alice", "bob", 30)
	if again := up.transfer("one", "alice", "bob", 30); again != paid {
		t.Errorf("the same Idempotency-Key made transfer %s beside %s", again, paid)
	}
	back := up.transfer("two", "alice", "closed", 50)
	if got := up.transferred(paid); got != "COMPLETED " {
		t.Errorf("the paid transfer ended %s", got)
	}
	if got := up.transferred(back); got != "FAILED account_closed" {
		t.Errorf("the transfer to a closed account ended %s", got)
	}
	if got := up.transferred(up.transfer("three", "bob", "alice", 31)); got != "FAILED insufficient_funds" {
		t.Errorf("the transfer of too much ended %s", got)
	}
	if alice, bob := up.balance("alice"), up.balance("bob"); alice != 70 || bob != 30 {
		t.Errorf("alice has %v, bob %v", alice, bob)
	}

	// Unfinished sagas: requested, and everything killed before they can end.
	var open []string
	for i := range 20 {
		open = append(open, up.transfer(fmt.Sprintf("open-%d", i), "alice", "bob", 1))
	}
	up.kill()
	again := start(t, http1, args...).ready()
	for _, id := range open {
		if got := again.transferred(id); got != "COMPLETED " {
			t.Errorf("a transfer that was open at the kill ended %s", got)
		}
	}
	if alice, bob := again.balance("alice"), again.balance("bob"); alice != 50 || bob != 50 {
		t.Errorf("after the restart alice has %v, bob %v", alice, bob)
	}
	again.booksBalance()
	if code := again.interrupt(); code != process.ExitOK {
		t.Errorf("Ctrl-C ended with code %d, want %d", code, process.ExitOK)
	}
}

// A directory of a version that had fewer services: their outboxes are published too.
func TestEndToEndServicesThatCameLaterArePublished(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	args, http1 := upArgs(t, dir), freeAddr(t)
	if code := start(t, http1, args...).ready().interrupt(); code != process.ExitOK {
		t.Fatalf("Ctrl-C ended with code %d, want %d", code, process.ExitOK)
	}
	postgres, err := sandbox.StartPostgres(t.Context(), sandbox.PostgresConfig{Dir: filepath.Join(dir, "postgres")})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), postgres.URL())
	if err != nil {
		t.Fatal(err)
	}
	const columns = "SELECT DISTINCT attnames::text FROM pg_publication_tables WHERE pubname = 'converge'"
	var before, after string
	if err := conn.QueryRow(t.Context(), columns).Scan(&before); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "ALTER PUBLICATION converge DROP TABLE transfers.outbox, ledger.outbox"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(conn.Close(t.Context()), postgres.Stop(t.Context())); err != nil {
		t.Fatal(err)
	}

	up := start(t, http1, args...).ready()
	if got := up.transferred(up.transfer("one", "nobody", "closed", 1)); got != "FAILED account_not_found" {
		t.Errorf("the transfer ended %s", got)
	}
	if conn, err = pgx.Connect(t.Context(), up.database()); err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), columns)
	if err == nil {
		after, err = pgx.CollectExactlyOneRow(rows, pgx.RowTo[string])
	}
	if err != nil || after != before {
		t.Errorf("of the outboxes %s are published, %s before: %v", after, before, err)
	}
	conn.Close(context.Background())
	if code := up.interrupt(); code != process.ExitOK { // killed, it would leave a PostgreSQL that ends in its own time
		t.Errorf("Ctrl-C ended with code %d, want %d", code, process.ExitOK)
	}
}
