package process

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"
)

const parentVariable = "CONVERGE_TEST_PROCESS_PARENT"

// TestMain lets the test binary be a parent that dies: it starts a child, says which, and waits.
func TestMain(m *testing.M) {
	if os.Getenv(parentVariable) == "" {
		os.Exit(m.Run())
	}
	child := exec.Command("sleep", "600")
	if _, err := StartChild(child); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("child", child.Process.Pid)
	select {}
}

func TestAChildDiesWithItsParent(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells a child that its parent is gone")
	}
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), parentVariable+"=1")
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	done, err := StartChild(parent)
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	var pid int
	if _, scanErr := fmt.Sscanf(line, "child %d", &pid); err != nil || scanErr != nil {
		t.Fatalf("the parent said %q: %v", line, errors.Join(err, scanErr))
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-done
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(20 * time.Second)
	defer limit.Stop()
	for gone(pid) != nil {
		select {
		case <-tick.C:
		case <-limit.C:
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("the child outlived its parent: %v", gone(pid))
		}
	}
}

// gone returns nil when the process has ended; a zombie that nobody has waited for yet has.
func gone(pid int) error {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return nil
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	var name, state string
	if _, scanErr := fmt.Sscanf(string(stat), "%d %s %s", &pid, &name, &state); err == nil && scanErr == nil && state == "Z" {
		return nil
	}
	return fmt.Errorf("process %d lives: %s", pid, stat)
}
