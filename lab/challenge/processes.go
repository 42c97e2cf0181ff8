package challenge

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"converge/internal/process"
)

// child is one real process of the pipeline, in a process group of its own, so that a fault hits it and
// whatever it started, and the terminal's Ctrl-C does not.
type child struct {
	name   string
	binary string
	args   []string
	env    []string // variables beside this process's own
	http   string   // host:port; it stays the same from one start to the next
	log    string   // a file: what the process prints is appended

	cmd  *exec.Cmd // nil: not running
	done <-chan struct{}
}

// err returns how the process ended, nil for cleanly. done must be closed.
func (c *child) err() error {
	if c.cmd.ProcessState.Success() {
		return nil
	}
	return &exec.ExitError{ProcessState: c.cmd.ProcessState}
}

func (c *child) base() string { return "http://" + c.http }

// freeAddress asks the kernel for a port. Somebody may take it before the child does: then the child
// says so and the run ends without a verdict.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("looking for a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// environment is this process's without the variables that stand for flags: the children are told
// everything by flags, but for what is in more.
func environment(more ...string) []string {
	kept := slices.Clone(more)
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); !strings.HasPrefix(name, "CONVERGE_") && name != "DATABASE_URL" {
			kept = append(kept, pair)
		}
	}
	return kept
}

// start runs the process. It does not wait for it to be ready.
func (c *child) start() error {
	file, err := os.OpenFile(c.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("opening the log of %s: %w", c.name, err)
	}
	defer file.Close() // the child has its own
	cmd := exec.Command(c.binary, c.args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = file, file, environment(c.env...)
	if c.done, err = process.StartChild(cmd); err != nil {
		return fmt.Errorf("starting %s: %w", c.name, err)
	}
	c.cmd = cmd
	return nil
}

// ended reports whether the process has ended, of itself or not.
func (c *child) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// kill ends the process group at once, as kill -9 does, and waits until it is gone.
func (c *child) kill() {
	if c.cmd == nil {
		return
	}
	// The group may outlive its leader, so it is killed in any case; ESRCH says that it did not.
	_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
	<-c.done
	c.cmd = nil
}

// drainTime is how long a process may take to end cleanly.
const drainTime = 15 * time.Second

// stop asks the process to drain and waits for it; whoever doesn't end in time is killed. It returns an
// error when the process did not end cleanly.
func (c *child) stop() error {
	if c.cmd == nil {
		return nil
	}
	defer c.kill()
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already: then done says so
	timer := time.NewTimer(drainTime)
	defer timer.Stop()
	select {
	case <-c.done:
		if err := c.err(); err != nil {
			return fmt.Errorf("%s ended: %w", c.name, err)
		}
		return nil
	case <-timer.C:
		return fmt.Errorf("%s did not end within %v of SIGTERM", c.name, drainTime)
	}
}

const (
	readyTime = 60 * time.Second
	lookEvery = 50 * time.Millisecond
)

// ready waits until the process says that it is. The error carries what it printed last.
func (c *child) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	client := &http.Client{Timeout: 2 * time.Second}
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	reason := "no answer"
	for {
		select {
		case <-ticker.C:
		case <-c.done:
			return fmt.Errorf("%s ended before it was ready: %v\n%s", c.name, c.cmd.ProcessState, c.tail())
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s to be ready (%s): %w\n%s", c.name, reason, ctx.Err(), c.tail())
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base()+"/readyz", nil)
		if err != nil {
			return fmt.Errorf("asking %s whether it is ready: %w", c.name, err)
		}
		res, err := client.Do(req)
		if err != nil {
			continue
		}
		text, _ := io.ReadAll(io.LimitReader(res.Body, 4096))
		res.Body.Close()
		if res.StatusCode == http.StatusOK {
			return nil
		}
		reason = strings.TrimSpace(string(text))
	}
}

// tail is the end of what the process printed.
func (c *child) tail() string {
	text, err := os.ReadFile(c.log)
	if err != nil {
		return ""
	}
	const most = 2000
	return strings.TrimSpace(string(text[max(0, len(text)-most):]))
}

// once runs a command of the binary to its end.
func once(ctx context.Context, binary, dir, name string, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = environment(env...)
	out, err := cmd.CombinedOutput()
	if logErr := os.WriteFile(filepath.Join(dir, name+".log"), out, 0o644); logErr != nil {
		return fmt.Errorf("writing the log of %s: %w", name, logErr)
	}
	if err != nil {
		return fmt.Errorf("running converge %s: %w\n%s", name, err, out)
	}
	return nil
}
