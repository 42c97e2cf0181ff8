package inventory

import (
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/consumers/event"
	"converge/producers/outbox"
)

// Config is what a Service needs.
type Config struct {
	Pool    *pgxpool.Pool // confined to the service's schema; the caller closes it
	Outbox  *outbox.Outbox
	Decoder event.Decoder
}

// Service is Inventory. It is safe for concurrent use, and several processes may run it on one database.
type Service struct {
	pool    *pgxpool.Pool
	outbox  *outbox.Outbox
	decoder event.Decoder
}

// New returns the service. It starts nothing and connects to nothing.
func New(cfg Config) *Service {
	return &Service{pool: cfg.Pool, outbox: cfg.Outbox, decoder: cfg.Decoder}
}
