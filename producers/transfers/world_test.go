package transfers

import (
	"context"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"converge/consumers/event"
	"converge/consumers/ledger"
	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/producers/httpapi"
	"converge/producers/outbox"
	"converge/schemas"
)

// world is Transfers and the Ledger on one real PostgreSQL, each in its schema, Transfers behind real HTTP,
// and a post office that reads their outboxes. Nothing is delivered unless a test says so.
type world struct {
	t         *testing.T
	transfers *Service
	registry  *prometheus.Registry
	pools     map[string]*pgxpool.Pool
	handlers  map[string]event.Handler
	base      string
	token     string // of whom it speaks for; "" sends none
}

func newWorld(t *testing.T, deadline, answerDeadline time.Duration) *world {
	t.Helper()
	return newWorldOf(t, httpapi.Config{}, deadline, answerDeadline)
}

func newWorldOf(t *testing.T, cfg httpapi.Config, deadline, answerDeadline time.Duration) *world {
	t.Helper()
	outboxSet := database.Set{Name: "outbox", FS: outbox.Migrations}
	url := pgtest.Database(t, "transfers", func(ctx context.Context, url string) error {
		return database.Migrate(ctx, url,
			database.Module{Service: "transfers", Sets: []database.Set{outboxSet, {Name: "httpapi", FS: httpapi.Migrations}, {Name: "transfers", FS: Migrations}}},
			database.Module{Service: "ledger", Sets: []database.Set{outboxSet, {Name: "ledger", FS: ledger.Migrations}}})
	})
	w := &world{t: t, registry: prometheus.NewRegistry(), pools: map[string]*pgxpool.Pool{}}
	for _, name := range []string{"transfers", "ledger"} {
		pool, err := database.Open(t.Context(), url, name, 8)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		w.pools[name] = pool
	}
	codec := schemas.NewCodec(schemas.JSON, schemas.IDs{})
	out := outbox.New(codec)
	w.transfers = New(Config{Pool: w.pools["transfers"], Outbox: out, Decoder: codec, Deadline: deadline, AnswerDeadline: answerDeadline, Registerer: w.registry})
	w.handlers = map[string]event.Handler{
		"transfers": w.transfers.Handler(),
		"ledger":    ledger.New(ledger.Config{Outbox: out, Decoder: codec}).Handler(),
	}
	api, err := httpapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.transfers.Routes(api)
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	w.base = server.URL
	return w
}

type reply struct {
	code   int
	header http.Header
	body   map[string]any
	raw    string
}

func (w *world) do(method, path, body string, headers ...string) reply {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.base+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if w.token != "" {
		req.Header.Set("Authorization", "Bearer "+w.token)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	got := reply{code: res.StatusCode, header: res.Header, raw: string(raw)}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &got.body); err != nil {
			w.t.Fatalf("%s %s: %v in %s", method, path, err, raw)
		}
	}
	return got
}

// post sends a POST under a key of its own.
func (w *world) post(path, body string) reply {
	w.t.Helper()
	return w.do("POST", path, body, "Idempotency-Key", uuid.NewString())
}

// opens opens an account in USD.
func (w *world) opens(id string, balance string) {
	w.t.Helper()
	if got := w.post("/accounts", `{"id":"`+id+`","opening_balance":`+balance+`}`); got.code != http.StatusCreated {
		w.t.Fatalf("%d %s", got.code, got.raw)
	}
}

// asks requests a transfer in USD and returns its id.
func (w *world) asks(from, to, amount string) string {
	w.t.Helper()
	got := w.post("/transfers", `{"from_account":"`+from+`","to_account":"`+to+`","amount":`+amount+`}`)
	if got.code != http.StatusAccepted {
		w.t.Fatalf("%d %s", got.code, got.raw)
	}
	return got.body["id"].(string)
}

const outboxSQL = `
SELECT event_id, topic, aggregate_id, aggregate_version, event_type, content_type, payload, headers
FROM outbox
ORDER BY seq`

// said returns what a service has said, oldest first.
func (w *world) said(service string) []*event.Event {
	w.t.Helper()
	rows, err := w.pools[service].Query(w.t.Context(), outboxSQL)
	if err != nil {
		w.t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*event.Event, error) {
		var e event.Event
		var headers map[string]string
		err := row.Scan(&e.ID, &e.Topic, &e.AggregateID, &e.AggregateVersion, &e.Type, &e.ContentType, &e.Value, &headers)
		e.CorrelationID, e.CausationID = headers["correlation_id"], headers["causation_id"]
		return &e, err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

// types returns the types of what a service said of an aggregate.
func (w *world) types(service, id string) []string {
	w.t.Helper()
	var types []string
	for _, e := range w.said(service) {
		if e.AggregateID == id {
			types = append(types, e.Type)
		}
	}
	return types
}

// hear gives events to their reader in one transaction, as runs of one type.
func (w *world) hear(ctx context.Context, reader string, events ...*event.Event) error {
	return pgx.BeginFunc(ctx, w.pools[reader], func(tx pgx.Tx) error {
		for start := 0; start < len(events); {
			end := start + 1
			for end < len(events) && events[end].Type == events[start].Type {
				end++
			}
			if err := w.handlers[reader].Batch[events[start].Type](ctx, tx, events[start:end]); err != nil {
				return err
			}
			start = end
		}
		return nil
	})
}

// other is who reads what a service says.
var other = map[string]string{"transfers": "ledger", "ledger": "transfers"}

// settle delivers everything, round after round, until nobody says anything new. Every round delivers the old
// again, too; with rng, in an order of its own.
func (w *world) settle(rng *rand.Rand) {
	w.t.Helper()
	for known := -1; ; {
		var all int
		for _, emitter := range []string{"transfers", "ledger"} {
			events := w.said(emitter)
			all += len(events)
			if rng != nil {
				rng.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
			}
			if len(events) == 0 {
				continue
			}
			if err := w.hear(w.t.Context(), other[emitter], events...); err != nil {
				w.t.Fatal(err)
			}
		}
		if all == known {
			return
		}
		known = all
	}
}

// metric returns the value of the series of a metric that has the label value.
func (w *world) metric(name, value string) float64 {
	w.t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == name && l.GetValue() == value {
					return m.GetGauge().GetValue() + m.GetCounter().GetValue() // it has one of them
				}
			}
		}
	}
	w.t.Fatalf("there is no %s of %s", name, value)
	return 0
}
