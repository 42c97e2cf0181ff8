//go:build unix && !linux

package kafkatest

import "syscall"

// attributes puts the broker into a group of its own, so that the terminal's Ctrl-C does not reach it.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
