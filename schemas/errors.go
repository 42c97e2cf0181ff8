package schemas

import (
	"errors"
	"fmt"
)

// ErrUnknownType is the cause of a [ValueError] whose event type no schema describes.
var ErrUnknownType = errors.New("no schema describes this event type")

// ErrNoRegistry is the cause of a [ValueError] for an Avro value that meets a codec without a registry.
var ErrNoRegistry = errors.New("the value is Avro, and no schema registry is configured to look its schema up")

// ValueError says that a value cannot be read or written under the schema of its event type, now or
// later: it is malformed, of another type, or lacks what the schema demands. It is permanent in the
// sense of consumers/event.
type ValueError struct {
	EventType string
	SchemaID  int // of an Avro value's writer; 0 when there is none
	Err       error
}

func (e *ValueError) Error() string {
	what := e.EventType
	if what == "" {
		what = "a value of unknown type"
	}
	if e.SchemaID != 0 {
		return fmt.Sprintf("%s (schema id %d): %v", what, e.SchemaID, e.Err)
	}
	return fmt.Sprintf("%s: %v", what, e.Err)
}

// Unwrap returns the cause.
func (e *ValueError) Unwrap() error { return e.Err }

// Permanent reports true: no retry mends a value.
func (e *ValueError) Permanent() bool { return true }
