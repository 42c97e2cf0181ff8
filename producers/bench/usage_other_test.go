//go:build !linux

package bench

// used and resident are told on Linux only.
func (b *bench) used(*server) float64   { return 0 }
func (b *bench) resident(*server) int64 { return 0 }
