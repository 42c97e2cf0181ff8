package bench

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// ticks is USER_HZ, which is 100 on every Linux that Go runs on (proc_pid_stat(5)).
const ticks = 100

// used returns the server's CPU seconds so far.
func (b *bench) used(s *server) float64 {
	b.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	must(b.t, err)
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:]) // from the state on, the third
	sum := 0.0
	for _, at := range []int{14, 15} { // utime, stime
		n, err := strconv.ParseFloat(string(fields[at-3]), 64)
		must(b.t, err)
		sum += n
	}
	return sum / ticks
}

// resident returns how much memory the server holds, in bytes.
func (b *bench) resident(s *server) int64 {
	b.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.cmd.Process.Pid))
	must(b.t, err)
	pages, err := strconv.ParseInt(string(bytes.Fields(text)[1]), 10, 64)
	must(b.t, err)
	return pages * int64(os.Getpagesize())
}
