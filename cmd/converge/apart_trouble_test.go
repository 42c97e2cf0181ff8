package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"converge/internal/pgtest"
	"converge/internal/process"
	"converge/internal/sandbox"
)

// migrate runs converge migrate to its end.
func migrate(t *testing.T, args ...string) {
	t.Helper()
	m := launch(t, "", nil, append([]string{"migrate"}, args...)...)
	if code := m.wait(120 * time.Second); code != process.ExitOK {
		t.Fatalf("migrate ended with code %d: %s", code, m.output)
	}
}

func TestEndToEndApartWhatStartsWithoutKafkaWaitsAndSaysSo(t *testing.T) {
	t.Parallel()
	kafka := startKafka(t)
	if !kafka.Own() {
		t.Skip("KAFKA_BROKERS names a cluster that is not this test's to kill")
	}
	database := pgtest.URL(t)
	migrate(t, "--database", database)
	kafka.Kill()
	at := []string{"--database", database, "--brokers", kafka.Brokers()}
	a := &apart{t: t, processes: map[string]*running{
		"orders":  start(t, freeAddr(t), append([]string{"serve", "orders", "--format", "json"}, at...)...),
		"relay":   start(t, freeAddr(t), append([]string{"relay", "--on-missing-slot", "backfill"}, at...)...),
		"console": start(t, freeAddr(t), append([]string{"console"}, at...)...),
	}}
	for _, name := range a.names() {
		a.unready(name, "kafka", kafka.Brokers())
	}
	answer := a.processes["orders"].do("POST", "/orders", `{"customer_id":"c-1","items":[{"sku":"BOOK-1","quantity":1}]}`,
		map[string]string{"Idempotency-Key": "early"})
	if err := wants(http.StatusServiceUnavailable, answer); err != nil {
		t.Errorf("POST /orders before the service has begun: %v", err)
	}
	kafka.Restart()
	a.allReady()
}

func TestEndToEndApartWhatStartsWithoutItsDatabaseWaitsAndSaysWhatToDo(t *testing.T) {
	t.Parallel()
	kafka, addr := startKafka(t), freeAddr(t)
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	var number int
	if _, err := fmt.Sscan(port, &number); err != nil {
		t.Fatal(err)
	}
	a := &apart{t: t, dir: t.TempDir(), processes: map[string]*running{}}
	a.startPostgres(number) // makes the database: a server that answers without it would be a wrong URL
	if err := a.postgres.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	database := "postgres://converge@" + addr + "/converge"
	at := []string{"--database", database, "--brokers", kafka.Brokers()}
	a.processes["orders"] = start(t, freeAddr(t), append([]string{"serve", "orders", "--format", "json"}, at...)...)
	a.processes["relay"] = start(t, freeAddr(t), append([]string{"relay", "--on-missing-slot", "backfill", "--table", "orders.outbox"}, at...)...)
	for _, name := range a.names() {
		a.unready(name, "database")
	}
	a.startPostgres(number)
	defer func() {
		if err := a.postgres.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	a.unready("orders", "converge migrate")
	migrate(t, "--database", database, "--brokers", kafka.Brokers())
	a.allReady()
}

// replicaLevel returns the URL of a foreign server whose wal_level is the default, replica.
func replicaLevel(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "converge-replica-") // the test's own is closed to the server's account
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p, err := sandbox.StartPostgres(t.Context(), sandbox.PostgresConfig{Dir: dir, Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(t.Context()); err != nil { // its data and its binaries are wanted
		t.Fatal(err)
	}
	data := filepath.Join(p.Dir, "data")
	info, err := os.Stat(data)
	if err != nil {
		t.Fatal(err)
	}
	server := exec.Command(filepath.Join(p.Bin, "postgres"), "-D", data, "-p", fmt.Sprint(p.Port()), "-c", "wal_level=replica",
		"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off")
	if owner, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		server.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}}
	}
	output := &lockedBuffer{}
	server.Stdout, server.Stderr = output, output
	done, err := process.StartChild(server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGINT) // ended already: done says so
		<-done
	})
	eventually(t, 60*time.Second, func() error {
		conn, err := pgx.Connect(t.Context(), p.URL())
		if err == nil {
			return conn.Close(t.Context())
		}
		return fmt.Errorf("%w; the server printed %q", err, output.String())
	})
	return p.URL()
}

func TestEndToEndApartADatabaseWithoutLogicalDecodingIsRefusedWithTheFix(t *testing.T) {
	t.Parallel()
	database, kafka := replicaLevel(t), startKafka(t)
	migrate(t, "--database", database, "--brokers", kafka.Brokers())
	for name, args := range map[string][]string{
		"up":    {"up", "--dir", t.TempDir(), "--database", database, "--brokers", kafka.Brokers(), "--registry", freeAddr(t)},
		"relay": {"relay", "--on-missing-slot", "backfill", "--database", database, "--brokers", kafka.Brokers()},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, freeAddr(t), args...)
			if code := r.wait(60 * time.Second); code != process.ExitFailed {
				t.Errorf("exit code %d, want %d", code, process.ExitFailed)
			}
			text := r.output.String()
			const fix = "wal_level is replica: ALTER SYSTEM SET wal_level = 'logical', then restart PostgreSQL\n"
			if !strings.HasSuffix(text, fix) || strings.Count(text, "converge: ") != 1 {
				t.Errorf("printed %q, want one line at the end that says %q", text, fix)
			}
		})
	}
}
