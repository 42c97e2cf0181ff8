// Package pgtest gives a test a real PostgreSQL database of its own.
//
// The guarantee: each database is fresh, lives in a server that only this test process uses, and is gone
// when the test ends; the server ends with the process, however it ends. It fails to hold for the server
// named by CONVERGE_TEST_DATABASE, which is shared: databases a killed test leaves there stay.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"converge/internal/sandbox"
)

var server = sync.OnceValues(startServer)

var serial atomic.Int64

// URL returns the URL of a fresh, empty database; its user is a superuser.
func URL(t testing.TB) string {
	t.Helper()
	return create(t, "")
}

var (
	templatesMu sync.Mutex
	templates   = map[string]string{}
)

// Database returns the URL of a fresh database that migrate has prepared. Databases with one key share a
// template, so migrate runs once per test process.
func Database(t testing.TB, key string, migrate func(ctx context.Context, databaseURL string) error) string {
	t.Helper()
	templatesMu.Lock()
	template, ok := templates[key]
	if !ok {
		base, err := server()
		if err != nil {
			t.Fatalf("starting PostgreSQL: %v", err)
		}
		template = fmt.Sprintf("converge_template_%d_%d", os.Getpid(), serial.Add(1))
		if err := execute(base, "CREATE DATABASE "+template); err != nil {
			templatesMu.Unlock()
			t.Fatalf("creating the template: %v", err)
		}
		if err := migrate(context.Background(), named(base, template)); err != nil {
			templatesMu.Unlock()
			t.Fatalf("migrating the template: %v", err)
		}
		templates[key] = template
	}
	templatesMu.Unlock()
	return create(t, template)
}

// AwaitBlocked returns when so many sessions of the database wait for another's lock. It fails the test after
// 20 s.
func AwaitBlocked(t testing.TB, databaseURL string, sessions int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	const sql = `
SELECT count(*)
FROM pg_stat_activity
WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0`
	for {
		var blocked int
		if err := conn.QueryRow(ctx, sql).Scan(&blocked); err != nil {
			t.Fatalf("%d sessions wait for a lock, not %d: %v", blocked, sessions, err)
		}
		if blocked >= sessions {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func create(t testing.TB, template string) string {
	t.Helper()
	base, err := server()
	if err != nil {
		t.Fatalf("starting PostgreSQL: %v", err)
	}
	name := fmt.Sprintf("converge_test_%d_%d", os.Getpid(), serial.Add(1))
	statement := "CREATE DATABASE " + name
	if template != "" {
		statement += " TEMPLATE " + template
	}
	if err := execute(base, statement); err != nil {
		t.Fatalf("creating the database: %v", err)
	}
	t.Cleanup(func() {
		drop := fmt.Sprintf("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = '%s' AND active", name)
		_ = execute(base, drop)
		deadline := time.Now().Add(10 * time.Second)
		for {
			err := execute(base, fmt.Sprintf("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '%s'", name))
			if err == nil {
				err = execute(base, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
			}
			if err == nil || time.Now().After(deadline) {
				if err != nil {
					t.Logf("dropping the test's database: %v", err)
				}
				return
			}
			<-time.After(50 * time.Millisecond)
		}
	})
	return named(base, name)
}

func named(base, database string) string {
	u, err := url.Parse(base)
	if err != nil {
		return base
	}
	u.Path = "/" + database
	return u.String()
}

func execute(databaseURL, statement string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, statement)
	return err
}

// startServer returns the URL of a server for this process. It ends with the process: the kernel sees to
// that on Linux; elsewhere the next one on its directory would, but a test's directory has no next.
func startServer() (string, error) {
	if u := os.Getenv("CONVERGE_TEST_DATABASE"); u != "" {
		return u, nil
	}
	sweepUp()
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", prefix, os.Getpid()))
	if err != nil {
		return "", err
	}
	p, err := sandbox.StartPostgres(context.Background(), sandbox.PostgresConfig{Dir: dir, Volatile: true})
	if err != nil {
		return "", err
	}
	return p.URL(), nil
}

const prefix = "converge-pgtest-"

// sweepUp removes the directories of test processes that are gone: a test process has no last moment in
// which it could remove its own.
func sweepUp() {
	found, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*")) // the pattern is well formed
	for _, dir := range found {
		owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), prefix), "-")
		if pid, err := strconv.Atoi(owner); err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			_ = os.RemoveAll(dir) // its server may be on its way out; then the next sweep gets it
		}
	}
}
