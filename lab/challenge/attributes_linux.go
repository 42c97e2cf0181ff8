package challenge

import "syscall"

// attributes puts a child into a group of its own, and has the kernel kill it when the thread that
// started it ends, which is when this process dies.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
