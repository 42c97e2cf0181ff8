package process

import (
	"os/exec"
	"runtime"
	"syscall"
)

// StartChild starts cmd in a process group of its own, so that the terminal's Ctrl-C does not reach it, and
// on Linux has the kernel kill it when this process dies, however it does. done is closed when the child has
// ended and cmd.ProcessState says how.
func StartChild(cmd *exec.Cmd) (done <-chan struct{}, err error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	dieWithParent(cmd.SysProcAttr)
	started, ended := make(chan error), make(chan struct{})
	go func() {
		// The kernel kills a child when the thread that started it ends, so this thread waits with it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // ProcessState has it
			close(ended)
		}
	}()
	return ended, <-started
}
