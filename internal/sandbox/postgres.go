package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// PostgresConfig says where a server lives and how it runs.
type PostgresConfig struct {
	Dir      string       // its own directory; made if need be, reused if it is there
	Binaries string       // where postgres, initdb and pg_ctl are; "" finds or fetches them
	Port     int          // on 127.0.0.1; 0 takes a free one
	Progress func(string) // told what takes long; nil is nobody
	// Volatile trades durability for speed: data may be lost when the machine goes down. For tests.
	Volatile bool
	// Settings of the server, over those that it has anyway. For tests.
	Settings map[string]string
}

// Postgres is a running server. Its methods are safe for concurrent use.
type Postgres struct {
	Version int    // major
	Bin     string // where its binaries are
	Dir     string

	port int
	pid  int
	done chan struct{}
	err  error // how it ended; valid once done is closed
}

const superuser = "converge"

// StartPostgres starts a server with wal_level=logical and returns when it answers. A server that an
// earlier process left behind in the directory is stopped first. The server is stopped by Stop, or by
// the kernel when this process dies.
func StartPostgres(ctx context.Context, cfg PostgresConfig) (*Postgres, error) {
	progress := cfg.Progress
	if progress == nil {
		progress = func(string) {}
	}
	bin, version, err := findBinaries(ctx, cfg.Binaries, progress)
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("resolving %s: %w", cfg.Dir, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of PostgreSQL: %w", err)
	}
	acct, err := serverAccount(dir)
	if err != nil {
		return nil, err
	}
	p := &Postgres{Version: version, Bin: bin, Dir: dir, port: cfg.Port, done: make(chan struct{})}
	if err := p.prepare(ctx, acct, progress, cfg.Volatile); err != nil {
		return nil, err
	}
	if p.port == 0 {
		if p.port, err = freePort(); err != nil {
			return nil, err
		}
	}
	if err := p.start(acct, cfg.Volatile, cfg.Settings); err != nil {
		return nil, err
	}
	if err := p.await(ctx); err != nil {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return nil, errors.Join(err, p.Stop(stopping))
	}
	return p, nil
}

func (p *Postgres) data() string    { return filepath.Join(p.Dir, "data") }
func (p *Postgres) logFile() string { return filepath.Join(p.Dir, "postgres.log") }

// prepare leaves a data directory that no server works in.
func (p *Postgres) prepare(ctx context.Context, acct account, progress func(string), volatile bool) error {
	switch text, err := os.ReadFile(filepath.Join(p.data(), "PG_VERSION")); {
	case errors.Is(err, os.ErrNotExist):
		progress("preparing a new PostgreSQL data directory")
		return p.initdb(ctx, acct, volatile)
	case err != nil:
		return fmt.Errorf("reading the data directory of PostgreSQL: %w", err)
	case string(bytes.TrimSpace(text)) != strconv.Itoa(p.Version):
		return fmt.Errorf("%s belongs to PostgreSQL %s, but the server found is version %d: install that version, or remove the directory to begin anew",
			p.data(), bytes.TrimSpace(text), p.Version)
	}
	if _, err := os.Stat(filepath.Join(p.data(), "postmaster.pid")); err != nil {
		return nil
	}
	// A server is left over, or only its file. pg_ctl tells the two apart, and waits for a server that is
	// already on its way out.
	progress("stopping a PostgreSQL that an earlier run left behind")
	stop := exec.CommandContext(ctx, filepath.Join(p.Bin, "pg_ctl"), "stop", "-D", p.data(), "-m", "fast", "-w", "-t", "30")
	stop.SysProcAttr = acct.attributes()
	_ = stop.Run() // a stale file makes it fail; the start below has the last word
	return nil
}

func (p *Postgres) initdb(ctx context.Context, acct account, volatile bool) error {
	// Into another name first: a kill halfway leaves nothing that looks like a data directory.
	fresh := p.data() + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return fmt.Errorf("clearing %s: %w", fresh, err)
	}
	args := []string{"-D", fresh, "-U", superuser, "-A", "trust", "-E", "UTF8", "--locale=C"}
	if volatile {
		args = append(args, "--no-sync")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(p.Bin, "initdb"), args...)
	cmd.SysProcAttr = acct.attributes()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("preparing %s with initdb: %s (%w)", p.Dir, cause(out), err)
	}
	if err := os.Rename(fresh, p.data()); err != nil {
		return fmt.Errorf("putting the new data directory in place: %w", err)
	}
	return nil
}

// cause returns the line in which a program of PostgreSQL's says why it ended.
func cause(output []byte) []byte {
	lines := bytes.Split(bytes.TrimSpace(output), []byte("\n"))
	for _, mark := range []string{"FATAL:", "PANIC:", "error:", "ERROR:"} {
		for _, line := range lines {
			if _, text, found := bytes.Cut(line, []byte(mark)); found {
				return bytes.TrimSpace(text)
			}
		}
	}
	return lines[len(lines)-1]
}

func (p *Postgres) start(acct account, volatile bool, own map[string]string) error {
	log, err := os.OpenFile(p.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("opening the log of PostgreSQL: %w", err)
	}
	defer log.Close()
	settings := map[string]string{
		"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "wal_level": "logical",
		"max_connections": "200", "max_replication_slots": "20", "max_wal_senders": "20",
		"shared_buffers": "64MB", "max_slot_wal_keep_size": "4GB", "max_wal_size": "1GB",
		"wal_sender_timeout": "10s", "log_checkpoints": "off",
	}
	if volatile {
		settings["fsync"], settings["full_page_writes"] = "off", "off"
	}
	maps.Copy(settings, own)
	args := []string{"-D", p.data(), "-p", strconv.Itoa(p.port)}
	for name, value := range settings {
		args = append(args, "-c", name+"="+value)
	}
	cmd := exec.Command(filepath.Join(p.Bin, "postgres"), args...)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, acct.attributes()
	started := make(chan error)
	go func() {
		// The kernel signals a child when the thread that started it ends, so this thread waits with it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("starting PostgreSQL: %w", err)
	}
	p.pid = cmd.Process.Pid
	return nil
}

// await returns when the server answers and its database is there.
func (p *Postgres) await(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(60 * time.Second) // recovery after a crash takes its time
	defer limit.Stop()
	for {
		err := p.createDatabase(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("PostgreSQL ended at its start: %s (%w); its log is %s", cause(p.logTail()), p.err, p.logFile())
		case <-ctx.Done():
			return ctx.Err()
		case <-limit.C:
			return fmt.Errorf("PostgreSQL does not answer: %w; its log is %s", err, p.logFile())
		case <-tick.C:
		}
	}
}

func (p *Postgres) createDatabase(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, p.address("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	var there bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", superuser).Scan(&there); err != nil || there {
		return err
	}
	_, err = conn.Exec(ctx, "CREATE DATABASE "+superuser)
	return err
}

func (p *Postgres) logTail() []byte {
	text, err := os.ReadFile(p.logFile())
	if err != nil {
		return []byte(err.Error())
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-5):], []byte("\n"))
}

// URL returns how to reach the server's database as its superuser.
func (p *Postgres) URL() string { return p.address(superuser) }

func (p *Postgres) address(database string) string {
	u := url.URL{Scheme: "postgres", User: url.User(superuser), Path: "/" + database, RawQuery: "sslmode=disable",
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port))}
	return u.String()
}

// PID is the postmaster's process id.
func (p *Postgres) PID() int { return p.pid }

// Port returns the port on 127.0.0.1.
func (p *Postgres) Port() int { return p.port }

// Done is closed when the server has ended, however it did.
func (p *Postgres) Done() <-chan struct{} { return p.done }

// Signal sends a signal to the server's main process: SIGSTOP, SIGKILL and the like, for drills.
func (p *Postgres) Signal(s syscall.Signal) error { return syscall.Kill(p.pid, s) }

// Stop asks the server for a fast shutdown and waits for it; when ctx ends, it is made to stop at once.
func (p *Postgres) Stop(ctx context.Context) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	if err := p.Signal(syscall.SIGINT); err != nil {
		return fmt.Errorf("stopping PostgreSQL: %w", err)
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
	}
	_ = p.Signal(syscall.SIGQUIT) // its next start recovers
	<-p.done
	return fmt.Errorf("PostgreSQL did not stop in time, and was made to: %w", ctx.Err())
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("looking for a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
