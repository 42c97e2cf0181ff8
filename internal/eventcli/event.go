// Package eventcli is `converge event`: filters that make kcat comfortable with the events here. They
// make a sample, watch topics, and turn JSON into Avro and back.
//
// The guarantee: standard output holds values and nothing else, so that every command can stand in a
// pipe; hints and troubles go to standard error. What decode prints, encode takes. It fails to hold for
// an event of a type that these schemas do not describe: decode shows it as its writer's schema does, and
// encode refuses it.
package eventcli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"converge/internal/kafkaauth"
	"converge/schemas"
	"converge/schemas/registry"
)

// EventCmd is the command with its subcommands, as kong reads it. Their Run methods want a
// context.Context, an io.Writer for standard output and a *slog.Logger bound; standard error is kong's.
type EventCmd struct {
	New    NewCmd    `cmd:"" help:"Print a ready sample event, and the kcat line that produces it."`
	Tail   TailCmd   `cmd:"" help:"Print events as they arrive, decoded, with their headers and latency."`
	Encode EncodeCmd `cmd:"" help:"Turn JSON on standard input into Avro on standard output, for kcat -P."`
	Decode DecodeCmd `cmd:"" help:"Turn values on standard input, as kcat -C writes them, into JSON lines."`
}

type brokersFlag struct {
	Brokers []string `default:"127.0.0.1:9092" placeholder:"HOST:PORT" help:"Kafka bootstrap addresses, separated by commas (${default})."`
	kafkaauth.Flags
}

type registryFlag struct {
	Registry string `default:"http://127.0.0.1:8081" placeholder:"URL" help:"Schema registry with the Confluent API; asked only when a value is Avro (${default})."`
}

// patience bounds the waits for what is not there: a person is waiting too.
const patience = 5 * time.Second

// usageError is a mistake in how the command was called.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// ExitCode follows the exit codes of the binary: 2 is usage.
func (usageError) ExitCode() int { return 2 }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// reading returns a codec that decodes what the registry knows.
func (f registryFlag) reading(log *slog.Logger) (*schemas.Codec, error) {
	client, err := registry.New(f.Registry, log)
	if err != nil {
		return nil, usageError{err}
	}
	return schemas.NewCodec(schemas.JSON, schemas.IDs{Schema: client.Schema}), nil
}

// writing returns a codec that writes the event type in Avro; its schema is registered when it is not.
func (f registryFlag) writing(ctx context.Context, log *slog.Logger, eventType string) (*schemas.Codec, error) {
	client, err := registry.New(f.Registry, log)
	if err != nil {
		return nil, usageError{err}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ids, err := client.Register(ctx, eventType)
	if err != nil {
		return nil, f.hint(err)
	}
	return schemas.NewCodec(schemas.Avro, ids), nil
}

func (f registryFlag) hint(err error) error {
	var away *registry.UnavailableError
	if errors.As(err, &away) {
		return fmt.Errorf("%w\nStart one (converge up brings one), or say where it is: --registry URL", err)
	}
	return err
}

// connect returns a client whose brokers have answered.
func (f brokersFlag) connect(ctx context.Context, opts ...kgo.Opt) (*kgo.Client, error) {
	security, err := f.Options()
	if err != nil {
		return nil, usageError{err}
	}
	client, err := kgo.NewClient(slices.Concat(opts, security, []kgo.Opt{kgo.SeedBrokers(f.Brokers...)})...)
	if err != nil {
		return nil, usagef("reading --brokers: %w", err)
	}
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := client.Ping(waiting); err != nil {
		client.Close()
		if kafkaauth.Fix(err) != "" {
			return nil, fmt.Errorf("reaching Kafka at %s: %w", strings.Join(f.Brokers, ","), kafkaauth.WithFix(err))
		}
		return nil, fmt.Errorf("no Kafka answers at %s: %w\nStart one (converge up brings one), or say where it is: --brokers HOST:PORT",
			strings.Join(f.Brokers, ","), err)
	}
	return client, nil
}

// known refuses an event type that no schema describes, naming those there are.
func known(eventType string) error {
	if schemas.New(eventType) != nil {
		return nil
	}
	var types []string
	for _, r := range schemas.Routes() {
		if strings.EqualFold(r.Type, eventType) {
			return usagef("there is no event type %s; did you mean %s?", eventType, r.Type)
		}
		types = append(types, r.Type)
	}
	return usagef("there is no event type %q; there are %s", eventType, strings.Join(types, ", "))
}

// terminal reports whether the writer is a terminal, which binary output would garble.
func terminal(w any) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
