package kafkatest

import "syscall"

// attributes puts the broker into a group of its own, so that the terminal's Ctrl-C does not reach it, and
// has the kernel kill it when the thread that started it ends, which is when the test process dies.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
