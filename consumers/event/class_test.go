package event_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"converge/consumers/event"
)

type unreachable struct{}

func (unreachable) Error() string        { return "the registry is away" }
func (unreachable) Infrastructure() bool { return true }

func state(code string) error { return &pgconn.PgError{Code: code} }

func TestAnErrorsClassSaysWhatIsDoneAboutIt(t *testing.T) {
	for _, c := range []struct {
		err  error
		want event.Class
	}{
		{errors.New("no stock"), event.ClassRetriable},
		{event.RetryAfter(errors.New("busy"), time.Second), event.ClassRetriable},
		{state("23505"), event.ClassRetriable}, // another event may have to come first
		{state("42P01"), event.ClassRetriable},
		{state("P0001"), event.ClassRetriable},
		{event.Permanent(errors.New("no")), event.ClassPermanent},
		{event.Permanentf("order %d", 1), event.ClassPermanent},
		{event.Permanent(state("08006")), event.ClassPermanent}, // what the handler says comes first
		{state("22021"), event.ClassPermanent},                  // a NUL in a text
		{state("22P02"), event.ClassPermanent},                  // a number that is none
		{state("22003"), event.ClassPermanent},                  // out of range
		{state("22001"), event.ClassPermanent},                  // too long
		{unreachable{}, event.ClassInfrastructure},
		{state("08006"), event.ClassInfrastructure},
		{state("53300"), event.ClassInfrastructure},
		{state("57P01"), event.ClassInfrastructure},
		{state("57014"), event.ClassInfrastructure},
		{state("25006"), event.ClassInfrastructure},
		{state("58030"), event.ClassInfrastructure},
		{&net.OpError{Op: "dial", Err: errors.New("refused")}, event.ClassInfrastructure},
		{net.ErrClosed, event.ClassInfrastructure},
		{context.DeadlineExceeded, event.ClassInfrastructure},
		{context.Canceled, event.ClassInfrastructure},
		{state("40001"), event.ClassContention},
		{state("40P01"), event.ClassContention},
		{state("55P03"), event.ClassContention},
	} {
		for _, err := range []error{c.err, fmt.Errorf("charging: %w", c.err), errors.Join(errors.New("and"), c.err)} {
			if got := event.Classify(err); got != c.want {
				t.Errorf("%v is %v, want %v", err, got, c.want)
			}
		}
	}
	if event.Permanent(nil) != nil || event.RetryAfter(nil, time.Second) != nil {
		t.Error("no error became one")
	}
	if got := event.Delay(fmt.Errorf("charging: %w", event.RetryAfter(errors.New("busy"), time.Minute))); got != time.Minute {
		t.Errorf("delay %v", got)
	}
}
