// Package usage tells what processes and the machine use, for benchmarks that share their cores with what they
// measure.
//
// The figures are those of Linux's /proc; elsewhere every function returns an error. Functions are safe for
// concurrent use.
package usage

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// ticksPerSecond is USER_HZ, in which /proc counts processor time; it is 100 on every Linux that Go runs on.
const ticksPerSecond = 100

// CPU returns the processor time that a process has used, in seconds of user and system mode.
func CPU(pid int) (float64, error) {
	times, err := stat(pid)
	if err != nil {
		return 0, err
	}
	return times.own, nil
}

// Family returns the processor time, in seconds, of a process and of its children, those included that have ended
// and that it has waited for: of a PostgreSQL, when pid is its postmaster.
func Family(pid int) (float64, error) {
	for {
		before, err := stat(pid)
		if err != nil {
			return 0, err
		}
		children, err := childrenTime(pid)
		if err != nil {
			return 0, err
		}
		after, err := stat(pid)
		if err != nil {
			return 0, err
		}
		if after.ended == before.ended { // else one ended meanwhile, and was counted twice or not at all
			return after.own + after.ended + children, nil
		}
	}
}

func childrenTime(pid int) (sum float64, err error) {
	processes, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, fmt.Errorf("looking for processes: %w", err)
	}
	for _, file := range processes {
		child, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			continue
		}
		if times, err := stat(child); err == nil && times.parent == pid { // else it has ended since
			sum += times.own
		}
	}
	return sum, nil
}

// times is what proc_pid_stat(5) says of a process, in seconds.
type times struct {
	parent int
	own    float64
	ended  float64 // of children that were waited for
}

func stat(pid int) (times, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return times{}, fmt.Errorf("reading a process's processor time: %w", err)
	}
	// The name in parentheses may hold anything; what is counted stands behind it.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const ppid, utime, stime, cutime, cstime = 1, 11, 12, 13, 14
	if len(fields) <= cstime {
		return times{}, fmt.Errorf("reading a process's processor time: %q", text)
	}
	var n [cstime + 1]float64
	for _, at := range []int{ppid, utime, stime, cutime, cstime} {
		if n[at], err = strconv.ParseFloat(fields[at], 64); err != nil {
			return times{}, fmt.Errorf("reading a process's processor time: %w", err)
		}
	}
	return times{int(n[ppid]), (n[utime] + n[stime]) / ticksPerSecond, (n[cutime] + n[cstime]) / ticksPerSecond}, nil
}

// Resident returns how much memory a process holds, in bytes.
func Resident(pid int) (int64, error) { return memory(pid, "VmRSS:") }

// Peak returns the largest resident size, in bytes, that a process has had since its start or the last [ForgetPeak].
func Peak(pid int) (int64, error) { return memory(pid, "VmHWM:") }

func memory(pid int, what string) (int64, error) {
	status, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("reading a process's memory: %w", err)
	}
	defer status.Close()
	for lines := bufio.NewScanner(status); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), what); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("reading a process's memory: %w", err)
			}
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("reading a process's memory: process %d has none", pid)
}

// ForgetPeak makes the present resident size the largest (proc(5), clear_refs).
func ForgetPeak(pid int) error {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		return fmt.Errorf("resetting a process's peak of memory: %w", err)
	}
	return nil
}

// Processors is the time of all processors since the machine's start, in seconds.
type Processors struct {
	Total  float64
	Idle   float64
	Stolen float64 // by the hypervisor, for other machines
}

// ReadProcessors returns what /proc/stat says.
func ReadProcessors() (p Processors, err error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return p, fmt.Errorf("reading the machine's processor time: %w", err)
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	const idle, iowait, steal = 3, 4, 7 // proc(5); the two behind steal are counted in the first two already
	for i, field := range strings.Fields(line)[1:] {
		n, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return p, fmt.Errorf("reading the machine's processor time: %w", err)
		}
		if i > steal {
			break
		}
		n /= ticksPerSecond
		p.Total += n
		switch i {
		case idle, iowait:
			p.Idle += n
		case steal:
			p.Stolen += n
		}
	}
	return p, nil
}

// Since returns the time between two readings.
func (p Processors) Since(before Processors) Processors {
	return Processors{p.Total - before.Total, p.Idle - before.Idle, p.Stolen - before.Stolen}
}

// Machine is what the figures were measured on.
type Machine struct {
	Processor   string `json:"processor"`
	Cores       int    `json:"cores"`
	MemoryBytes int64  `json:"memory_bytes"`
	Kernel      string `json:"kernel"`
}

// Describe returns what can be found out about the machine.
func Describe() Machine {
	m := Machine{Processor: runtime.GOARCH, Cores: runtime.NumCPU(), Kernel: runtime.GOOS}
	m.Processor = after("/proc/cpuinfo", "model name", m.Processor)
	if kib, err := strconv.ParseInt(strings.TrimSuffix(after("/proc/meminfo", "MemTotal", ""), " kB"), 10, 64); err == nil {
		m.MemoryBytes = kib << 10
	}
	if release, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel += " " + strings.TrimSpace(string(release))
	}
	return m
}

// after returns what follows a name and a colon in a file, otherwise if it is not there.
func after(file, name, otherwise string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return otherwise
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return otherwise
}

// Free returns how much a directory's file system has room for, in bytes.
func Free(dir string) (int64, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(filepath.Clean(dir), &fs); err != nil {
		return 0, fmt.Errorf("looking for room in %s: %w", dir, err)
	}
	return int64(fs.Bavail) * int64(fs.Bsize), nil
}
