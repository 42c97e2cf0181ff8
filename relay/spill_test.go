package relay

import (
	"context"
	"errors"
	"testing"
	"time"
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
