package pgoutput

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// LSN is a position in the write-ahead log, in bytes from its beginning. The zero LSN is no position.
type LSN uint64

// String returns the position the way PostgreSQL prints it: two hexadecimal halves, as in 16/B374D848.
func (l LSN) String() string {
	return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l))
}

// ParseLSN reads a position the way PostgreSQL prints it.
func ParseLSN(s string) (LSN, error) {
	high, low, ok := strings.Cut(s, "/")
	if !ok {
		return 0, fmt.Errorf("reading LSN %q: no slash", s)
	}
	h, err := strconv.ParseUint(high, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("reading LSN %q: %w", s, err)
	}
	l, err := strconv.ParseUint(low, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("reading LSN %q: %w", s, err)
	}
	return LSN(h<<32 | l), nil
}

// MarshalText and UnmarshalText write and read the same form, so that JSON has it.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText is the other half of MarshalText.
func (l *LSN) UnmarshalText(text []byte) (err error) {
	*l, err = ParseLSN(string(text))
	return err
}

// epoch is 2000-01-01 00:00:00 UTC, from which PostgreSQL counts microseconds.
const epochUnixMicro = 946_684_800_000_000

// Time converts a timestamp of the wire, microseconds since 2000-01-01 00:00:00 UTC. The results for
// "infinity" and "-infinity" are the far ends of the range, not errors.
func Time(micros int64) time.Time {
	if micros > 1<<63-1-epochUnixMicro {
		micros = 1<<63 - 1 - epochUnixMicro
	}
	return time.UnixMicro(micros + epochUnixMicro).UTC()
}

// Micros converts a time to the wire's microseconds since 2000-01-01 00:00:00 UTC.
func Micros(t time.Time) int64 { return t.UnixMicro() - epochUnixMicro }
