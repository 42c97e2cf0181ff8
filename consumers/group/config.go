package group

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/event"
	"converge/consumers/retry"
)

// Config is what a [Group] needs. Name, Brokers, Topics, Pool and Handler must be given.
type Config struct {
	// Name is the Kafka group and the consumer in the tables.
	Name    string
	Brokers []string
	Topics  []string
	// Pool's search_path names the schema with the tables of packages inbox, retry and outbox. The group
	// uses one connection per partition that is at work, and one more.
	Pool    *pgxpool.Pool
	Handler event.Handler
	Retry   retry.Policy
	Guard   Guard
	// InboxRetention is how long the inbox remembers an event after the end of its day; 0 is for ever. See
	// inbox.Days for how long that must be. What comes later is a dead letter, for review.
	InboxRetention time.Duration

	// Delay holds every event back until so long after its commit, as its committed_at says, else its record's
	// timestamp. One that says that it comes from the future waits that long from when it is first seen. What a
	// partition holds behind it waits too. 0 holds nothing back.
	Delay time.Duration

	// ReadModel names what the handler builds; when it is set, the time from commit to effect is observed.
	ReadModel string
	// MaxEvents bounds the events of one transaction; 0 means 500.
	MaxEvents int
	// MaxBytes bounds what is fetched of a broker at once, in bytes, while as much is being applied; 0 means 2 MiB. A
	// partition gets a quarter of it, or one record that is larger.
	MaxBytes int32
	// BatchTime bounds one transaction; it must stay well below the rebalance timeout of 60 s. 0 means 20 s.
	BatchTime time.Duration

	Logger     *slog.Logger          // nil: slog.Default()
	Registerer prometheus.Registerer // nil: metrics are kept but nowhere shown
	// Client is added to the options of the Kafka client: TLS, SASL, a dialer.
	Client []kgo.Opt
}

const rebalanceTime = 60 * time.Second

func (c *Config) withDefaults() (Config, error) {
	filled := *c
	switch {
	case c.Name == "":
		return filled, errors.New("a consumer group needs a name")
	case len(c.Brokers) == 0 || len(c.Topics) == 0:
		return filled, fmt.Errorf("the consumer group %s needs brokers and topics", c.Name)
	case len(c.Handler.Types()) == 0:
		return filled, fmt.Errorf("the consumer group %s needs a handler", c.Name)
	}
	if err := c.Retry.Validate(); err != nil {
		return filled, fmt.Errorf("the consumer group %s: %w", c.Name, err)
	}
	if filled.Guard.Window < 0 || filled.Guard.Window > 0 && filled.Guard.Window < guardSlots {
		return filled, fmt.Errorf("the consumer group %s: a guard cannot look back %v", c.Name, filled.Guard.Window)
	}
	if c.InboxRetention < 0 {
		return filled, fmt.Errorf("the consumer group %s: the inbox's retention is negative", c.Name)
	}
	if c.Delay < 0 {
		return filled, fmt.Errorf("the consumer group %s: the delay is negative", c.Name)
	}
	if filled.MaxEvents == 0 {
		filled.MaxEvents = 500
	}
	if filled.MaxBytes == 0 {
		filled.MaxBytes = 2 << 20
	}
	if filled.BatchTime == 0 {
		filled.BatchTime = 20 * time.Second
	}
	if filled.BatchTime > rebalanceTime/2 {
		return filled, fmt.Errorf("the consumer group %s: a batch of %v endangers the rebalance timeout of %v", c.Name, filled.BatchTime, rebalanceTime)
	}
	if filled.Logger == nil {
		filled.Logger = slog.Default()
	}
	return filled, nil
}
