package event

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Class says what kind of trouble an error is, and so what the runtime does about it.
type Class int

const (
	// ClassRetriable is trouble with this event: it climbs the retry ladder, one attempt counted.
	ClassRetriable Class = iota
	// ClassPermanent is trouble that no retry mends: the event is a dead letter at once.
	ClassPermanent
	// ClassInfrastructure is trouble with what everything leans on: the consumer pauses and probes,
	// and no attempt is counted.
	ClassInfrastructure
	// ClassContention is a lost race between transactions: the batch runs again at once.
	ClassContention
)

// String returns the class as metrics and dead letters name it.
func (c Class) String() string {
	switch c {
	case ClassPermanent:
		return "permanent"
	case ClassInfrastructure:
		return "infrastructure"
	case ClassContention:
		return "contention"
	default:
		return "retriable"
	}
}

type permanent struct{ err error }

func (p permanent) Error() string   { return p.err.Error() }
func (p permanent) Unwrap() error   { return p.err }
func (p permanent) Permanent() bool { return true }

// Permanent marks err as one that no retry mends: the event becomes a dead letter at once, with its
// bytes and the error's text. Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return permanent{err}
}

// Permanentf is Permanent(fmt.Errorf(format, args...)).
func Permanentf(format string, args ...any) error {
	return permanent{fmt.Errorf(format, args...)}
}

type retryAfter struct {
	err   error
	delay time.Duration
}

func (r retryAfter) Error() string { return r.err.Error() }
func (r retryAfter) Unwrap() error { return r.err }

// RetryAfter marks err as retriable not before d has passed. The ladder's own delay applies when it is
// longer. RetryAfter(nil, d) is nil.
func RetryAfter(err error, d time.Duration) error {
	if err == nil {
		return nil
	}
	return retryAfter{err, d}
}

// Delay returns the least delay that err asks for by [RetryAfter], 0 when none.
func Delay(err error) time.Duration {
	var r retryAfter
	if errors.As(err, &r) {
		return r.delay
	}
	return 0
}

// Classify decides what kind of trouble err is. What err says of itself comes first (methods
// Permanent() bool and Infrastructure() bool anywhere in its chain), then PostgreSQL's SQLSTATE, then
// lost connections. Classify(nil) is meaningless.
//
// A deadline is infrastructure: handlers have no deadline of their own but the batch's, and a slow
// database is not the event's fault.
func Classify(err error) Class {
	var p interface{ Permanent() bool }
	if errors.As(err, &p) && p.Permanent() {
		return ClassPermanent
	}
	var i interface{ Infrastructure() bool }
	if errors.As(err, &i) && i.Infrastructure() {
		return ClassInfrastructure
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return classifySQLState(pg.Code)
	}
	var connect *pgconn.ConnectError
	var network net.Error
	if errors.As(err, &connect) || errors.As(err, &network) || pgconn.SafeToRetry(err) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) ||
		errors.Is(err, net.ErrClosed) {
		return ClassInfrastructure
	}
	return ClassRetriable
}

// classifySQLState follows appendix A of the PostgreSQL manual: class 08 connection exceptions, 53
// insufficient resources, 57P operator intervention, 25006 read only (a demoted primary), 57014
// statement timeout; 40001, 40P01 and 55P03 are lost races; 22 is data that does not fit its type (a NUL
// in a text, a number out of range), today and tomorrow.
func classifySQLState(code string) Class {
	switch code {
	case "40001", "40P01", "55P03":
		return ClassContention
	case "25006", "57014":
		return ClassInfrastructure
	}
	if strings.HasPrefix(code, "08") || strings.HasPrefix(code, "53") || strings.HasPrefix(code, "57P") ||
		strings.HasPrefix(code, "58") || strings.HasPrefix(code, "XX") {
		return ClassInfrastructure
	}
	if strings.HasPrefix(code, "22") {
		return ClassPermanent
	}
	return ClassRetriable
}
