package console

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/schemas"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// started runs a console and its server; stop ends Run and waits for it.
func started(t *testing.T, cfg Config) (c *Console, url string, stop func()) {
	t.Helper()
	cfg.Logger = quiet()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(c.Handler())
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(func() {
		stop()
		server.Close()
	})
	return c, server.URL, stop
}

func get(t *testing.T, url string) (*http.Response, string) {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer, string(body)
}

// eventually polls until the condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline, tick := time.NewTimer(20*time.Second), time.NewTicker(20*time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline.C:
			t.Fatalf("did not happen: %s", what)
		case <-tick.C:
		}
	}
}

// A page of another name that is rebound to this machine sees nothing; whoever was let in from elsewhere does.
func TestOnlyNamesOfThisMachineAreAnswered(t *testing.T) {
	handler := func(allowRemote bool) http.Handler {
		c, err := New(Config{AllowRemote: allowRemote, Logger: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		return c.Handler()
	}
	closed, open := handler(false), handler(true)
	for _, step := range []struct {
		method, host, site string
		closed, open       int
	}{
		{"GET", "localhost:8080", "", 200, 200},
		{"GET", "127.0.0.1:8080", "cross-site", 200, 200}, // a link
		{"GET", "[::1]:8080", "", 200, 200},
		{"GET", "evil.example", "", 403, 200},
		{"GET", "evil.example", "same-origin", 403, 200},
		{"GET", "10.0.0.1:8080", "", 403, 200},
		{"POST", "localhost:8080", "cross-site", 403, 403},
		{"POST", "localhost:8080", "same-origin", 405, 405},
		{"POST", "evil.example", "", 403, 405},
	} {
		for _, path := range []string{"/", "/lag", "/console/api/snapshot", "/console/api/sparks", "/console/static/console.css"} {
			for name, want := range map[string]int{"closed": step.closed, "open": step.open} {
				h := closed
				if name == "open" {
					h = open
				}
				r := httptest.NewRequestWithContext(t.Context(), step.method, path, nil)
				r.Host = step.host
				if step.site != "" {
					r.Header.Set("Sec-Fetch-Site", step.site)
				}
				rec := httptest.NewRecorder()
				h.ServeHTTP(rec, r)
				if rec.Code != want || (want >= 400) != (rec.Header().Get("Content-Type") == "application/problem+json") ||
					rec.Header().Get("Content-Security-Policy") == "" {
					t.Errorf("%s: %s %s of %s: %d %v", name, step.method, path, step.host, rec.Code, rec.Header())
				}
			}
		}
	}
}

var (
	tags       = regexp.MustCompile(`<([a-z]+)([^>]*)>`)
	attributes = regexp.MustCompile(`([a-z-]+)="([^"]*)"`)
)

func TestPagesLoadOnlyWhatThisServerSendsAndRunNoInlineScript(t *testing.T) {
	_, url, _ := started(t, Config{})
	for _, path := range []string{"/", "/lag"} {
		answer, body := get(t, url+path)
		if answer.StatusCode != 200 || !strings.Contains(answer.Header.Get("Content-Security-Policy"), "default-src 'none'; script-src 'self'") {
			t.Errorf("%s: %s with policy %q", path, answer.Status, answer.Header.Get("Content-Security-Policy"))
		}
		assets := 0
		for _, tag := range tags.FindAllStringSubmatch(body, -1) {
			inline := tag[1] == "script"
			for _, attribute := range attributes.FindAllStringSubmatch(tag[2], -1) {
				name, value := attribute[1], attribute[2]
				if strings.HasPrefix(name, "on") || name == "style" {
					t.Errorf("%s: <%s %s=%q> needs an unsafe policy", path, tag[1], name, value)
				}
				if name == "src" || name == "type" && value == "application/json" {
					inline = false
				}
				if name != "src" && name != "href" || strings.HasPrefix(value, "#") {
					continue
				}
				if !strings.HasPrefix(value, "/") || strings.HasPrefix(value, "//") {
					t.Errorf("%s: <%s> loads %s", path, tag[1], value)
				} else if answer, _ := get(t, url+value); answer.StatusCode != 200 {
					t.Errorf("%s: %s is %s", path, value, answer.Status)
				}
				assets++
			}
			if inline {
				t.Errorf("%s has an inline script", path)
			}
		}
		if assets < 5 {
			t.Errorf("%s names only %d addresses", path, assets)
		}
	}
}

func TestWithoutAnySourceEverythingIsUnknown(t *testing.T) {
	c, url, _ := started(t, Config{})
	_, body := get(t, url+"/console/api/snapshot")
	var s Snapshot
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatal(err)
	}
	if s.Headline.LagMessages != nil || s.Headline.DeadLetters != nil || s.Headline.Relay != "unknown" || s.Headline.Verdict != Unknown {
		t.Errorf("headline %+v, want everything unknown", s.Headline)
	}
	if s.ReadModels[0].OldestUnapplied != nil {
		t.Errorf("read models %+v, want unknown ages", s.ReadModels)
	}
	if err := c.Ready(); err != nil {
		t.Errorf("not ready though nothing is configured: %v", err)
	}
}

func TestOutagesAreShownAndNotFatal(t *testing.T) {
	// Nobody listens on the discard port of loopback.
	c, url, _ := started(t, Config{Brokers: []string{"127.0.0.1:9"}, DatabaseURL: "postgres://nobody@127.0.0.1:9/none"})
	eventually(t, "both sources say why", func() bool {
		s := c.Snapshot().Sources
		return s.Kafka.Error != "" && s.Postgres.Error != ""
	})
	err := c.Ready()
	if err == nil || !strings.Contains(err.Error(), "Kafka cannot be measured") || !strings.Contains(err.Error(), "PostgreSQL cannot be measured") {
		t.Errorf("Ready: %v, want both named", err)
	}
	if answer, _ := get(t, url+"/"); answer.StatusCode != 200 {
		t.Errorf("the page is %s during an outage", answer.Status)
	}
}

// stream reads events into a channel that is closed when the server ends the stream.
func stream(t *testing.T, url string) <-chan string {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { answer.Body.Close() })
	if got := answer.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Fatalf("content type %q", got)
	}
	events := make(chan string, 100)
	go func() {
		defer close(events)
		lines := bufio.NewScanner(answer.Body)
		lines.Buffer(nil, 4<<20)
		for lines.Scan() {
			if name, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
				events <- name
			}
		}
	}()
	return events
}

func TestStreamSaysGoodbyeWhenTheConsoleStops(t *testing.T) {
	_, url, stop := started(t, Config{})
	events := stream(t, url+"/console/stream")
	if first, second := <-events, <-events; first != "snapshot" || second != "snapshot" {
		t.Fatalf("events %q, %q, want snapshots", first, second)
	}
	stop()
	var last string
	for e := range events {
		last = e
	}
	if last != "bye" {
		t.Errorf("the last event is %q, want bye", last)
	}
	if answer, _ := get(t, url+"/console/stream"); answer.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a stream after the end is %s", answer.Status)
	}
}

func TestOpenPagesAreBounded(t *testing.T) {
	_, url, _ := started(t, Config{})
	for range maxStreams {
		<-stream(t, url+"/console/stream")
	}
	if answer, _ := get(t, url+"/console/stream"); answer.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("one page too many is %s", answer.Status)
	}
}

func TestRecordsAreTheYoungestFirstAndReadable(t *testing.T) {
	b := newBroker(t, "orders", "letters")
	b.write("orders", 0, 0, 2, 4)
	b.write("orders", 1, 1, 3, 5)
	c, url, _ := started(t, Config{Brokers: b.address})
	eventually(t, "the topics are seen", func() bool { return len(c.Snapshot().Topics) == 2 })
	answer, body := get(t, url+"/console/api/records?topic=orders&limit=3")
	var got struct{ Records []Record }
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatalf("%s: %v", answer.Status, err)
	}
	if len(got.Records) != 3 {
		t.Fatalf("%d records, want 3", len(got.Records))
	}
	for i, want := range []string{"id-5", "id-4", "id-3"} {
		if r := got.Records[i]; r.ID != want || r.Type != "OrderPlaced" || r.Format != "json" || r.Key != "key" {
			t.Errorf("record %d: %+v, want %s", i, r, want)
		}
	}
	for path, status := range map[string]int{
		"?topic=letters": 200, "?topic=nothing": 404, "?topic=": 404, "?topic=orders&limit=0": 400, "?topic=orders&limit=x": 400, "?topic=orders&limit=201": 400,
	} {
		if answer, body := get(t, url+"/console/api/records"+path); answer.StatusCode != status {
			t.Errorf("%s: %s, want %d: %s", path, answer.Status, status, body)
		}
	}
}

func TestAvroIsDecodedAndWhatCannotBeIsShownAsBytes(t *testing.T) {
	codec := schemas.NewCodec(schemas.Avro, schemas.IDs{
		Types:  map[string]int{"OrderCancelled": 7},
		Schema: func(context.Context, int) (string, error) { return schemas.Text("OrderCancelled"), nil },
	})
	_, contentType, value, err := codec.Encode("OrderCancelled", schemas.OrderCancelled{OrderID: "o-1"})
	if err != nil {
		t.Fatal(err)
	}
	b := newBroker(t, "orders")
	for i, v := range [][]byte{value, bytes.Repeat([]byte{0xff}, 600), nil} {
		record := &kgo.Record{Topic: "orders", Timestamp: noon.Add(time.Duration(i) * time.Second), Value: v, Key: []byte{0xfe}, Headers: []kgo.RecordHeader{
			{Key: "event_type", Value: []byte("OrderCancelled")}, {Key: "content-type", Value: []byte(contentType)},
		}}
		if err := b.client.ProduceSync(t.Context(), record).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	c, url, _ := started(t, Config{Brokers: b.address, Codec: codec})
	eventually(t, "the topic is seen", func() bool { return len(c.Snapshot().Topics) == 1 })
	_, body := get(t, url+"/console/api/records?topic=orders")
	var got struct{ Records []Record }
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	want := []Record{
		{Format: "empty"},
		{Format: "bytes", Text: strings.Repeat("ff", 512), Truncated: true, Bytes: 600},
		{Format: "decoded", Text: "{\n  \"order_id\": \"o-1\"\n}", Bytes: len(value)},
	}
	for i, r := range got.Records {
		shown := Record{Format: r.Format, Text: r.Text, Truncated: r.Truncated, Bytes: r.Bytes}
		if diff := cmp.Diff(want[i], shown); diff != "" {
			t.Errorf("record %d (-want +got):\n%s", i, diff)
		}
		if r.Key != "0xfe" {
			t.Errorf("key %q, want hexadecimal", r.Key)
		}
	}
}

func TestHistoryAnswersWithAnHourAndRefusesNonsense(t *testing.T) {
	b := newBroker(t, "orders")
	b.write("orders", 0, 0)
	b.commit("inventory", "orders", 0, 0)
	c, url, _ := started(t, Config{Brokers: b.address})
	eventually(t, "lag is kept", func() bool {
		got := c.history.read(seriesKey{seriesLagMessages, "inventory", "orders", 0}, time.Now(), 3)
		return got[2] != nil || got[1] != nil
	})
	_, body := get(t, url+"/console/api/history?group=inventory&topic=orders&partition=0")
	var p past
	if err := json.Unmarshal([]byte(body), &p); err != nil {
		t.Fatal(err)
	}
	if n := len(p.Series[seriesLagSeconds]); len(p.X) != historySlots || n != historySlots {
		t.Errorf("%d times and %d values, want %d", len(p.X), n, historySlots)
	}
	for _, query := range []string{"", "?group=a", "?group=a&topic=b&partition=x", "?group=a&topic=b&partition=-1"} {
		if answer, _ := get(t, url+"/console/api/history"+query); answer.StatusCode != 400 || answer.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %s as %s", query, answer.Status, answer.Header.Get("Content-Type"))
		}
	}
}

func TestMetricsAreExportedWhileMeasuredAndAbsentAfter(t *testing.T) {
	b := newBroker(t, "identity")
	b.write("identity", 0, 0, 1, 2)
	for p := range int32(2) {
		b.commit("billing", "identity", p, 1)
	}
	registry := prometheus.NewRegistry()
	c, _, stop := started(t, Config{Brokers: b.address, Registerer: registry})
	eventually(t, "lag is exported", func() bool {
		n, err := testutil.GatherAndCount(registry, "converge_consumer_lag_seconds")
		return err == nil && n == 2
	})
	want := `# HELP converge_consumer_lag_messages Records after the group's committed offset; a rise that stays means that the group is slower than the writers.
# TYPE converge_consumer_lag_messages gauge
converge_consumer_lag_messages{group="billing",partition="0",topic="identity"} 2
converge_consumer_lag_messages{group="billing",partition="1",topic="identity"} 0
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "converge_consumer_lag_messages"); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(registry, "converge_consumer_partition_state"); n != 2*len(Verdicts()) || err != nil {
		t.Errorf("%d states, want each verdict for two partitions: %v", n, err)
	}
	if n, err := testutil.GatherAndCount(registry, "converge_outbox_oldest_unapplied_seconds"); n != 1 || err != nil {
		t.Errorf("%d read models, want the one whose group reads: %v", n, err)
	}
	if problems, err := testutil.GatherAndLint(registry); len(problems) > 0 || err != nil {
		t.Errorf("lint: %v %v", problems, err)
	}
	stop()
	c.hub.publish(c.compose(time.Now().Add(2*staleAfter), nil))
	if n, err := testutil.GatherAndCount(registry, "converge_consumer_lag_messages"); n != 0 || err != nil {
		t.Errorf("%d lag samples are exported after nobody measured for %v: %v", n, 2*staleAfter, err)
	}
	if v := testutil.ToFloat64(up(t, registry)); v != 0 {
		t.Errorf("console_source_up is %v", v)
	}
}

func up(t *testing.T, g prometheus.Gatherer) prometheus.Collector {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "up"})
	gauge.Set(-1)
	for _, f := range families {
		if f.GetName() == "converge_console_source_up" {
			gauge.Set(f.GetMetric()[0].GetGauge().GetValue())
		}
	}
	return gauge
}

func TestWrongSettingsAreRefused(t *testing.T) {
	if _, err := New(Config{DatabaseURL: "postgres://%zz"}); err == nil {
		t.Error("an unreadable database URL was taken")
	}
	registry := prometheus.NewRegistry()
	for i, wantErr := range []bool{false, true} {
		if _, err := New(Config{Registerer: registry}); (err != nil) != wantErr {
			t.Errorf("console %d on one registry: %v", i, err)
		}
	}
}
