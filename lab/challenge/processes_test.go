package challenge

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The test binary plays the child when it is called as one, and the stub when it is called by a name
// that says which.
func TestMain(m *testing.M) {
	if len(os.Args) > 3 && os.Args[1] == "child" {
		os.Exit(playChild(os.Args[2], os.Args[3]))
	}
	if fault, ok := strings.CutPrefix(filepath.Base(os.Args[0]), stubName); ok {
		os.Exit(playStub(fault, os.Args[1:]))
	}
	os.Exit(testIn(m))
}

// testIn runs the tests with a temporary directory of their own, so that they can see what is left in it.
func testIn(m *testing.M) int {
	dir, err := os.MkdirTemp("", "challenge-test-")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := errors.Join(os.Chmod(dir, 0o755), os.Setenv("TMPDIR", dir)); err != nil { // PostgreSQL's account must pass
		fmt.Println(err)
		return 1
	}
	return m.Run()
}

func playChild(role, address string) int {
	switch role {
	case "stumbles":
		fmt.Println("no such database")
		return 3
	case "parent":
		grandchild := exec.Command("sleep", "1000")
		if err := grandchild.Start(); err != nil {
			return 1
		}
		fmt.Println("grandchild", grandchild.Process.Pid)
	}
	var asked atomic.Int32
	http.HandleFunc("/readyz", func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	fmt.Println(http.ListenAndServe(address, nil))
	return 1
}

func newChild(t *testing.T, role string) *child {
	t.Helper()
	address, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	c := &child{name: role, binary: os.Args[0], args: []string{"child", role, address}, http: address, log: filepath.Join(t.TempDir(), "log")}
	t.Cleanup(c.kill)
	return c
}

func alive(pid int) bool { return !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }

func TestAKilledProcessLeavesNothingAndStartsAgain(t *testing.T) {
	c := newChild(t, "parent")
	for range 2 {
		if err := c.start(); err != nil {
			t.Fatal(err)
		}
		if err := c.ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		lines := strings.Fields(c.tail())
		grandchild, err := strconv.Atoi(lines[len(lines)-1])
		if err != nil {
			t.Fatal(err)
		}
		leader := c.cmd.Process.Pid
		c.kill()
		until(t, "the process and its child gone", func() bool { return !alive(leader) && zombieOrGone(grandchild) })
	}
}

// zombieOrGone: an orphan's end is seen to by init, which need not be quick about it.
func zombieOrGone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

func TestAProcessThatStumblesIsReportedWithItsWords(t *testing.T) {
	c := newChild(t, "stumbles")
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	err := c.ready(t.Context())
	if err == nil || !strings.Contains(err.Error(), "no such database") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v", err)
	}
	if !c.ended() {
		t.Error("it is said to run")
	}
}

func TestChildrenGetNoFlagsFromTheEnvironment(t *testing.T) {
	t.Setenv("CONVERGE_HTTP", "127.0.0.1:1")
	t.Setenv("DATABASE_URL", "postgres://elsewhere")
	t.Setenv("KEPT", "yes")
	got := strings.Join(environment(), "\n")
	if strings.Contains(got, "CONVERGE_HTTP") || strings.Contains(got, "DATABASE_URL") || !strings.Contains(got, "KEPT=yes") {
		t.Errorf("environment is\n%s", got)
	}
}

func TestImpossibleChallengesAreRefused(t *testing.T) {
	good := Config{Binary: "x", Report: "y", Out: os.Stdout}.withDefaults()
	if err := good.validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"too few users":         func(c *Config) { c.Users = 10 },
		"no outage to speak of": func(c *Config) { c.Outage = time.Second },
		"half of the engines":   func(c *Config) { c.Brokers = []string{"127.0.0.1:9"} },
		"nowhere to print":      func(c *Config) { c.Out = nil },
	} {
		c := good
		spoil(&c)
		if c.validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
