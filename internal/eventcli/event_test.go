package eventcli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sr/srfake"

	"converge/schemas"
)

const partitions = 4

// place is a Kafka and a registry.
type place struct{ kafka, registry string }

func newPlace(t *testing.T) place {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, schemas.Topics()...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	reg := srfake.New()
	t.Cleanup(reg.Close)
	return place{cluster.ListenAddrs()[0], reg.URL()}
}

func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// run is `converge event ARGS`, parsed by kong as the binary does.
func run(t *testing.T, stdin io.Reader, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, hints bytes.Buffer
	err = runTo(t.Context(), stdin, &out, &hints, args...)
	return out.String(), hints.String(), err
}

func runTo(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer, args ...string) error {
	var cli struct {
		Event EventCmd `cmd:""`
	}
	parser, err := kong.New(&cli, kong.Name("converge"), kong.DefaultEnvars("CONVERGE"))
	if err != nil {
		return err
	}
	parsed, err := parser.Parse(append([]string{"event"}, args...))
	if err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	switch parsed.Selected().Name {
	case "new":
		return cli.Event.New.run(ctx, stdout, stderr, log)
	case "tail":
		return cli.Event.Tail.run(ctx, stdout, stderr, log)
	case "encode":
		return cli.Event.Encode.run(ctx, stdin, stdout, log)
	default:
		return cli.Event.Decode.run(ctx, stdin, stdout, stderr, log)
	}
}

func (p place) args(args ...string) []string {
	for i, arg := range args {
		args[i] = strings.NewReplacer("BROKERS", p.kafka, "REGISTRY", p.registry).Replace(arg)
	}
	return args
}

// follow starts `event tail` and returns once it follows; the channel gives its lines, and is closed when it
// ends.
func (p place) follow(t *testing.T, args ...string) <-chan string {
	t.Helper()
	ready, hints := io.Pipe()
	out, stdout := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		defer stdout.Close()
		defer hints.Close()
		all := append([]string{"tail", "--brokers", p.kafka, "--registry", p.registry}, args...)
		if err := runTo(ctx, nil, stdout, hints, all...); err != nil {
			t.Errorf("tail: %v", err)
		}
	})
	lines := make(chan string, 100)
	group.Go(func() {
		defer close(lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			lines <- scanner.Text()
		}
	})
	t.Cleanup(func() {
		cancel()
		out.Close()
		ready.Close()
		group.Wait()
	})
	if !bufio.NewScanner(ready).Scan() {
		t.Fatal("tail ended before it followed")
	}
	return lines
}

func next(t *testing.T, lines <-chan string) string {
	t.Helper()
	select {
	case l, ok := <-lines:
		if !ok {
			t.Fatal("tail ended")
		}
		return l
	case <-time.After(15 * time.Second):
		t.Fatal("no line within 15 s")
	}
	return ""
}

func TestKongRunsTheCommandsWithWhatTheBinaryBinds(t *testing.T) {
	var cli struct {
		Event EventCmd `cmd:""`
	}
	var stdout, stderr bytes.Buffer
	parser, err := kong.New(&cli, kong.DefaultEnvars("CONVERGE"), kong.Writers(io.Discard, &stderr))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONVERGE_BROKERS", "kafka:1,kafka:2")
	parsed, err := parser.Parse([]string{"event", "new", "OrderCancelled"})
	if err != nil {
		t.Fatal(err)
	}
	parsed.BindTo(t.Context(), (*context.Context)(nil))
	parsed.BindTo(&stdout, (*io.Writer)(nil))
	parsed.Bind(slog.New(slog.DiscardHandler))
	if err := parsed.Run(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(stdout.String(), "order_id") || !strings.Contains(stderr.String(), "-b kafka:1,kafka:2") {
		t.Errorf("printed %q and %q", stdout.String(), stderr.String())
	}
}

func TestEveryTypeHasASampleThatItsSchemaTakes(t *testing.T) {
	codec := schemas.NewCodec(schemas.JSON, schemas.IDs{})
	for _, r := range schemas.Routes() {
		stdout, stderr, err := run(t, nil, "new", r.Type, "--key", "k-1")
		if err != nil {
			t.Errorf("%s: %v", r.Type, err)
			continue
		}
		if err := codec.Decode(t.Context(), r.Type, "application/json", []byte(stdout), schemas.New(r.Type)); err != nil {
			t.Errorf("%s: %v", r.Type, err)
		}
		if !strings.Contains(stdout, `"k-1"`) || strings.Count(stdout, "\n") != 1 {
			t.Errorf("%s: %q is not one line about k-1", r.Type, stdout)
		}
		for _, want := range []string{"kcat -P", "-t " + r.Topic, "-k k-1", "event_type=" + r.Type, "content-type=application/json", "partitioner=murmur2_random"} {
			if !strings.Contains(stderr, want) {
				t.Errorf("%s: the kcat line lacks %s:\n%s", r.Type, want, stderr)
			}
		}
	}
}

func TestFieldsCanBeSetAndAreChecked(t *testing.T) {
	stdout, _, err := run(t, nil, "new", "ProfileUpdated", "display_name=O'Neil, \"Q\"; x", "version=9007199254740993", "marketing_opt_in=true", "--key", "u")
	if err != nil {
		t.Fatal(err)
	}
	var got schemas.ProfileUpdated
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err)
	}
	want := schemas.ProfileUpdated{UserID: "u", Version: 9007199254740993, Email: "u@example.org", DisplayName: `O'Neil, "Q"; x`, Address: got.Address, MarketingOptIn: true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"new", "orderplaced"}, "did you mean OrderPlaced"},
		{[]string{"new", "Nothing"}, "there are OrderPlaced"},
		{[]string{"new", "ProfileUpdated", "nick=x"}, "it has address"},
		{[]string{"new", "ProfileUpdated", "version"}, "FIELD=VALUE"},
		{[]string{"new", "ProfileUpdated", "version=soon"}, "not JSON"},
		{[]string{"new", "ProfileUpdated", "version=1.5"}, "/version"},
		{[]string{"new", "OrderPlaced", `items=[{"sku":"a"}]`}, "quantity is missing"},
		{[]string{"encode", "--type", "Nothing"}, "there are OrderPlaced"},
		{[]string{"decode", "--type", "Nothing"}, "there are OrderPlaced"},
		{[]string{"decode", "--registry", "ftp://x"}, "http://HOST:PORT"},
		{[]string{"tail", "--count=-1"}, "-n wants"},
	} {
		_, _, err := run(t, strings.NewReader(""), c.args...)
		var coded interface{ ExitCode() int }
		if err == nil || !strings.Contains(err.Error(), c.says) || !errors.As(err, &coded) || coded.ExitCode() != 2 {
			t.Errorf("%q: %v, want a usage error that says %q", c.args, err, c.says)
		}
	}
}

func TestAProducedEventIsTailed(t *testing.T) {
	p := newPlace(t)
	lines := p.follow(t, "-n", "2")
	for _, format := range []string{"json", "avro"} {
		stdout, stderr, err := run(t, nil, p.args("new", "OrderCancelled", "--key", "o-1", "--format", format, "--produce", "--brokers", "BROKERS", "--registry", "REGISTRY")...)
		if err != nil {
			t.Fatal(err)
		}
		if stdout != `{"order_id":"o-1"}`+"\n" || !strings.Contains(stderr, "topic orders") {
			t.Errorf("%s: printed %q and %q", format, stdout, stderr)
		}
		got := next(t, lines)
		for _, want := range []string{" orders/", "OrderCancelled v1 key=o-1 id=", `ms {"order_id":"o-1"}`} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q lacks %q", format, got, want)
			}
		}
	}
	if l, ok := <-lines; ok {
		t.Errorf("-n 2 went on with %q", l)
	}
}

func TestTailShowsWhatItCannotDecode(t *testing.T) {
	p := newPlace(t)
	client, err := kgo.NewClient(kgo.SeedBrokers(p.kafka))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	committed := time.Now().Add(-time.Minute)
	header := func(k, v string) kgo.RecordHeader { return kgo.RecordHeader{Key: k, Value: []byte(v)} }
	for i, r := range []*kgo.Record{
		{Value: []byte("rub\x1b[2Jbish"), Headers: []kgo.RecordHeader{header("event_type", "OrderCancelled")}},
		{Value: nil},
		{Value: []byte(`{"a": 1}`), Headers: []kgo.RecordHeader{header("event_type", "Foreign"), header("ce_id", "7")}},
		{Value: []byte(`{"order_id":"o"}`), Timestamp: committed.Add(1500 * time.Microsecond), Headers: []kgo.RecordHeader{
			header("event_type", "OrderCancelled"), header("committed_at", committed.Format(time.RFC3339Nano)), header("occurred_at", "2000-01-01T00:00:00Z")}},
	} {
		r.Topic, r.Key = "orders", []byte("k")
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(i, err)
		}
	}
	stdout, _, err := run(t, nil, p.args("tail", "orders", "--from-beginning", "-n", "4", "--json", "--brokers", "BROKERS", "--registry", "REGISTRY")...)
	if err != nil {
		t.Fatal(err)
	}
	type line struct {
		Topic     string
		Offset    int64
		EventID   string  `json:"event_id"`
		EventType string  `json:"event_type"`
		LatencyMS float64 `json:"latency_ms"`
		Value     any
		Error     string
	}
	var got []line
	for text := range strings.Lines(stdout) {
		var l line
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		l.Error = strings.SplitAfter(l.Error, ": ")[0]
		got = append(got, l)
	}
	want := []line{
		{Topic: "orders", Offset: 0, EventType: "OrderCancelled", Value: `rub\x1b[2Jbish`, Error: "OrderCancelled: "},
		{Topic: "orders", Offset: 1},
		{Topic: "orders", Offset: 2, EventID: "7", EventType: "Foreign", Value: map[string]any{"a": 1.0}},
		{Topic: "orders", Offset: 3, EventType: "OrderCancelled", Value: map[string]any{"order_id": "o"}, LatencyMS: got[3].LatencyMS},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if ms := got[3].LatencyMS; ms < 0.5 || ms > 2 { // Kafka keeps milliseconds
		t.Errorf("latency %v ms, want the 1.5 since the commit", ms)
	}
}

func TestEncodeAndDecodeAreEachOthersInverse(t *testing.T) {
	p := newPlace(t)
	const one = `{"user_id":"u1","version":3,"email":"a@b","display_name":"Ann","address":"","marketing_opt_in":false}` + "\n"
	const two = `{"user_id":"u2","version":4,"email":"c@d","display_name":"Bob","address":"x","marketing_opt_in":true}` + "\n"

	value, _, err := run(t, strings.NewReader(one), p.args("encode", "--type", "ProfileUpdated", "--registry", "REGISTRY")...)
	if err != nil || value == "" || value[0] != 0 {
		t.Fatalf("encoded to %q, %v", value, err)
	}
	if back, _, err := run(t, strings.NewReader(value), p.args("decode", "--registry", "REGISTRY")...); err != nil || back != one {
		t.Errorf("decoded to %q, %v", back, err)
	}
	frames, _, err := run(t, strings.NewReader(one+two), p.args("encode", "--type", "ProfileUpdated", "--framed", "--registry", "REGISTRY")...)
	if err != nil {
		t.Fatal(err)
	}
	if back, _, err := run(t, strings.NewReader(frames), p.args("decode", "--framed", "--registry", "REGISTRY")...); err != nil || back != one+two {
		t.Errorf("decoded to %q, %v", back, err)
	}
	if out, _, err := run(t, strings.NewReader(one+two), p.args("encode", "--type", "ProfileUpdated", "--registry", "REGISTRY")...); err == nil || out != "" {
		t.Errorf("two values without --framed gave %q, %v", out, err)
	}
	if out, _, err := run(t, strings.NewReader(`{"user_id":"u1"}`), p.args("encode", "--type", "ProfileUpdated", "--registry", "REGISTRY")...); err == nil || out != "" {
		t.Errorf("a value that lacks fields gave %q, %v", out, err)
	}
}

func TestFramedDecodingPassesOverBadValuesAndEndsInError(t *testing.T) {
	p := newPlace(t)
	frame := func(value string) string {
		return string(binary.BigEndian.AppendUint32(nil, uint32(len(value)))) + value
	}
	in := frame(`{"order_id":"a"}`) + frame("rubbish") + "\xff\xff\xff\xff" + frame(`{"order_id":"b"}`)
	stdout, stderr, err := run(t, strings.NewReader(in), p.args("decode", "--framed", "--type", "OrderCancelled", "--registry", "REGISTRY")...)
	if stdout != "{\"order_id\":\"a\"}\nnull\n{\"order_id\":\"b\"}\n" {
		t.Errorf("printed %q", stdout)
	}
	if err == nil || !strings.Contains(err.Error(), "1 of 4") || !strings.Contains(stderr, "Value 2") {
		t.Errorf("said %q, %v", stderr, err)
	}
	for name, in := range map[string]string{"cut length": "\x00\x00", "cut value": "\x00\x00\x00\x09x", "no frames": "{\"order_id\":\"a\"}"} {
		if _, _, err := run(t, strings.NewReader(in), "decode", "--framed"); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestWhatIsAwayIsNamedWithTheFix(t *testing.T) {
	p := newPlace(t)
	for name, c := range map[string]struct {
		stdin, says string
		args        []string
	}{
		"no registry to write": {"{}", "--registry", []string{"encode", "--type", "OrderCancelled", "--registry", closedPort(t)}},
		"no registry to read":  {"\x00\x00\x00\x00\x01\x02a", "--registry", []string{"decode", "--registry", closedPort(t)}},
		"no such topic":        {"", `no topic "nothing"; there are identity`, []string{"tail", "nothing", "--brokers", p.kafka}},
		"no value":             {"", "no value", []string{"decode"}},
		"unknown schema":       {"\x00\x00\x00\x00\x63\x02a", "id 99", []string{"decode", "--registry", p.registry}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, _, err := run(t, strings.NewReader(c.stdin), c.args...); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v does not say %q", err, c.says)
			}
		})
	}
}
