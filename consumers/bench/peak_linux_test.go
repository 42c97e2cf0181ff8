package bench

import "syscall"

// peak returns the largest resident size, which Linux counts in KiB (getrusage(2)).
func peak(u *syscall.Rusage) int64 { return u.Maxrss << 10 }
