package relay

import (
	"crypto/tls"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"converge/internal/kafkaauth"
)

// ErrDrainTimedOut is what [Relay.Run] returns when its context ended and Kafka did not acknowledge
// what was under way within [Config].DrainTimeout. Nothing is lost: it is sent again.
var ErrDrainTimedOut = errors.New("drain timed out: what is not confirmed will be sent again")

// fatalError ends Run: no waiting mends it, someone has to act.
type fatalError struct {
	err error
	fix string // what to do, in the imperative
}

func (f *fatalError) Error() string { return fmt.Sprintf("%v: %s", f.err, f.fix) }
func (f *fatalError) Unwrap() error { return f.err }

// SQLSTATEs that need telling apart, from appendix A of the PostgreSQL manual.
const (
	stateObjectInUse         = "55006" // the slot is active: another relay reads it
	stateDuplicateObject     = "42710"
	stateUniqueViolation     = "23505" // two sessions create one catalogue entry
	statePrivilege           = "42501"
	stateUndefinedDatabase   = "3D000"
	stateInvalidAuth         = "28000"
	stateInvalidPassword     = "28P01"
	stateUndefinedColumn     = "42703"
	stateUndefinedTable      = "42P01"
	stateUndefinedFile       = "58P01" // the WAL that the slot needs is gone
	stateConfigLimitExceeded = "53400" // all replication slots are in use
)

// lasting maps the SQLSTATEs that no waiting mends to what does.
var lasting = map[string]string{
	stateUndefinedFile:       "the WAL that the slot needs is gone: drop the slot, make it anew and send the rows it missed again",
	stateConfigLimitExceeded: "raise max_replication_slots, or drop a slot that nobody reads",
}

// misconfigured is the same for SQLSTATEs that mean a wrong configuration at first, and an outage of
// some kind (a rotated password, a server restored) once it has worked.
var misconfigured = map[string]string{
	statePrivilege:         "use a role with the REPLICATION attribute that owns the outbox tables or may SELECT from them",
	stateUndefinedDatabase: "name a database that exists in the database URL",
	stateInvalidAuth:       "use a role that exists and that pg_hba.conf admits, for replication too",
	stateInvalidPassword:   "give the right password in the database URL",
}

// misconfiguredError is the same for what is no SQLSTATE: certificates, and Kafka's own refusals.
type misconfiguredError struct {
	err error
	fix string
}

func (m *misconfiguredError) Error() string { return fmt.Sprintf("%v: %s", m.err, m.fix) }
func (m *misconfiguredError) Unwrap() error { return m.err }

// kafkaRefused returns err as a [misconfiguredError] if Kafka answers and will not have us.
func kafkaRefused(err error) error {
	if fix := kafkaauth.Fix(err); fix != "" {
		return &misconfiguredError{err, fix}
	}
	return err
}

// certificateRefused returns err as a [misconfiguredError] if it is the server's certificate that we do not trust.
func certificateRefused(err error) error {
	var verification *tls.CertificateVerificationError
	if errors.As(err, &verification) {
		return &misconfiguredError{err, "say sslrootcert=FILE in the database URL, the authority that signed the server's certificate, and reach it by a name that is in it"}
	}
	return err
}

// sqlState returns the SQLSTATE in err's chain, "" if there is none.
func sqlState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// asFatal returns err with its fix if it must end Run. Everything else is an outage of one side and
// passes: refused and broken connections, a server that starts or stops (57P0x) or has too many clients
// (53300), and what nobody foresaw. A slot or publication that streaming finds missing or invalidated
// (42704, 55000) is no exception: the checks before the next attempt say exactly what is wrong with it.
func asFatal(err error, hasStreamed bool) (*fatalError, bool) {
	var f *fatalError
	if errors.As(err, &f) {
		return f, true
	}
	var m *misconfiguredError
	if errors.As(err, &m) && !hasStreamed {
		return &fatalError{m.err, m.fix}, true
	}
	state := sqlState(err)
	if fix, ok := lasting[state]; ok {
		return &fatalError{err, fix}, true
	}
	if fix, ok := misconfigured[state]; ok && !hasStreamed {
		return &fatalError{err, fix}, true
	}
	return nil, false
}
