package eventcli

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"converge/schemas"
)

// kcat is what users have. These tests speak through it, with the lines that the product prints.
func needKcat(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("kcat"); err != nil {
		t.Skip("kcat is not installed (Debian: apt-get install kcat); the lines for it cannot be tried")
	}
}

func shell(t *testing.T, dir, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, stderr.String())
	}
	return string(out)
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

func TestThePrintedKcatLinesProduceTheEvent(t *testing.T) {
	needKcat(t)
	p := newPlace(t)
	dir := t.TempDir()
	lines := p.follow(t, "identity", "--json")
	for _, format := range []string{"json", "avro"} {
		stdout, stderr, err := run(t, nil, p.args("new", "ProfileUpdated", "display_name=D'Arcy \"$HOME\"", "--key", "user 1", "--format", format, "--brokers", "BROKERS", "--registry", "REGISTRY")...)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "event.bin"), []byte(stdout), 0o600); err != nil {
			t.Fatal(err)
		}
		shell(t, dir, lastLine(stderr))
		var got struct {
			Key       string
			Partition int32
			EventType string `json:"event_type"`
			Version   string `json:"aggregate_version"`
			Headers   map[string]string
			Value     schemas.ProfileUpdated
			Error     string
		}
		text := next(t, lines)
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Fatal(err)
		}
		want := schemas.ProfileUpdated{UserID: "user 1", Version: 1, Email: "user 1@example.org", DisplayName: `D'Arcy "$HOME"`, Address: got.Value.Address}
		if got.Error != "" || got.Key != "user 1" || got.EventType != "ProfileUpdated" || got.Version != "1" || got.Headers["content-type"] != "application/"+format || got.Value != want {
			t.Errorf("%s arrived as %s", format, text)
		}
		// The relay's partitioner is Kafka's own: kcat must put the key where the relay does.
		client, err := kgo.NewClient(kgo.SeedBrokers(p.kafka))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		r := &kgo.Record{Topic: "identity", Key: []byte("user 1"), Value: []byte("{}")}
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if r.Partition != got.Partition {
			t.Errorf("kcat put the key on partition %d, the relay's client on %d", got.Partition, r.Partition)
		}
		next(t, lines)
	}
}

func TestKcatAndTheFiltersPair(t *testing.T) {
	needKcat(t)
	p := newPlace(t)
	dir := t.TempDir()
	for _, id := range []string{"a", "b\n\x00c"} { // a newline and a zero, which no separator survives
		text, err := json.Marshal(schemas.OrderCancelled{OrderID: id})
		if err != nil {
			t.Fatal(err)
		}
		value, _, err := run(t, bytes.NewReader(text), p.args("encode", "--type", "OrderCancelled", "--registry", "REGISTRY")...)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "event.bin"), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
		shell(t, dir, "kcat -P -b "+p.kafka+" -t orders -p 0 -k k event.bin")
	}
	frames := shell(t, dir, "kcat -C -q -b "+p.kafka+" -t orders -p 0 -e -f %R%s")
	got, _, err := run(t, strings.NewReader(frames), p.args("decode", "--framed", "--registry", "REGISTRY")...)
	if want := "{\"order_id\":\"a\"}\n{\"order_id\":\"b\\n\\u0000c\"}\n"; err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	one := shell(t, dir, "kcat -C -q -b "+p.kafka+" -t orders -p 0 -o 0 -c 1 -f %s")
	if got, _, err := run(t, strings.NewReader(one), p.args("decode", "--registry", "REGISTRY")...); err != nil || got != "{\"order_id\":\"a\"}\n" {
		t.Errorf("got %q, %v", got, err)
	}
}
