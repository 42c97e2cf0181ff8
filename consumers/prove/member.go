package prove

import (
	"time"

	"converge/consumers/retry"
)

// What the run and its members agree on.
const (
	Service     = "tally" // schema, group
	Topic       = "facts"
	EchoTopic   = "echoes"
	EachType    = "Counted"
	BatchType   = "Summed"
	SessionTime = 1500 * time.Millisecond
	// Begun is what a member says when it can be asked to end.
	Begun = "begun"
	// MemberVariable holds a member's configuration, as JSON.
	MemberVariable = "CONVERGE_TEST_MEMBER"
)

// MemberConfig is what a member is told.
type MemberConfig struct {
	Name        string
	DatabaseURL string
	Brokers     []string
	Quick       bool // apply all that comes, in few round trips
}

// Policy is a ladder that a run can climb.
func Policy() retry.Policy {
	return retry.Policy{Rungs: []time.Duration{30 * time.Millisecond, 100 * time.Millisecond, 400 * time.Millisecond}, MaxAttempts: 5}
}
