//go:build browser

package console

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/schemas"
)

//go:embed testdata/axe-core/axe.min.js
var axe string

// browser starts Chromium; its context ends with the test. What the page complains about fails the test:
// among others, everything that the content policy refused.
func browser(t *testing.T) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.Flag("disable-quic", true), chromedp.NoFirstRun,
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.UserDataDir(t.TempDir()))
	allocated, stop := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(stop)
	bounded, cancel := context.WithTimeout(allocated, 3*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(bounded, chromedp.WithListener(func(e any) {
		switch e := e.(type) {
		case *runtime.EventExceptionThrown:
			t.Errorf("the page threw: %s %+v", e.ExceptionDetails.Text, e.ExceptionDetails.Exception)
		case *log.EventEntryAdded:
			if e.Entry.Source == log.EntrySourceSecurity || e.Entry.Source == log.EntrySourceViolation {
				t.Errorf("the browser says: %s", e.Entry.Text)
			}
		}
	}))
	t.Cleanup(cancel)
	if _, err := chromedp.Call(ctx, log.Enable, cdp.Empty{}); err != nil {
		t.Fatal(err)
	}
	return ctx
}

// serve runs the console on a port of its own. stop drains it as the process does.
func serve(t *testing.T, cfg Config) (url string, stop func()) {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	server := &http.Server{Handler: c.Handler()}
	go func() { ended <- c.Run(ctx) }()
	go func() { ended <- server.Serve(listener) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := server.Shutdown(context.Background()); err != nil {
			t.Errorf("shutting down: %v", err)
		}
		for range 2 {
			if err := <-ended; err != nil && !errors.Is(err, http.ErrServerClosed) {
				t.Errorf("serving: %v", err)
			}
		}
	}
	t.Cleanup(stop)
	return "http://" + listener.Addr().String(), stop
}

// allTopics are the topics of the whole pipeline, as it creates them.
func allTopics() []string {
	topics := schemas.Topics()
	for _, reader := range schemas.Readers() {
		read, _ := schemas.ReadBy(reader)
		for _, topic := range read {
			for _, end := range []string{"retry.1s", "retry.10s", "retry.1m", "retry.10m", "dlq"} {
				topics = append(topics, topic+"."+reader+"."+end)
			}
		}
	}
	return topics
}

// pipeline plays the services: every reader is a member of its group, and commits what it read.
func pipeline(t *testing.T, b *broker, readers ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var ended []chan struct{}
	for _, reader := range readers {
		topics, _ := schemas.ReadBy(reader)
		member, err := kgo.NewClient(kgo.SeedBrokers(b.address...), kgo.ConsumerGroup(reader), kgo.ConsumeTopics(topics...),
			kgo.ClientID("converge-"+reader), kgo.AutoCommitInterval(200*time.Millisecond), kgo.FetchMaxWait(200*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		ended = append(ended, done)
		go func() {
			defer close(done)
			defer member.Close()
			for ctx.Err() == nil {
				member.PollFetches(ctx)
			}
		}()
	}
	t.Cleanup(func() {
		cancel()
		for _, done := range ended {
			<-done
		}
	})
}

// traffic writes n records to each event topic.
func traffic(t *testing.T, b *broker, n int) {
	t.Helper()
	for i := range n {
		for _, r := range schemas.Routes() {
			b.client.Produce(context.Background(), &kgo.Record{
				Topic: r.Topic, Partition: int32(i % 2), Key: fmt.Appendf(nil, "order-%d", i),
				Value: fmt.Appendf(nil, `{"order_id":"order-%d","total_amount":%d,"currency":"EUR"}`, i, 100*i),
				Headers: []kgo.RecordHeader{
					{Key: "event_type", Value: []byte(r.Type)},
					{Key: "event_id", Value: fmt.Appendf(nil, "0199c0de-0000-7000-8000-%012d", i)},
					{Key: "content-type", Value: []byte("application/json")},
				},
			}, func(_ *kgo.Record, err error) {
				if err != nil {
					t.Errorf("producing: %v", err)
				}
			})
		}
	}
	if err := b.client.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

type action = chromedp.Action[chromedp.Void]

func window(width, height int64, scheme string) action {
	return chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		if _, err := cdp.Call(ctx, target, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
			Width: width, Height: height, DeviceScaleFactor: 1,
		}); err != nil {
			return err
		}
		_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
		})
		return err
	})
}

// picture keeps a screenshot when CONVERGE_SCREENSHOTS names a directory.
func picture(t *testing.T, ctx context.Context, name string) {
	t.Helper()
	dir := os.Getenv("CONVERGE_SCREENSHOTS")
	if dir == "" {
		return
	}
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		t.Fatal(err)
	}
}

// accessible runs axe-core over the page as it stands.
func accessible(t *testing.T, ctx context.Context, where string) {
	t.Helper()
	if _, err := chromedp.Run(ctx, chromedp.Evaluate[chromedp.Void](axe+";undefined")); err != nil {
		t.Fatal(err)
	}
	found, err := chromedp.Run(ctx, chromedp.Evaluate[string](`axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}).then((r) => JSON.stringify(
		r.violations.map((v) => ({id: v.id, help: v.help, nodes: v.nodes.slice(0, 4).map((n) => n.html.slice(0, 160) + " — " + n.failureSummary)}))))`,
		chromedp.EvalAwaitPromise))
	if err != nil {
		t.Fatal(err)
	}
	var violations []struct {
		ID, Help string
		Nodes    []string
	}
	if err := json.Unmarshal([]byte(found), &violations); err != nil {
		t.Fatal(err)
	}
	for _, v := range violations {
		t.Errorf("%s: %s: %s\n\t%s", where, v.ID, v.Help, strings.Join(v.Nodes, "\n\t"))
	}
}

// until waits for a JavaScript expression to be true.
func until(expression string) action {
	return chromedp.Poll[chromedp.Void](expression, chromedp.WithPollingTimeout(30*time.Second), chromedp.WithPollingInterval(100*time.Millisecond))
}

func TestBrowserFollowsTheFlowFromPictureToDetailsToLag(t *testing.T) {
	b := newBroker(t, allTopics()...)
	var readers []string
	for _, r := range schemas.Readers() {
		if r != "analytics" {
			readers = append(readers, r)
		}
	}
	pipeline(t, b, readers...)
	b.commit("analytics", "identity", 0, 0)
	b.commit("analytics", "identity", 1, 0)
	databaseURL, conn := populated(t)
	slot := "browser_" + conn.Config().Database
	exec(t, conn, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
	t.Cleanup(func() { _, _ = conn.Exec(context.Background(), `SELECT pg_drop_replication_slot($1)`, slot) })
	registry := prometheus.NewRegistry()
	consistency := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: consistencyMetric, Buckets: []float64{.01, .025, .05, .1, .25, 1}}, []string{"read_model"})
	registry.MustRegister(consistency)
	consistency.WithLabelValues("order_views")
	url, stop := serve(t, Config{Brokers: b.address, Registerer: registry, Gatherer: registry, DatabaseURL: databaseURL})
	ctx := browser(t)

	const ordersRecords = `document.querySelector('[data-box="topic:orders"] [data-t]').textContent`
	if err := chromedp.Do(ctx, window(1280, 800, "light"), chromedp.Navigate(url+"/"),
		until(`document.querySelector('.source[data-source=kafka]').dataset.mood === "good"`),
		until(ordersRecords+` === "no records yet"`)); err != nil {
		t.Fatal(err)
	}
	picture(t, ctx, "flow-empty-1280-light")

	traffic(t, b, 40)
	exec(t, conn, `SELECT nextval('orders.outbox_seq') FROM generate_series(1, 160)`)
	exec(t, conn, `SELECT nextval('inventory.outbox_seq') FROM generate_series(1, 120)`)
	for i := range 100 {
		consistency.WithLabelValues("order_views").Observe(.004 * float64(i%20))
	}
	if err := chromedp.Do(ctx, until(ordersRecords+`.startsWith("0/s · 160") || `+ordersRecords+`.includes("160 rec")`),
		until(`document.querySelector('[data-pipe="pipe:read:inventory:orders"]').classList.contains("v-OK")`),
		until(`document.querySelector('[data-box="group:analytics"] .verdict').textContent === "LAGGING"`)); err != nil {
		t.Fatal(err)
	}
	accessible(t, ctx, "flow, light")
	picture(t, ctx, "flow-1280-light")

	if err := chromedp.Do(ctx, chromedp.Click(chromedp.CSS(`[data-box="topic:orders"]`)), chromedp.WaitVisible(chromedp.CSS("#panel")),
		until(`document.activeElement.id === "panel-title" && document.activeElement.textContent === "orders"`),
		until(`document.querySelectorAll("#records details").length === 25`),
		chromedp.Click(chromedp.CSS("#records details:first-child summary")),
		until(`document.querySelector("#records details[open] pre").textContent.includes('"currency": "EUR"')`)); err != nil {
		t.Fatal(err)
	}
	accessible(t, ctx, "details, light")
	picture(t, ctx, "details-1280-light")

	if err := chromedp.Do(ctx, chromedp.KeyEvent("\u001b"), chromedp.WaitNotVisible(chromedp.CSS("#panel")),
		until(`document.activeElement.dataset.box === "topic:orders"`),
		chromedp.Focus(chromedp.CSS(`[data-box="group:analytics"]`)), chromedp.KeyEvent("\r"), chromedp.WaitVisible(chromedp.CSS("#panel")),
		chromedp.Click(chromedp.CSS(`#panel-live a[href^="/lag#"]`)), chromedp.WaitVisible(chromedp.CSS("#chart")),
		until(`document.getElementById("chart-title").textContent.startsWith("analytics on identity")`),
		until(`document.querySelector("#chart canvas") !== null`),
		until(`[...document.querySelectorAll("#lag tr.topic")].some((r) => r.textContent.includes("STOPPED"))`)); err != nil {
		t.Fatal(err)
	}
	accessible(t, ctx, "lag, light")
	picture(t, ctx, "lag-1280-light")

	const behind = `Number([...document.querySelectorAll("#lag tr.topic")].find((r) => r.textContent.includes("STOPPED")).cells[2].textContent)`
	before, err := chromedp.Run(ctx, chromedp.Evaluate[int](behind))
	if err != nil {
		t.Fatal(err)
	}
	traffic(t, b, 5)
	if err := chromedp.Do(ctx, until(behind+fmt.Sprintf(" === %d", before+5)),
		chromedp.Click(chromedp.CSS(`[aria-label="Partitions of analytics identity"]`)),
		until(`document.querySelectorAll("#lag tr.partition").length === 2`)); err != nil {
		t.Fatal(err)
	}
	for _, size := range []struct {
		w, h   int64
		scheme string
	}{{1280, 800, "dark"}, {1920, 1080, "light"}, {1920, 1080, "dark"}, {390, 844, "light"}} {
		for page, path := range map[string]string{"flow": "/", "lag": "/lag"} {
			traffic(t, b, 20)
			exec(t, conn, `SELECT nextval('orders.outbox_seq') FROM generate_series(1, 80)`)
			name := fmt.Sprintf("%s-%d-%s", page, size.w, size.scheme)
			if err := chromedp.Do(ctx, window(size.w, size.h, size.scheme), chromedp.Navigate(url+path),
				until(`document.querySelector('.source[data-source=kafka]').dataset.mood === "good"`),
				until(`document.querySelector("#chart canvas, #flow .verdict[data-state=ok]") !== null`)); err != nil {
				t.Fatal(err)
			}
			accessible(t, ctx, name)
			picture(t, ctx, name)
		}
	}

	if err := chromedp.Do(ctx, window(1280, 800, "dark"), chromedp.Navigate(url+"/"),
		until(`document.querySelector('.source[data-source=stream]').dataset.mood === "good"`), until(`document.getElementById("banner").hidden || true`)); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := chromedp.Do(ctx, until(`!document.getElementById("banner").hidden && document.body.classList.contains("broken")`),
		until(`/old/.test(document.getElementById("banner").textContent)`)); err != nil {
		t.Fatal(err)
	}
	accessible(t, ctx, "stale, dark")
	picture(t, ctx, "stale-1280-dark")
}
