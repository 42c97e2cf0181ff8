package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"converge/relay"
)

// relayCmds are the commands around the relay. A plain `converge relay` is `converge relay run`.
type relayCmds struct {
	Run    relayCmd       `cmd:"" default:"withargs" help:"Stream outbox rows from the WAL into topics (what relay alone does)."`
	Status relayStatusCmd `cmd:"" help:"Say where the relay is: slot, positions, lag, WAL; exit code 1 when it is not healthy."`
	Doctor relayDoctorCmd `cmd:"" help:"Check all that the relay needs, without changing anything; exit code 1 when it could not stream."`
	Replay relayReplayCmd `cmd:"" help:"Send rows of the outbox tables to their topics again, marked with a header replay."`
}

// Help says where the flags of the plain form are, which the list of commands does not show.
func (relayCmds) Help() string { return "The flags of the relay itself: converge relay run --help" }

// relayFlags say what to relay, from where and to where: all commands around one relay take the same.
type relayFlags struct {
	sharedRelayFlags
	Topic string `placeholder:"TEMPLATE" help:"Topic of a row: text with names of text columns in braces; {topic}, or outbox.event.{aggregatetype} as Debezium does."`
}

func (f *relayFlags) config() (relay.Config, error) { return f.configFor(f.Topic) }

// sharedRelayFlags are relayFlags without the template, whose name means something else to replay.
type sharedRelayFlags struct {
	connection
	Source         string        `enum:"wal,polling,message" default:"wal" help:"Where rows come from: the write-ahead log through a slot (wal), polling the tables, which needs no logical decoding and updates each row, or messages of pg_logical_emit_message in place of a table (message)."`
	MessagePrefix  string        `default:"converge.outbox" help:"Prefix of the messages that source message publishes."`
	PollInterval   time.Duration `default:"50ms" help:"How long polling waits when it has found nothing."`
	Preset         string        `enum:"converge,debezium" default:"converge" help:"What the tables' columns are called: ${enum}, the one that Debezium's outbox event router reads."`
	Table          []string      `placeholder:"SCHEMA.TABLE" help:"Outbox tables to publish; every service's by default."`
	Headers        string        `enum:"converge,cloudevents,debezium," default:"" placeholder:"NAME" help:"What headers are called: converge, cloudevents or debezium; as the preset by default."`
	Slot           string        `default:"converge" help:"Logical replication slot; one relay reads it at a time, another waits to take over."`
	Publication    string        `default:"converge" help:"Publication over the outbox tables."`
	OnMissingSlot  string        `enum:"fail,create,backfill" default:"fail" help:"A slot that is not there: ${enum}. A new slot starts now, not where a lost one stood; backfill sends the rows that are older first."`
	AcceptGap      string        `placeholder:"LSN" help:"Go on although the slot was moved to this position past rows that are on no topic: the LSN that the refusal names, and good for no other."`
	ExactlyOnce    bool          `help:"Publish in Kafka transactions: who reads committed records alone sees each row once, however often the relay dies."`
	SpillDir       string        `placeholder:"DIR" help:"Take large transactions from the server before they end, and keep them in this directory until they commit; without it the server keeps them."`
	NoCreateTopics bool          `help:"Leave missing topics missing: the stream waits until somebody creates them."`
}

// configFor is the relay that the flags describe, with a template of topics.
func (f *sharedRelayFlags) configFor(template string) (relay.Config, error) {
	if err := f.connection.check(); err != nil {
		return relay.Config{}, err
	}
	options, err := f.kafkaOptions()
	if err != nil {
		return relay.Config{}, err
	}
	tables := f.Table
	if len(tables) == 0 && f.Source != string(relay.SourceMessage) {
		if f.Preset != string(relay.PresetConverge) {
			return relay.Config{}, usageError{fmt.Errorf("no table: say --table SCHEMA.TABLE, the services' are none of preset %s", f.Preset)}
		}
		tables = outboxTables()
	}
	return relay.Config{DatabaseURL: f.Database, Brokers: f.Brokers, KafkaOptions: options, Source: relay.Source(f.Source), PollInterval: f.PollInterval, Slot: f.Slot, Publication: f.Publication,
		Preset: relay.Preset(f.Preset), Headers: relay.Headers(f.Headers), Topic: template, Tables: tables,
		OnMissingSlot: relay.MissingSlot(f.OnMissingSlot), NoCreateTopics: f.NoCreateTopics,
		AcceptGap: f.AcceptGap, ExactlyOnce: f.ExactlyOnce, SpillDir: f.SpillDir, MessagePrefix: f.MessagePrefix}, nil
}

type relayCmd struct {
	relayFlags
	listener
}

func (c *relayCmd) Run(ctx context.Context, log *slog.Logger) error {
	config, err := c.config()
	if err != nil {
		return err
	}
	n := newNode(log)
	if _, err := n.addRelay(config); err != nil {
		return err
	}
	return n.run(ctx, c.listener)
}
