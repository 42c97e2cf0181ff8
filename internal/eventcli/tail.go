package eventcli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/alecthomas/kong"
	"github.com/go-json-experiment/json"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/event"
	"converge/schemas"
)

// TailCmd prints the records of topics as they arrive. It joins no consumer group and commits nothing.
type TailCmd struct {
	Topics        []string `arg:"" optional:"" name:"topic" help:"Topics, retry and dead-letter topics too; every event topic by default."`
	FromBeginning bool     `help:"Begin with the oldest record instead of the next one."`
	Count         int      `short:"n" placeholder:"N" help:"Stop after N records; 0 goes on until interrupted."`
	JSON          bool     `name:"json" help:"Print one JSON object a line."`
	brokersFlag
	registryFlag
}

// Help is what --help shows below the summary.
func (TailCmd) Help() string {
	return `A line is: time, topic/partition@offset, event type, aggregate version, key, event id, latency, value.
Latency is from the commit (or the occurrence, for an event that no relay brought) to the record's own time.

  converge event tail
  converge event tail orders orders.inventory.dlq --from-beginning --json`
}

// Run implements the command. It blocks until ctx ends or the wanted records were printed.
func (c *TailCmd) Run(ctx context.Context, stdout io.Writer, parsed *kong.Context, log *slog.Logger) error {
	return c.run(ctx, stdout, parsed.Stderr, log)
}

func (c *TailCmd) run(ctx context.Context, stdout, stderr io.Writer, log *slog.Logger) error {
	if c.Count < 0 {
		return usagef("-n wants a number of records, not %d", c.Count)
	}
	codec, err := c.reading(log)
	if err != nil {
		return err
	}
	offsets, err := c.offsets(ctx, stderr)
	if err != nil {
		return err
	}
	client, err := c.connect(ctx, kgo.ConsumePartitions(offsets), kgo.FetchMaxWait(500*time.Millisecond))
	if err != nil {
		return err
	}
	defer client.Close()
	for printed := 0; ; {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil // interrupted: what was asked for
		}
		if err := fetchError(fetches); err != nil {
			return err
		}
		for iter := fetches.RecordIter(); !iter.Done(); {
			if err := c.print(ctx, codec, iter.Next(), stdout); err != nil {
				return err
			}
			if printed++; printed == c.Count {
				return nil
			}
		}
	}
}

func fetchError(fetches kgo.Fetches) error {
	for _, e := range fetches.Errors() {
		if !errors.Is(e.Err, context.Canceled) {
			return fmt.Errorf("reading %s, partition %d: %w", e.Topic, e.Partition, e.Err)
		}
	}
	return nil
}

// offsets says where to begin in every partition. It asks for the ends itself, so that after the line on
// standard error nothing is missed.
func (c *TailCmd) offsets(ctx context.Context, stderr io.Writer) (map[string]map[int32]kgo.Offset, error) {
	client, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	topics, err := c.existing(waiting, admin)
	if err != nil {
		return nil, err
	}
	list := admin.ListEndOffsets
	if c.FromBeginning {
		list = admin.ListStartOffsets
	}
	listed, err := list(waiting, topics...)
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("asking where the topics end: %w", err)
	}
	fmt.Fprintf(stderr, "# Tailing %s; Ctrl-C ends it\n", strings.Join(topics, ", "))
	offsets := map[string]map[int32]kgo.Offset{}
	listed.Each(func(o kadm.ListedOffset) {
		if offsets[o.Topic] == nil {
			offsets[o.Topic] = map[int32]kgo.Offset{}
		}
		offsets[o.Topic][o.Partition] = kgo.NewOffset().At(o.Offset)
	})
	return offsets, nil
}

// existing returns the topics to tail. One that was named must be there; of the event topics those that
// are.
func (c *TailCmd) existing(ctx context.Context, admin *kadm.Client) ([]string, error) {
	details, err := admin.ListTopics(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing topics: %w", err)
	}
	names := details.Names()
	if len(c.Topics) > 0 {
		for _, topic := range c.Topics {
			if !slices.Contains(names, topic) {
				return nil, usagef("there is no topic %q; there are %s", topic, orNone(names))
			}
		}
		return c.Topics, nil
	}
	topics := slices.DeleteFunc(schemas.Topics(), func(t string) bool { return !slices.Contains(names, t) })
	if len(topics) == 0 {
		return nil, fmt.Errorf("this Kafka has no event topics yet (%s): converge migrate --brokers %s creates them",
			strings.Join(schemas.Topics(), ", "), strings.Join(c.Brokers, ","))
	}
	return topics, nil
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// line is one record as --json prints it.
type line struct {
	Topic     string            `json:"topic"`
	Partition int32             `json:"partition"`
	Offset    int64             `json:"offset"`
	Timestamp time.Time         `json:"timestamp"`
	Key       string            `json:"key"`
	EventID   string            `json:"event_id,omitzero"`
	EventType string            `json:"event_type,omitzero"`
	Version   string            `json:"aggregate_version,omitzero"`
	LatencyMS *float64          `json:"latency_ms,omitzero"` // from the commit, else the occurrence, to the record's time
	Headers   map[string]string `json:"headers"`
	Value     any               `json:"value"`
	Error     string            `json:"error,omitzero"` // why value is the raw bytes as text
}

func (c *TailCmd) print(ctx context.Context, codec *schemas.Codec, r *kgo.Record, stdout io.Writer) error {
	l := line{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Timestamp: r.Timestamp.UTC(),
		Key: printable(r.Key), Headers: map[string]string{}}
	for _, h := range r.Headers {
		l.Headers[h.Key] = printable(h.Value)
	}
	l.EventID = first(l.Headers, "event_id", "ce_id", "id")
	l.EventType = first(l.Headers, "event_type", "ce_type")
	l.Version = l.Headers["aggregate_version"]
	l.LatencyMS = latency(r.Timestamp, first(l.Headers, "committed_at", "occurred_at"))
	if r.Value != nil {
		found, data, err := codec.Inspect(ctx, l.EventType, first(l.Headers, "content-type", "datacontenttype"), r.Value)
		switch {
		case err == nil:
			l.EventType, l.Value = found, data
		case event.Classify(err) == event.ClassPermanent:
			l.Value, l.Error = printable(r.Value), err.Error()
		default:
			return c.hint(err)
		}
	}
	text, err := l.text(c.JSON)
	if err != nil {
		return err
	}
	_, err = stdout.Write(text)
	return err
}

func (l *line) text(asJSON bool) ([]byte, error) {
	deterministic := json.Deterministic(true)
	if asJSON {
		text, err := json.Marshal(l, deterministic)
		if err != nil {
			return nil, fmt.Errorf("writing a record as JSON: %w", err)
		}
		return append(text, '\n'), nil
	}
	value, err := json.Marshal(l.Value, deterministic)
	if err != nil {
		return nil, fmt.Errorf("writing a value as JSON: %w", err)
	}
	text := fmt.Sprintf("%s %s/%d@%d %s v%s key=%s id=%s %s %s", l.Timestamp.Format("15:04:05.000"), l.Topic, l.Partition, l.Offset,
		orDash(l.EventType), orDash(l.Version), orDash(l.Key), orDash(l.EventID), l.latencyText(), value)
	if l.Error != "" {
		text += " # " + l.Error
	}
	return append([]byte(text), '\n'), nil
}

func (l *line) latencyText() string {
	if l.LatencyMS == nil {
		return "+-"
	}
	return fmt.Sprintf("%+.1fms", *l.LatencyMS)
}

func latency(at time.Time, since string) *float64 {
	began, err := time.Parse(time.RFC3339Nano, since)
	if err != nil {
		return nil
	}
	ms := float64(at.Sub(began).Microseconds()) / 1000
	return &ms
}

// printable keeps what is text and escapes the rest, so that no record garbles a terminal.
func printable(b []byte) string {
	const enough = 400
	text, cut := string(b), ""
	if len(text) > enough {
		text, cut = strings.ToValidUTF8(text[:enough], ""), "…"
	}
	if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		quoted := strconv.Quote(text)
		text = quoted[1 : len(quoted)-1]
	}
	return text + cut
}

func first(headers map[string]string, names ...string) string {
	for _, name := range names {
		if v := headers[name]; v != "" {
			return v
		}
	}
	return ""
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
