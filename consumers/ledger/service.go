package ledger

import (
	"converge/consumers/event"
	"converge/producers/outbox"
)

// Config is what a Service needs.
type Config struct {
	Outbox  *outbox.Outbox
	Decoder event.Decoder
}

// Service is the Ledger. It is safe for concurrent use, and several processes may run it on one database.
type Service struct {
	outbox  *outbox.Outbox
	decoder event.Decoder
}

// New returns the service. It starts nothing and connects to nothing: it works in the transactions that its
// handler is given.
func New(cfg Config) *Service { return &Service{outbox: cfg.Outbox, decoder: cfg.Decoder} }
