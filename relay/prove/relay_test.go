package prove

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"converge/internal/mutants"
	"converge/internal/process"
)

// Variables that the relay's process understands: the crash point to die at, and the fault that is planted.
const (
	crashVariable = "CONVERGE_TEST_CRASH"
	plantVariable = "PLANTED"
)

// points are the crash points, each with how often it may be passed before the relay dies there: rows pass some
// hundreds of times a second, confirmations once, dead letters now and then.
var points = map[string]int{
	"received": 600, "transaction": 600, "commit": 30, "produced": 600, "acknowledged": 600,
	"dead-letter": 3, "checkpoint": 2, "status": 2, "status-torn": 2, "status-sent": 2, "transaction-end": 20,
	"mark": 10, "marked": 10,
}

// points are those that the plan's relay passes.
func (p *plan) points() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(points)), func(point string) bool {
		switch point {
		case "produced", "acknowledged", "dead-letter":
			return false
		case "transaction-end":
			return !p.Once
		case "mark", "marked":
			return !p.Polls
		default:
			return p.Polls
		}
	})
}

// buildRelay builds the product's command with the crash points in it, and faults if any are given.
func buildRelay(t *testing.T, faults ...mutants.Fault) string {
	t.Helper()
	return mutants.Build(t, faults, "build", "-tags=crashpoints", "converge/cmd/converge")
}

// subject is a relay that runs as a process.
type subject struct {
	command *exec.Cmd
	log     string
	done    <-chan struct{}
	began   time.Time
}

var serial struct {
	sync.Mutex
	n int
}

// start runs `converge relay`. crash is a point and a count, or "".
func (r *run) startRelay(crash string) *subject {
	r.t.Helper()
	serial.Lock()
	serial.n++
	log := filepath.Join(r.logs, fmt.Sprintf("relay-%d.log", serial.n))
	serial.Unlock()
	file, err := os.Create(log)
	if err != nil {
		r.t.Fatal(err)
	}
	defer file.Close() // the relay has its own
	missing := "fail"
	if !r.slotMade {
		missing = "create"
	}
	s := &subject{log: log, command: exec.Command(r.binary, "relay", "--database", r.server.SubjectURL(),
		"--brokers", strings.Join(r.cluster.Addrs(), ","), "--table", table, "--slot", slot, "--on-missing-slot", missing,
		"--http", "127.0.0.1:0")}
	if r.plan.Polls {
		s.command.Args = append(s.command.Args, "--source", "polling")
	}
	if r.plan.Once {
		s.command.Args = append(s.command.Args, "--exactly-once")
	}
	s.command.Env = append(os.Environ(), crashVariable+"="+crash, plantVariable+"="+r.plant)
	s.command.Stdout, s.command.Stderr = file, file
	s.began = time.Now()
	if s.done, err = process.StartChild(s.command); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(s.kill)
	return s
}

// kill ends the process the way a power cut does, and waits until it is gone.
func (s *subject) kill() {
	_ = s.command.Process.Kill() // it may have ended already
	<-s.done
}

// ended reports whether the process is gone.
func (s *subject) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// crashed reports whether it was killed at its crash point, once it has ended.
func (s *subject) crashed() bool {
	status, ok := s.command.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// tail returns the end of its log.
func (s *subject) tail() string {
	text, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4000):])
}
