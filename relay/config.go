package relay

import (
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/relay/pgoutput"
)

// MissingSlot says what to do when the slot does not exist on start.
type MissingSlot string

const (
	// FailOnMissingSlot ends Run with an error. It is the default: a new slot knows nothing of the rows
	// committed before it.
	FailOnMissingSlot MissingSlot = "fail"
	// CreateMissingSlot makes the publication, if that is missing too, and then the slot. Rows committed
	// before that moment are not published; a warning tells if there are any. A slot that disappears
	// while the relay runs is not made anew, because rows may be lost with it.
	CreateMissingSlot MissingSlot = "create"
	// BackfillMissingSlot makes both as CreateMissingSlot does, then publishes the rows that are older than
	// the slot, table by table in the order of seq and with a header replay of "backfill", before it streams.
	// A crash on the way begins the backfill anew: rows are repeated, none is left out.
	BackfillMissingSlot MissingSlot = "backfill"
)

// Source says where the rows come from.
type Source string

const (
	// SourceWAL streams the rows from the write-ahead log through a slot. It is the default.
	SourceWAL Source = "wal"
	// SourcePolling asks the tables again and again for the rows whose published_at is NULL, and sets it when a
	// row's record is acknowledged. It needs no logical decoding, and costs an update for each row.
	SourcePolling Source = "polling"
	// SourceMessage streams what transactions write by pg_logical_emit_message in place of a row, as
	// package converge/producers/outbox does it in Emit: JSON objects whose members are called as the columns of
	// an outbox. There is no table then, so nothing can be queried, sent again or backfilled. A message that
	// cannot be read, or that was written outside of its transaction, is a dead letter.
	SourceMessage Source = "message"
)

// Config is what a relay needs to know. DatabaseURL and Brokers are required; the zero value of
// everything else means the default given with it.
type Config struct {
	// DatabaseURL names the database, as a URL or as keywords; the environment variables of libpq fill
	// in what it leaves out. The role needs the REPLICATION attribute; to create a publication it must
	// own the tables.
	DatabaseURL string
	// Brokers are the Kafka brokers to ask first, as host:port.
	Brokers []string
	// KafkaOptions are applied to the Kafka client, for TLS, SASL or compression. They cannot weaken
	// acknowledgements or change how keys map to partitions.
	KafkaOptions []kgo.Opt

	// Source defaults to [SourceWAL].
	Source Source
	// PollInterval is how long [SourcePolling] waits when it has found nothing. Default 50 ms.
	PollInterval time.Duration

	// Slot is the replication slot, made of [a-z0-9_], at most 63. Default "converge". Slot names are
	// cluster-wide. With [SourcePolling] it names the lock by which one relay polls at a time.
	Slot string
	// Publication is the publication. Default "converge". With [SourceMessage] it holds no table.
	Publication string
	// MessagePrefix is the prefix of the messages that [SourceMessage] publishes. Default "converge.outbox".
	MessagePrefix string
	// Tables are the outbox tables, as schema.table, that the publication must hold, no more and no
	// fewer. Empty means every table that it holds.
	Tables []string
	// Preset is what the tables' columns are called. Default [PresetConverge].
	Preset Preset
	// Headers is what the records' headers are called. Default by Preset.
	Headers Headers
	// Topic names a record's topic after its row: text with the names of text columns in braces. Default
	// {topic}; outbox.event.{aggregatetype} for [PresetDebezium], outbox.event.{aggregate_type} for
	// [HeadersDebezium]. Rows without an event type always go to their own topic.
	Topic string
	// OnMissingSlot defaults to [FailOnMissingSlot].
	OnMissingSlot MissingSlot
	// NoCreateTopics makes a missing topic stop the stream until someone creates it. Otherwise it is
	// created with the brokers' default partitions and replicas.
	NoCreateTopics bool
	// AcceptGap lets a relay start whose slot is ahead of its checkpoint or belongs to another server, see
	// package relay: the slot's position, as the refusal names it. It is good for that position alone, so it
	// may be left in place. Default: no gap is accepted.
	AcceptGap string
	// ExactlyOnce publishes in Kafka transactions, so that consumers that read committed records alone see
	// each row once, however often the relay dies. It costs those consumers up to 50 ms of latency.
	ExactlyOnce bool
	// DeadLetterTopic takes the rows that no waiting makes publishable. Default Slot + ".relay.dlq".
	DeadLetterTopic string

	// BufferBytes bounds the stream held in memory until it is acknowledged, in bytes. Default 8 MiB.
	// The records made of it take about as much again. One row may be larger than the bound.
	BufferBytes int
	// SpillDir is a directory for transactions that outgrow the server's logical_decoding_work_mem: the
	// server sends them before they end, and each waits there, in a file of its own, until it commits.
	// It is made if it is missing; relays may share one. Empty means that the server keeps them on its
	// own disk until they commit.
	SpillDir string
	// DrainTimeout bounds the wait for acknowledgements after Run's context has ended. Default 10 s.
	DrainTimeout time.Duration

	shape shape

	// Logger defaults to slog.Default().
	Logger *slog.Logger
	// Registerer receives the metrics; nil keeps them unregistered. Two relays cannot share one.
	Registerer prometheus.Registerer
}

const (
	defaultName        = "converge"
	defaultBufferBytes = 8 << 20
	leastBufferBytes   = 4 * arenaSize
	defaultDrain       = 10 * time.Second
	defaultPrefix      = "converge.outbox"
	defaultPoll        = 50 * time.Millisecond
	applicationName    = "converge relay"
)

var slotName = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

// withDefaults returns a copy with every default in place, or what is wrong with the configuration.
func (c Config) withDefaults() (Config, error) {
	var wrong []error
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	if c.DatabaseURL == "" {
		complain("DatabaseURL is empty")
	} else if _, err := pgconn.ParseConfig(c.DatabaseURL); err != nil {
		complain("reading DatabaseURL: %w", err)
	}
	if len(c.Brokers) == 0 {
		complain("Brokers is empty")
	}
	switch c.Source {
	case "":
		c.Source = SourceWAL
	case SourceWAL:
	case SourcePolling:
		if c.ExactlyOnce {
			complain("ExactlyOnce needs a place in the WAL, which Source %q has not", c.Source)
		}
		if c.SpillDir != "" {
			complain("SpillDir is for what comes out of the WAL, which Source %q does not read", c.Source)
		}
		if c.Preset != "" && c.Preset != PresetConverge {
			complain("Source %q needs the columns seq and published_at, which tables of preset %s do not have", c.Source, c.Preset)
		}
	case SourceMessage:
		if len(c.Tables) > 0 {
			complain("Source %q has no Tables", c.Source)
		}
		if c.OnMissingSlot == BackfillMissingSlot {
			complain("OnMissingSlot %q needs tables, which Source %q does not have", c.OnMissingSlot, c.Source)
		}
		if c.Preset != "" && c.Preset != PresetConverge {
			complain("Source %q is for preset %s", c.Source, PresetConverge)
		}
	default:
		complain("Source %q is not %q, %q or %q", c.Source, SourceWAL, SourcePolling, SourceMessage)
	}
	if c.PollInterval == 0 {
		c.PollInterval = defaultPoll
	}
	if c.PollInterval < 0 {
		complain("PollInterval %s is negative", c.PollInterval)
	}
	if c.Slot == "" {
		c.Slot = defaultName
	}
	if !slotName.MatchString(c.Slot) {
		complain("Slot %q is not 1 to 63 of a-z, 0-9 and _", c.Slot)
	}
	if c.Publication == "" {
		c.Publication = defaultName
	}
	if c.MessagePrefix == "" {
		c.MessagePrefix = defaultPrefix
	}
	if c.AcceptGap != "" {
		if _, err := pgoutput.ParseLSN(c.AcceptGap); err != nil {
			complain("AcceptGap: %w", err)
		}
	}
	if c.DeadLetterTopic == "" {
		c.DeadLetterTopic = c.Slot + ".relay.dlq"
	}
	if !validTopic([]byte(c.DeadLetterTopic)) {
		complain("DeadLetterTopic %q is no topic name", c.DeadLetterTopic)
	}
	for _, table := range c.Tables {
		if schema, name, ok := strings.Cut(table, "."); !ok || schema == "" || name == "" {
			complain("table %q is not schema.table", table)
		}
	}
	var err error
	if c.shape, err = c.withShape(); err != nil {
		wrong = append(wrong, err)
	}
	switch c.OnMissingSlot {
	case "":
		c.OnMissingSlot = FailOnMissingSlot
	case FailOnMissingSlot, CreateMissingSlot, BackfillMissingSlot:
	default:
		complain("OnMissingSlot %q is not %q, %q or %q", c.OnMissingSlot, FailOnMissingSlot, CreateMissingSlot, BackfillMissingSlot)
	}
	if c.OnMissingSlot == BackfillMissingSlot && c.Preset != PresetConverge {
		complain("OnMissingSlot %q needs an order of insertion, which tables of preset %s do not have", c.OnMissingSlot, c.Preset)
	}
	if c.BufferBytes == 0 {
		c.BufferBytes = defaultBufferBytes
	}
	if c.BufferBytes < leastBufferBytes {
		complain("BufferBytes %d is less than %d", c.BufferBytes, leastBufferBytes)
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = defaultDrain
	}
	if c.DrainTimeout < 0 {
		complain("DrainTimeout %s is negative", c.DrainTimeout)
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c, errors.Join(wrong...)
}

// quoteIdentifier quotes a name for SQL and for the replication commands.
func quoteIdentifier(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// quoteLiteral quotes a string for a server with standard_conforming_strings, the default since 9.1.
func quoteLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// quoteTable quotes schema.table.
func quoteTable(table string) string {
	schema, name, _ := strings.Cut(table, ".")
	return quoteIdentifier(schema) + "." + quoteIdentifier(name)
}
