package registry

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/twmb/franz-go/pkg/sr"
)

// UnavailableError says that the registry could not be asked, or failed. It is the infrastructure's in
// the sense of consumers/event.
type UnavailableError struct {
	URL string
	Err error
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("schema registry %s is away: %v", e.URL, e.Err)
}

// Unwrap returns the cause.
func (e *UnavailableError) Unwrap() error { return e.Err }

// Infrastructure reports true: the event is not at fault.
func (e *UnavailableError) Infrastructure() bool { return true }

// RefusedError says that what answers at the URL will not serve this client: a wrong path, credentials
// that are missing. It is the infrastructure's in the sense of consumers/event.
type RefusedError struct {
	URL    string
	Status int // of HTTP
	Err    error
}

func (e *RefusedError) Error() string {
	hint := ""
	switch e.Status {
	case http.StatusNotFound:
		hint = "; is the path right? Apicurio needs /apis/ccompat/v7"
	case http.StatusUnauthorized, http.StatusForbidden:
		hint = "; give credentials as http://user:password@host:port"
	}
	return fmt.Sprintf("schema registry %s answers %d: %v%s", e.URL, e.Status, e.Err, hint)
}

// Unwrap returns the cause.
func (e *RefusedError) Unwrap() error { return e.Err }

// Infrastructure reports true: the event is not at fault.
func (e *RefusedError) Infrastructure() bool { return true }

// UnknownSchemaError says that the registry holds no schema with the id that a value names. It is
// permanent in the sense of consumers/event: ids are given out before values are written.
type UnknownSchemaError struct{ ID int }

func (e *UnknownSchemaError) Error() string {
	return fmt.Sprintf("the schema registry holds no schema with id %d", e.ID)
}

// Permanent reports true.
func (e *UnknownSchemaError) Permanent() bool { return true }

// IncompatibleError says that a present schema cannot read what a registered version wrote.
type IncompatibleError struct {
	Subject string
	Version int // 0 when the registry itself refused and did not say which
	Err     error
}

func (e *IncompatibleError) Error() string {
	if e.Version == 0 {
		return fmt.Sprintf("the schema registry refuses the new schema of %s: %v", e.Subject, e.Err)
	}
	return fmt.Sprintf("the new schema of %s cannot read what version %d wrote: %v", e.Subject, e.Version, e.Err)
}

// Unwrap returns the cause.
func (e *IncompatibleError) Unwrap() error { return e.Err }

func hasCode(err error, code int) bool {
	var r *sr.ResponseError
	return errors.As(err, &r) && r.ErrorCode == code
}

// classify says what an error of the client means. A 404 without the registry's own code is a proxy's or
// a wrong path's: it says nothing about a schema.
func (c *Client) classify(err error) error {
	var r *sr.ResponseError
	if !errors.As(err, &r) {
		return &UnavailableError{URL: c.url, Err: err}
	}
	switch {
	case r.StatusCode == http.StatusRequestTimeout, r.StatusCode == http.StatusTooManyRequests, r.StatusCode >= 500:
		return &UnavailableError{URL: c.url, Err: err}
	default:
		return &RefusedError{URL: c.url, Status: r.StatusCode, Err: err}
	}
}
