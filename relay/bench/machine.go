package main

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

// cpuSeconds returns the processor time that a process has used, in user and system mode.
func cpuSeconds(pid int) (float64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("reading a process's processor time: %w", err)
	}
	// The name in parentheses may hold anything; what is counted stands behind it.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const utime, stime = 11, 12
	if len(fields) <= stime {
		return 0, fmt.Errorf("reading a process's processor time: %q", stat)
	}
	var ticks float64
	for _, field := range fields[utime : stime+1] {
		n, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return 0, fmt.Errorf("reading a process's processor time: %w", err)
		}
		ticks += n
	}
	return ticks / ticksPerSecond, nil
}

// peakBytes returns the largest resident size that a process has had since its start or the last forgetPeak.
func peakBytes(pid int) (int64, error) {
	status, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("reading a process's memory: %w", err)
	}
	defer status.Close()
	for lines := bufio.NewScanner(status); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("reading a process's memory: %w", err)
			}
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("reading a process's memory: process %d has none", pid)
}

// forgetPeak makes the present resident size the largest (proc(5), clear_refs).
func forgetPeak(pid int) error {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		return fmt.Errorf("resetting a process's peak of memory: %w", err)
	}
	return nil
}

// processorTime is the first line of /proc/stat, in ticks.
type processorTime struct{ total, idle, stolen float64 }

func readProcessorTime() (p processorTime, err error) {
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
		p.total += n
		switch i {
		case idle, iowait:
			p.idle += n
		case steal:
			p.stolen += n
		}
	}
	return p, nil
}

func (p processorTime) since(before processorTime) processorTime {
	return processorTime{p.total - before.total, p.idle - before.idle, p.stolen - before.stolen}
}

// Machine is what the figures were measured on.
type Machine struct {
	Processor   string `json:"processor"`
	Cores       int    `json:"cores"`
	MemoryBytes int64  `json:"memory_bytes"`
	Kernel      string `json:"kernel"`
}

func describeMachine() Machine {
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

// freeBytes returns how much a directory's file system has room for.
func freeBytes(dir string) (int64, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(filepath.Clean(dir), &fs); err != nil {
		return 0, fmt.Errorf("looking for room in %s: %w", dir, err)
	}
	return int64(fs.Bavail) * int64(fs.Bsize), nil
}
