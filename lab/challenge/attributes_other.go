//go:build !linux

package challenge

import "syscall"

// attributes puts a child into a group of its own.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
