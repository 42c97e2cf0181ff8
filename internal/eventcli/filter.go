package eventcli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/alecthomas/kong"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"converge/consumers/event"
	"converge/schemas"
)

// EncodeCmd turns JSON into the Confluent wire format. Binary values have no separator, so it takes one
// value, unless --framed puts each one's length before it.
type EncodeCmd struct {
	Type   string `required:"" help:"Event type, as in OrderPlaced."`
	Framed bool   `help:"Take any number of JSON values and write each after its length in four bytes, big-endian."`
	registryFlag
}

// Help is what --help shows below the summary.
func (EncodeCmd) Help() string {
	return `Binary values have no separator, so it takes one value and kcat sends a whole file as one:

  converge event new OrderCancelled --key ID | converge event encode --type OrderCancelled > event.bin
  kcat -P -b localhost:9092 -X partitioner=murmur2_random -t orders -k ID -H event_type=OrderCancelled event.bin`
}

// Run implements the command.
func (c *EncodeCmd) Run(ctx context.Context, stdout io.Writer, log *slog.Logger) error {
	return c.run(ctx, os.Stdin, stdout, log)
}

func (c *EncodeCmd) run(ctx context.Context, stdin io.Reader, stdout io.Writer, log *slog.Logger) error {
	if err := known(c.Type); err != nil {
		return err
	}
	if terminal(stdout) {
		return usagef("Avro is binary and would garble the terminal: send it to a file, as in > event.bin")
	}
	codec, err := c.writing(ctx, log, c.Type)
	if err != nil {
		return err
	}
	in := jsontext.NewDecoder(stdin)
	var alone []byte // held back until it is known to be the only one: half an answer would be produced
	for n := 1; ; n++ {
		text, err := in.ReadValue()
		switch {
		case errors.Is(err, io.EOF) && n == 1:
			return usagef("there is no JSON value on standard input")
		case errors.Is(err, io.EOF):
			_, err = stdout.Write(alone)
			return err
		case err != nil:
			return usagef("value %d: %w", n, err)
		case n > 1 && !c.Framed:
			return usagef("there is more than one value on standard input: binary values need --framed to be told apart")
		}
		value, err := encodeOne(codec, c.Type, text)
		if err != nil {
			return fmt.Errorf("value %d: %w", n, err)
		}
		if !c.Framed {
			alone = value
			continue
		}
		frame := append(binary.BigEndian.AppendUint32(nil, uint32(len(value))), value...)
		if _, err := stdout.Write(frame); err != nil {
			return err
		}
	}
}

func encodeOne(codec *schemas.Codec, eventType string, text []byte) ([]byte, error) {
	data, err := parse(eventType, text)
	if err != nil {
		return nil, err
	}
	_, _, value, err := codec.Encode(eventType, data)
	return value, err
}

// parse reads JSON into the event type's Go struct, checked against its schema.
func parse(eventType string, text []byte) (any, error) {
	data := schemas.New(eventType)
	codec := schemas.NewCodec(schemas.JSON, schemas.IDs{})
	if err := codec.Decode(context.Background(), eventType, schemas.ContentTypeJSON, text, data); err != nil {
		return nil, usageError{err}
	}
	return data, nil
}

// DecodeCmd turns values as kcat -C writes them into JSON lines. Avro values say themselves what they
// are.
type DecodeCmd struct {
	Type   string `help:"Event type of JSON values, to check them against; Avro values name their own."`
	Framed bool   `help:"Each value comes after its length in four bytes, as kcat -f '%R%s' writes it."`
	registryFlag
}

// Help is what --help shows below the summary.
func (DecodeCmd) Help() string {
	return `One value, or many with their lengths, which kcat writes for %R:

  kcat -C -q -b localhost:9092 -t orders -p 0 -o -1 -c 1 -f %s | converge event decode
  kcat -C -q -b localhost:9092 -t orders -e -f %R%s | converge event decode --framed

A value that cannot be decoded is named on standard error; the rest goes on, and the exit code is 1.`
}

// Run implements the command.
func (c *DecodeCmd) Run(ctx context.Context, stdout io.Writer, parsed *kong.Context, log *slog.Logger) error {
	return c.run(ctx, os.Stdin, stdout, parsed.Stderr, log)
}

// maxValue bounds one value. Brokers refuse records beyond a megabyte unless told otherwise.
const maxValue = 64 << 20

func (c *DecodeCmd) run(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer, log *slog.Logger) error {
	if c.Type != "" {
		if err := known(c.Type); err != nil {
			return err
		}
	}
	codec, err := c.reading(log)
	if err != nil {
		return err
	}
	if !c.Framed {
		value, err := io.ReadAll(io.LimitReader(stdin, maxValue+1))
		switch {
		case err != nil:
			return fmt.Errorf("reading standard input: %w", err)
		case len(value) == 0:
			return usagef("there is no value on standard input")
		case len(value) > maxValue:
			return usagef("standard input holds more than %d bytes: several values need --framed", maxValue)
		}
		return c.hint(show(ctx, codec, c.Type, value, stdout))
	}
	return c.decodeFrames(ctx, codec, bufio.NewReader(stdin), stdout, stderr)
}

// decodeFrames goes on after a value that cannot be decoded, so that one bad record does not hide the
// rest, and ends with an error then.
func (c *DecodeCmd) decodeFrames(ctx context.Context, codec *schemas.Codec, in io.Reader, stdout, stderr io.Writer) error {
	bad := 0
	for n := 1; ; n++ {
		value, err := readFrame(in)
		if errors.Is(err, io.EOF) {
			if bad > 0 {
				return fmt.Errorf("decoding: %d of %d values could not be decoded", bad, n-1)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("value %d: %w", n, err)
		}
		if value == nil {
			if _, err := io.WriteString(stdout, "null\n"); err != nil {
				return err
			}
			continue
		}
		err = show(ctx, codec, c.Type, value, stdout)
		switch {
		case err == nil:
		case event.Classify(err) == event.ClassPermanent:
			bad++
			fmt.Fprintf(stderr, "# Value %d: %v\n", n, err)
		default:
			return c.hint(fmt.Errorf("value %d: %w", n, err))
		}
	}
}

// readFrame returns io.EOF where a frame would begin, nil for a tombstone, whose length kcat writes as -1.
func readFrame(in io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, errors.New("standard input ends within a length: was it written with kcat -f '%R%s'?")
		}
		return nil, err
	}
	size := int32(binary.BigEndian.Uint32(head[:]))
	if size == -1 {
		return nil, nil
	}
	if size < 0 || size > maxValue {
		return nil, fmt.Errorf("a length of %d makes no sense: was it written with kcat -f '%%R%%s'?", size)
	}
	var value bytes.Buffer
	if _, err := io.CopyN(&value, in, int64(size)); err != nil {
		return nil, errors.New("standard input ends within a value")
	}
	return append([]byte{}, value.Bytes()...), nil
}

func show(ctx context.Context, codec *schemas.Codec, eventType string, value []byte, stdout io.Writer) error {
	_, data, err := codec.Inspect(ctx, eventType, "", value)
	if err != nil {
		return err
	}
	line, err := json.Marshal(data, json.Deterministic(true))
	if err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	_, err = stdout.Write(append(line, '\n'))
	return err
}
