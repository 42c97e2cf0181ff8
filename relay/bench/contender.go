package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"converge/internal/usage"
)

// contender is something that streams a slot.
type contender interface {
	name() string
	// start begins to stream the slot.
	start(ctx context.Context, t task) (pass, error)
}

// task is what a contender is to do.
type task struct {
	slot string
	end  string // the position at which the backlog ends, "" when it goes on
	// swift asks for settings that favour latency over throughput.
	swift bool
}

// pass is a contender at work.
type pass interface {
	// cpu returns the processor seconds that the contender has used, since its start or before it.
	cpu() (float64, error)
	// peak returns the largest resident size in bytes since the start.
	peak() (int64, error)
	// failed returns an error when the contender is not at work any more.
	failed() error
	// stop returns when the contender reads the slot no more.
	stop(ctx context.Context) error
}

// ours is converge relay, in a process of its own for each pass.
type ours struct {
	title, binary, dir, url string
	brokers                 []string
}

// ourName is the relay to which the others are compared.
const ourName = "converge"

func (o *ours) name() string { return o.title }

func (o *ours) start(_ context.Context, t task) (pass, error) {
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	args := []string{"relay", "--database", o.url, "--http", "127.0.0.1:" + ports[0], "--table", tableName,
		"--slot", t.slot, "--publication", publication}
	for _, b := range o.brokers {
		args = append(args, "--brokers", b)
	}
	c, err := startProcess(exec.Command(o.binary, args...), filepath.Join(o.dir, t.slot+".log"))
	if err != nil {
		return nil, fmt.Errorf("starting the relay: %w", err)
	}
	return &alone{c}, nil
}

// alone is a contender that is a process of its own.
type alone struct{ *child }

func (a *alone) cpu() (float64, error) { return usage.CPU(a.pid()) }
func (a *alone) peak() (int64, error)  { return usage.Peak(a.pid()) }
func (a *alone) failed() error         { return a.ended() }

// stop asks for a drain.
func (a *alone) stop(ctx context.Context) error {
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stopping %s: %w", filepath.Base(a.cmd.Path), err)
	}
	select {
	case <-a.done:
	case <-ctx.Done():
		a.kill()
		return ctx.Err()
	case <-time.After(30 * time.Second):
		a.kill()
		return fmt.Errorf("stopping %s: it does not end; its log ends with:\n%s", filepath.Base(a.cmd.Path), a.logTail())
	}
	if !a.cmd.ProcessState.Success() {
		return fmt.Errorf("stopping %w", a.ended())
	}
	return nil
}

// yardstick is pg_recvlogical, which throws away what it receives and ends where the backlog does.
type yardstick struct{ binary, dir, url string }

const yardstickName = "pg_recvlogical"

func (y *yardstick) name() string { return yardstickName }

func (y *yardstick) start(_ context.Context, t task) (pass, error) {
	c, err := startProcess(exec.Command(y.binary, "--dbname", y.url, "--slot", t.slot, "--start", "--no-loop", "--file", "/dev/null",
		"--endpos", t.end, "--option", "proto_version=1", "--option", "binary=true", "--option", "publication_names="+publication),
		filepath.Join(y.dir, t.slot+".log"))
	if err != nil {
		return nil, fmt.Errorf("starting pg_recvlogical: %w", err)
	}
	return &receiving{child: c}, nil
}

// receiving is pg_recvlogical at work. What it used is known when it has ended, but for its memory: there Linux
// counts this process's own, of which it was a copy before it became pg_recvlogical.
type receiving struct {
	*child
	most int64 // of the looks at its memory
}

// await returns when the backlog was received.
func (r *receiving) await(ctx context.Context) error {
	limit := time.NewTimer(5 * patience)
	defer limit.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-r.done:
			return r.failed()
		case <-tick.C:
			if n, err := usage.Peak(r.pid()); err == nil {
				r.most = n
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-limit.C:
			return fmt.Errorf("waiting for pg_recvlogical: %w; its log ends with:\n%s", context.DeadlineExceeded, r.logTail())
		}
	}
}

func (r *receiving) failed() error {
	select {
	case <-r.done:
		if !r.cmd.ProcessState.Success() {
			return r.ended()
		}
	default:
	}
	return nil
}

// cpu is called after await.
func (r *receiving) cpu() (float64, error) {
	return (r.cmd.ProcessState.UserTime() + r.cmd.ProcessState.SystemTime()).Seconds(), nil
}

func (r *receiving) peak() (int64, error) { return r.most, nil }

func (r *receiving) stop(context.Context) error {
	r.kill()
	return nil
}
