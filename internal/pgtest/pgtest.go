// Package pgtest gives a test a real PostgreSQL database of its own.
//
// The guarantee: each database is fresh, lives in a server that only this test process uses, and is gone
// when the test ends; the server ends with the process, however it ends. It fails to hold for the server
// named by CONVERGE_TEST_DATABASE, which is shared: databases a killed test leaves there stay.
package pgtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
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

func startServer() (string, error) {
	if u := os.Getenv("CONVERGE_TEST_DATABASE"); u != "" {
		return u, nil
	}
	bin, err := binaries()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "converge-pg-")
	if err != nil {
		return "", err
	}
	attr, err := unprivileged(dir)
	if err != nil {
		return "", err
	}
	data := filepath.Join(dir, "data")
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", "converge", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	initdb.SysProcAttr, initdb.Dir = attr(), dir
	if out, err := initdb.CombinedOutput(); err != nil {
		return "", fmt.Errorf("initdb: %w\n%s", err, out)
	}
	port, err := freePort()
	if err != nil {
		return "", err
	}
	postgres := exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-p", strconv.Itoa(port), "-k", "",
		"-c", "listen_addresses=127.0.0.1", "-c", "wal_level=logical", "-c", "fsync=off", "-c", "max_connections=300",
		"-c", "max_replication_slots=50", "-c", "max_wal_senders=50", "-c", "shared_buffers=64MB", "-c", "full_page_writes=off")
	postgres.SysProcAttr, postgres.Dir = attr(), dir
	var log bytes.Buffer
	postgres.Stderr = &log
	started := make(chan error)
	// PostgreSQL gets the death signal when the thread that started it ends, so that thread must live on.
	go func() {
		runtime.LockOSThread()
		started <- postgres.Start()
		_ = postgres.Wait()
		_ = os.RemoveAll(dir)
		select {}
	}()
	if err := <-started; err != nil {
		return "", err
	}
	base := fmt.Sprintf("postgres://converge@127.0.0.1:%d/postgres?sslmode=disable", port)
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := execute(base, "SELECT 1")
		if err == nil {
			return base, nil
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("PostgreSQL does not answer: %w", err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func binaries() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path), nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		return "", fmt.Errorf("no PostgreSQL server on this machine: install it")
	}
	return filepath.Dir(found[len(found)-1]), nil
}

// unprivileged gives dir to a user that PostgreSQL accepts and returns how to run as that user.
func unprivileged(dir string) (func() *syscall.SysProcAttr, error) {
	if os.Getuid() != 0 {
		return func() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT} }, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			return nil, err
		}
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if err := os.Chown(dir, uid, gid); err != nil {
		return nil, err
	}
	return func() *syscall.SysProcAttr {
		return &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT, Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}, nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
