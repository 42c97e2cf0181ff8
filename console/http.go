package console

import (
	"bytes"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kgo"

	"converge/producers/httpapi"
	"converge/schemas"
)

//go:embed static templates
var files embed.FS

func parsePages() (*template.Template, error) {
	return template.ParseFS(files, "templates/*.html")
}

// Handler serves the pages and their data. It only reads. It shows events' contents and asks nobody who they are:
// who reaches it may read them, but for pages of other origins, see [Config.AllowRemote].
//
//	/                        the flow
//	/lag                     lag by group, topic and partition
//	/console/stream          server-sent events: "snapshot" every second, "bye" at the end
//	/console/api/snapshot    the same, once, as JSON with partitions: see [Snapshot]
//	/console/api/history     ?group=&topic=[&partition=]: the last hour of a group's lag; ?headline=1
//	/console/api/sparks      the last ten minutes of every group's lag in seconds, by "group topic"
//	/console/api/records     ?topic=[&limit=]: the youngest records of a topic
func (c *Console) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", c.flowPage)
	mux.HandleFunc("GET /lag", c.lagPage)
	mux.HandleFunc("GET /console/stream", c.stream)
	mux.HandleFunc("GET /console/api/snapshot", c.snapshotJSON)
	mux.HandleFunc("GET /console/api/history", c.historyJSON)
	mux.HandleFunc("GET /console/api/sparks", c.sparksJSON)
	mux.HandleFunc("GET /console/api/records", c.recordsJSON)
	static, err := fs.Sub(files, "static")
	if err != nil {
		panic(err) // the directory is compiled in
	}
	assets := http.StripPrefix("/console/static/", http.FileServerFS(static))
	mux.HandleFunc("GET /console/static/", func(w http.ResponseWriter, r *http.Request) {
		// Assets change with the binary alone, and have no dates: ask again after a restart.
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("Etag", `"`+strconv.FormatInt(c.startedAt.UnixNano(), 36)+`"`)
		assets.ServeHTTP(w, r)
	})
	return guarded(httpapi.Local(httpapi.Routed(mux), c.cfg.AllowRemote))
}

// contentPolicy lets pages load what this server sends and nothing else: no inline script or style.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		next.ServeHTTP(w, r)
	})
}

// page is what a template is given.
type page struct {
	Title string
	Path  string
	Flow  *diagram
	Plan  plan
}

// plan is the topology as the pages' scripts need it.
type plan struct {
	Routes     []schemas.Route   `json:"routes"`
	ReadModels map[string]string `json:"read_models"` // by group
}

func (c *Console) flowPage(w http.ResponseWriter, r *http.Request) {
	c.render(w, r, "flow.html", page{Title: "Flow", Flow: draw(schemas.Routes(), schemas.ReadModels(), c.cfg.Rungs)})
}

func (c *Console) lagPage(w http.ResponseWriter, r *http.Request) {
	c.render(w, r, "lag.html", page{Title: "Lag"})
}

func (c *Console) render(w http.ResponseWriter, r *http.Request, name string, p page) {
	p.Path, p.Plan = r.URL.Path, plan{schemas.Routes(), schemas.ReadModels()}
	var out bytes.Buffer
	if err := c.pages.ExecuteTemplate(&out, name, p); err != nil {
		c.log.Error("console page", "page", name, "error", err)
		problem(w, http.StatusInternalServerError, "the page could not be made")
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(out.Bytes())
}

func (c *Console) snapshotJSON(w http.ResponseWriter, _ *http.Request) {
	f, _ := c.hub.latest()
	writeJSON(w, json.RawMessage(f.full()))
}

// past is a chart's data: x in Unix seconds, and the series beside it with null for gaps.
type past struct {
	X      []int64               `json:"x"`
	Series map[string][]*float64 `json:"series"`
}

func newPast(now time.Time, n int) past {
	x := make([]int64, n)
	step := int64(historyStep / time.Second)
	for i := range x {
		x[i] = (now.Unix()/step - int64(n-1-i)) * step
	}
	return past{x, map[string][]*float64{}}
}

func (c *Console) historyJSON(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	now := time.Now()
	if q.Get("headline") != "" {
		p := newPast(now, sparkSlots)
		for _, name := range []string{seriesOrders, seriesConsistency, seriesLagMessages, seriesLagSeconds, seriesDead, seriesWAL} {
			p.Series[name] = c.history.read(seriesKey{name: name, partition: allPartitions}, now, sparkSlots)
		}
		writeJSON(w, p)
		return
	}
	key := seriesKey{group: q.Get("group"), topic: q.Get("topic"), partition: allPartitions}
	if key.group == "" || key.topic == "" {
		problem(w, http.StatusBadRequest, "give group and topic, or headline=1")
		return
	}
	if text := q.Get("partition"); text != "" {
		n, err := strconv.ParseInt(text, 10, 32)
		if err != nil || n < 0 {
			problem(w, http.StatusBadRequest, "partition is not a number")
			return
		}
		key.partition = int32(n)
	}
	p := newPast(now, historySlots)
	for _, name := range []string{seriesLagMessages, seriesLagSeconds} {
		key.name = name
		p.Series[name] = c.history.read(key, now, historySlots)
	}
	writeJSON(w, p)
}

// sparkSlots is ten minutes.
const sparkSlots = 120

func (c *Console) sparksJSON(w http.ResponseWriter, _ *http.Request) {
	f, _ := c.hub.latest()
	now := time.Now()
	p := newPast(now, sparkSlots)
	for _, g := range f.snapshot.Groups {
		for _, t := range g.Topics {
			p.Series[g.Name+" "+t.Topic] = c.history.read(seriesKey{seriesLagSeconds, g.Name, t.Topic, allPartitions}, now, sparkSlots)
		}
	}
	writeJSON(w, p)
}

// Record is one record of a topic as people read it. Text is JSON when Format is json (as sent) or
// decoded (from Avro), and hexadecimal when Format is bytes; Truncated says that Text holds the beginning.
type Record struct {
	Partition int32             `json:"partition"`
	Offset    int64             `json:"offset"`
	Time      time.Time         `json:"time"`
	Key       string            `json:"key"`
	Type      string            `json:"type"`
	ID        string            `json:"id"`
	Headers   map[string]string `json:"headers"`
	Bytes     int               `json:"bytes"`
	Format    string            `json:"format"`
	Text      string            `json:"text"`
	Truncated bool              `json:"truncated"`
}

const (
	maxRecords   = 200
	maxShown     = 4 << 10 // characters of a value
	recordsAsked = 25
)

func (c *Console) recordsJSON(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	topic, limit := q.Get("topic"), recordsAsked
	if text := q.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxRecords {
			problem(w, http.StatusBadRequest, fmt.Sprintf("limit is not a number from 1 to %d", maxRecords))
			return
		}
		limit = n
	}
	f, _ := c.hub.latest()
	if !slices.ContainsFunc(f.snapshot.Topics, func(t Topic) bool { return t.Name == topic }) {
		problem(w, http.StatusNotFound, "no such topic has been seen")
		return
	}
	fetch := c.fetch.Load()
	if fetch == nil {
		problem(w, http.StatusServiceUnavailable, "Kafka is not looked at")
		return
	}
	records, err := fetch.recent(r.Context(), topic, limit)
	switch {
	case errors.Is(err, errNoTopic):
		problem(w, http.StatusNotFound, "no such topic")
		return
	case err != nil:
		c.log.Warn("console records", "topic", topic, "error", err)
		problem(w, http.StatusServiceUnavailable, "Kafka did not answer")
		return
	}
	shown := make([]Record, len(records))
	for i, record := range records {
		shown[i] = c.show(r, record)
	}
	writeJSON(w, map[string]any{"topic": topic, "records": shown})
}

func (c *Console) show(r *http.Request, record *kgo.Record) Record {
	s := Record{
		Partition: record.Partition, Offset: record.Offset, Time: record.Timestamp, Key: printable(record.Key),
		Headers: map[string]string{}, Bytes: len(record.Value),
	}
	for _, h := range record.Headers {
		s.Headers[h.Key] = printable(h.Value)
	}
	s.Type = first(s.Headers, "event_type", "ce_type", "eventType")
	s.ID = first(s.Headers, "event_id", "ce_id", "id")
	var text []byte
	switch {
	case len(record.Value) == 0:
		s.Format = "empty"
	case json.Valid(record.Value):
		s.Format, text = "json", record.Value
	case c.cfg.Codec != nil:
		s.Format, text = c.decoded(r, s, record.Value)
	}
	if s.Format == "" {
		shown := record.Value[:min(len(record.Value), 512)]
		s.Format, s.Text, s.Truncated = "bytes", hex.EncodeToString(shown), len(shown) < len(record.Value)
		return s
	}
	var pretty bytes.Buffer
	if json.Indent(&pretty, text, "", "  ") == nil {
		text = pretty.Bytes()
	}
	s.Truncated = len(text) > maxShown
	s.Text = strings.ToValidUTF8(string(text[:min(len(text), maxShown)]), "")
	return s
}

// decoded returns the value as JSON, and "" as its format when the codec cannot read it.
func (c *Console) decoded(r *http.Request, s Record, value []byte) (format string, text []byte) {
	_, data, err := c.cfg.Codec.Inspect(r.Context(), s.Type, s.Headers["content-type"], value)
	if err != nil {
		return "", nil
	}
	text, err = json.Marshal(data)
	if err != nil {
		return "", nil
	}
	return "decoded", text
}

func first(headers map[string]string, names ...string) string {
	for _, name := range names {
		if v := headers[name]; v != "" {
			return v
		}
	}
	return ""
}

// printable shows bytes as text when they are text, else in hexadecimal, and never at length.
func printable(b []byte) string {
	if !utf8.Valid(b) {
		b = []byte("0x" + hex.EncodeToString(b[:min(len(b), 64)]))
	}
	return strings.ToValidUTF8(string(b[:min(len(b), 512)]), "")
}

func writeJSON(w http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		problem(w, http.StatusInternalServerError, "the answer could not be written")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(b)
}

// problem answers as RFC 9457 has it.
func problem(w http.ResponseWriter, status int, detail string) {
	b, _ := json.Marshal(map[string]any{"type": "about:blank", "title": http.StatusText(status), "status": status, "detail": detail})
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_, _ = w.Write(b)
}
