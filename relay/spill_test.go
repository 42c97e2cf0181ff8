package relay

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"converge/relay/pgoutput"
)

// TestReaderNeverWaitsForTheMemoryThatItReadsFrom: what lies in its own arena is not given back while it
// stays there, so a message larger than all memory must get its room beside it.
func TestReaderNeverWaitsForTheMemoryThatItReadsFrom(t *testing.T) {
	const limit = 4 * arenaSize
	memory := newArenas(limit)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	first, err := memory.get(ctx, 1, func() {})
	if err != nil {
		t.Fatal(err)
	}
	first.nextRow(func() *row { return new(row) })
	large, err := memory.get(ctx, limit+1, func() {})
	if err != nil {
		t.Fatalf("a message larger than the limit: %v", err)
	}
	first.leave()
	large.leave()
	// The row of the first is not acknowledged, and nobody sits in it: that is worth waiting for.
	short, cancelShort := context.WithCancel(ctx)
	if _, err := memory.get(short, limit, cancelShort); !errors.Is(err, context.Canceled) {
		t.Errorf("beyond the limit beside an unacknowledged row: %v, want to wait", err)
	}
	first.acknowledge()
	if _, err := memory.get(ctx, limit, func() {}); err != nil {
		t.Error(err)
	}
}

// TestNewerDescriptionOfATableIsKept: behind the commit of a transaction that was sent in blocks, the table is
// what it was described as last, whoever it was told to.
func TestNewerDescriptionOfATableIsKept(t *testing.T) {
	before, since := &layout{described: 1}, &layout{described: 4}
	connection := map[uint32]*layout{1: before, 2: since}
	transaction := map[uint32]*layout{1: {described: 2}, 2: {described: 3}, 3: {described: 2}}
	adopt(connection, transaction)
	if connection[2] != since {
		t.Error("what the connection was told since is the transaction's now")
	}
	if connection[1] == before || connection[3] == nil {
		t.Error("what the transaction was told last is forgotten")
	}
}

// TestFullDiskIsNamed: the error says which directory and what to do, and nothing of it ends the relay for good.
func TestFullDiskIsNamed(t *testing.T) {
	root := t.TempDir()
	s, err := newSpill(root, "slot", identity{System: "1"}, prometheus.NewGauge(prometheus.GaugeOpts{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.start(pgoutput.StreamStart{XID: 7, First: true}); err != nil {
		t.Fatal(err)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("the system has no device that is always full")
	}
	s.file = full
	s.out.Reset(full)
	message := append([]byte("I\x00\x00\x00\x07"), make([]byte, 1000)...)
	for range 2 * spillBuffer / len(message) {
		if err = s.add(message, 1); err != nil {
			break
		}
	}
	if err == nil || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), root) {
		t.Errorf("writing to a full disk: %v, want an error that names %s", err, root)
	}
	if _, fatal := asFatal(err, false); fatal {
		t.Error("a full disk ends the relay for good")
	}
	s.close()
	if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
