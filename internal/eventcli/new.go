package eventcli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/go-json-experiment/json"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/schemas"
)

// NewCmd prints a sample event: its value on standard output, how to produce it on standard error.
type NewCmd struct {
	Type    string         `arg:"" help:"Event type, as in OrderPlaced."`
	Fields  []string       `arg:"" optional:"" name:"field=value" sep:"none" help:"Fields to set; text as it is, anything else as JSON."`
	Key     string         `placeholder:"ID" help:"Record key: the id of the order or user; a new one by default."`
	Format  schemas.Format `enum:"json,avro" default:"json" help:"Write the value as ${enum}."`
	Produce bool           `help:"Produce the event, too."`
	brokersFlag
	registryFlag
}

// Help is what --help shows below the summary.
func (NewCmd) Help() string {
	return `The value goes to standard output, the kcat line to standard error, so that it can stand in a pipe:

  converge event new ProfileUpdated version=2 display_name='Ada Lovelace' --key u-1
  converge event new OrderPlaced 'items=[{"sku":"MUG-1","quantity":2}]' total_amount=2400 --produce`
}

// Run implements the command.
func (c *NewCmd) Run(ctx context.Context, stdout io.Writer, parsed *kong.Context, log *slog.Logger) error {
	return c.run(ctx, stdout, parsed.Stderr, log)
}

func (c *NewCmd) run(ctx context.Context, stdout, stderr io.Writer, log *slog.Logger) error {
	if err := known(c.Type); err != nil {
		return err
	}
	if c.Key == "" {
		c.Key = newID()
	}
	data, err := override(c.Type, sample(c.Type, c.Key), c.Fields)
	if err != nil {
		return err
	}
	codec := schemas.NewCodec(schemas.JSON, schemas.IDs{})
	if c.Format == schemas.Avro {
		if terminal(stdout) && !c.Produce {
			return usagef("Avro is binary and would garble the terminal: send it to a file (> event.bin), or add --produce")
		}
		if codec, err = c.writing(ctx, log, c.Type); err != nil {
			return err
		}
	}
	topic, contentType, value, err := codec.Encode(c.Type, data)
	if err != nil {
		return fmt.Errorf("encoding the sample: %w", err)
	}
	record := &kgo.Record{Topic: topic, Key: []byte(c.Key), Value: value, Headers: headers(c.Type, contentType, data)}
	if c.Produce {
		return c.produce(ctx, stdout, stderr, record, data)
	}
	if c.Format == schemas.JSON {
		fmt.Fprintf(stderr, "# Produce it with:\n%s\n", kcatLine(c.Brokers, record))
		value = append(value, '\n')
	} else {
		fmt.Fprintf(stderr, "# Put this output into a file, event.bin, and produce it with:\n%s\n", kcatFileLine(c.Brokers, record, "event.bin"))
	}
	_, err = stdout.Write(value)
	return err
}

// produce shows the event as JSON whatever went into the topic.
func (c *NewCmd) produce(ctx context.Context, stdout, stderr io.Writer, record *kgo.Record, data any) error {
	client, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := client.ProduceSync(waiting, record).FirstErr(); err != nil {
		return fmt.Errorf("producing to %s: %w", record.Topic, err)
	}
	fmt.Fprintf(stderr, "# Produced: topic %s, partition %d, offset %d, event_id %s\n", record.Topic, record.Partition, record.Offset, record.Headers[0].Value)
	text, err := json.Marshal(data)
	if err != nil {
		return fmt.Errorf("writing the sample: %w", err)
	}
	_, err = stdout.Write(append(text, '\n'))
	return err
}

// headers are those that the relay writes, but for committed_at: nothing was committed.
func headers(eventType, contentType string, data any) []kgo.RecordHeader {
	version := "1"
	if profile, ok := data.(*schemas.ProfileUpdated); ok {
		version = fmt.Sprint(profile.Version)
	}
	id := newID()
	var list []kgo.RecordHeader
	for _, h := range [][2]string{
		{"event_id", id},
		{"event_type", eventType},
		{"aggregate_version", version},
		{"occurred_at", time.Now().UTC().Format(time.RFC3339Nano)},
		{"correlation_id", id},
		{"content-type", contentType},
	} {
		list = append(list, kgo.RecordHeader{Key: h[0], Value: []byte(h[1])})
	}
	return list
}

// kcatLine is a shell command that produces the record, whose value is one line.
func kcatLine(brokers []string, r *kgo.Record) string {
	return fmt.Sprintf("printf '%%s\\n' %s | %s", quote(string(r.Value)), kcat(brokers, r))
}

// kcatFileLine is a shell command that produces the record with the bytes of a file as its value.
func kcatFileLine(brokers []string, r *kgo.Record, file string) string {
	return kcat(brokers, r) + " " + quote(file)
}

// kcat names the partitioner: without it librdkafka spreads keys otherwise than the relay does, and
// events of one key would lose their order between two partitions.
func kcat(brokers []string, r *kgo.Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "kcat -P -b %s -X partitioner=murmur2_random -t %s -k %s", quote(strings.Join(brokers, ",")), r.Topic, quote(string(r.Key)))
	for _, h := range r.Headers {
		fmt.Fprintf(&b, " -H %s", quote(h.Key+"="+string(h.Value)))
	}
	return b.String()
}

// quote makes one shell word (POSIX) of the text.
func quote(text string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:=,@+", r)
	}
	if text != "" && strings.IndexFunc(text, func(r rune) bool { return !plain(r) }) < 0 {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
