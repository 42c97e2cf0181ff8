//go:build !linux

package bench

import "syscall"

// peak returns the largest resident size, which the BSDs and macOS count in bytes.
func peak(u *syscall.Rusage) int64 { return u.Maxrss }
