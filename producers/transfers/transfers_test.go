package transfers

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sync/errgroup"

	"converge/consumers/event"
	"converge/schemas"
)

func newEvent(t *testing.T, eventType string, data any) *event.Event {
	t.Helper()
	value, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	return &event.Event{ID: uuid.New(), Type: eventType, ContentType: schemas.ContentTypeJSON, Value: value}
}

func (w *world) view(id string) *view {
	w.t.Helper()
	v, ok, err := find(w.t.Context(), w.pools["transfers"], uuid.MustParse(id))
	if err != nil || !ok {
		w.t.Fatal(err, ok)
	}
	return v
}

// expire lets the time of every open transfer be up.
func (w *world) expire() {
	w.t.Helper()
	if _, err := w.pools["transfers"].Exec(w.t.Context(), "UPDATE transfers SET due_at = now() WHERE due_at < 'infinity'"); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) sweep() {
	w.t.Helper()
	if _, err := w.transfers.sweep(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func TestHandlesWhatTheTopologySays(t *testing.T) {
	got := New(Config{}).Handler().Types()
	slices.Sort(got)
	_, want := schemas.ReadBy("transfers")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-topology +handler:\n%s", diff)
	}
}

// The relay may show a transaction before the server shows it to others: an answer to it that is quick does
// not cost a try.
func TestATransferThatIsNotVisibleYetIsWaitedFor(t *testing.T) {
	w := newWorld(t, time.Hour, time.Hour)
	tx, err := w.pools["transfers"].Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context()) //nolint:errcheck // after the commit it has nothing to do
	v, err := w.transfers.request(t.Context(), tx, terms{"a", "b", 1, "USD"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	debited := newEvent(t, "TransferDebited", schemas.TransferDebited{TransferID: v.id.String(), AccountID: "a", Version: 2})
	debited.RecordedAt = time.Now()
	applied := make(chan error, 1)
	go func() { applied <- w.hear(t.Context(), "transfers", debited) }()
	looked := time.NewTicker(10 * time.Millisecond)
	defer looked.Stop()
	for waits := false; !waits; {
		select {
		case err := <-applied:
			t.Fatalf("nobody waited for the transfer's commit: %v", err)
		case <-looked.C:
			const sql = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted)"
			if err := w.pools["transfers"].QueryRow(t.Context(), sql).Scan(&waits); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-applied; err != nil {
		t.Fatal(err)
	}
	if v := w.view(v.id.String()); v.saga.State != Debited {
		t.Errorf("the transfer is %s, want %s", v.saga.State, Debited)
	}
}

// A transfer that stays unknown is worth another try; what names no transfer at all is not.
func TestAnUnknownTransferIsTriedAgainAndRubbishIsNot(t *testing.T) {
	w := newWorld(t, time.Hour, time.Hour)
	w.opens("a", "10")
	known := w.asks("a", "b", "1")
	err := w.hear(t.Context(), "transfers",
		newEvent(t, "TransferDebited", schemas.TransferDebited{TransferID: known, AccountID: "a", Balance: 9, Version: 2}),
		newEvent(t, "TransferDebited", schemas.TransferDebited{TransferID: uuid.NewString(), AccountID: "a", Balance: 8, Version: 3}))
	if !errors.Is(err, errUnknownTransfer) || event.Classify(err) != event.ClassRetriable {
		t.Errorf("unknown transfer: %v", err)
	}
	rubbish := map[string]*event.Event{
		"no reason":  newEvent(t, "TransferFailed", schemas.TransferFailed{TransferID: known, Reason: "mood"}),
		"overdrawn":  newEvent(t, "TransferDebited", schemas.TransferDebited{TransferID: known, AccountID: "a", Balance: -1, Version: 2}),
		"no id":      newEvent(t, "TransferDebited", schemas.TransferDebited{}),
		"a number":   newEvent(t, "TransferCompleted", schemas.TransferCompleted{TransferID: "42"}),
		"upper case": newEvent(t, "TransferCompleted", schemas.TransferCompleted{TransferID: strings.ToUpper(known)}),
	}
	for name, e := range rubbish {
		if err := w.hear(t.Context(), "transfers", e); err == nil || event.Classify(err) != event.ClassPermanent {
			t.Errorf("%s: %v", name, err)
		}
	}
	if v := w.view(known); v.saga.State != Pending {
		t.Errorf("what was refused moved the transfer to %s", v.saga.State)
	}
	if got := w.do("GET", "/accounts/a", ""); got.body["balance"] != 10.0 {
		t.Errorf("what was refused changed a balance: %s", got.raw)
	}
}

// Four sweepers find one overdue transfer: it times out once, and whoever did it said what any other would
// have said. Then the Ledger, which never heard of the transfer, sees to it that it will not move.
func TestADeadlineStrikesOnceAndTheMoneyStays(t *testing.T) {
	w := newWorld(t, time.Nanosecond, time.Hour)
	w.opens("a", "10")
	id := w.asks("a", "b", "1")
	var g errgroup.Group
	for range 4 {
		g.Go(func() error {
			_, err := w.transfers.sweep(t.Context())
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"TransferRequested", "TransferTimedOut"}, w.types("transfers", id)); diff != "" {
		t.Fatal(diff)
	}
	events := w.said("transfers")
	last := events[len(events)-1]
	if last.ID != uuid.NewSHA1(uuid.MustParse(id), []byte("TransferTimedOut")) || last.AggregateVersion != 2 || last.CorrelationID != events[len(events)-2].CorrelationID {
		t.Errorf("%+v", last)
	}
	if v := w.view(id); v.saga != (Saga{Compensating, TimedOut}) || *v.history[1].EventID != last.ID {
		t.Errorf("%+v", v)
	}
	if n := w.metric("converge_saga_timeouts_total", "debit"); n != 1 {
		t.Errorf("%v timeouts counted", n)
	}
	if err := w.hear(t.Context(), "ledger", last); err != nil { // it overtakes the request
		t.Fatal(err)
	}
	w.settle(nil)
	if v := w.view(id); v.saga != (Saga{Failed, TimedOut}) {
		t.Errorf("%+v", v.saga)
	}
	if diff := cmp.Diff([]string{"TransferFailed"}, w.types("ledger", id)); diff != "" {
		t.Error(diff)
	}
}

// The debit was made and not heard of when the deadline struck: the money comes back.
func TestAfterTheDeadlineADebitIsGivenBack(t *testing.T) {
	w := newWorld(t, time.Hour, time.Hour)
	w.opens("a", "10")
	w.opens("b", "0")
	id := w.asks("a", "b", "4")
	if err := w.hear(t.Context(), "ledger", w.said("transfers")...); err != nil {
		t.Fatal(err)
	}
	w.expire()
	w.sweep()
	w.settle(nil)
	if v := w.view(id); v.saga != (Saga{Failed, TimedOut}) {
		t.Errorf("%+v", v.saga)
	}
	if diff := cmp.Diff([]string{"TransferDebited", "TransferFailed"}, w.types("ledger", id)); diff != "" {
		t.Error(diff)
	}
	if got := w.do("GET", "/accounts/a", ""); got.raw != `{"id":"a","currency":"USD","balance":10,"version":3}` {
		t.Error(got.raw)
	}
}

// After the pivot no deadline strikes; when the Ledger does not answer the transfer is STUCK, until it does.
func TestATransferIsStuckUntilTheLedgerAnswers(t *testing.T) {
	w := newWorld(t, time.Hour, time.Hour)
	w.opens("a", "10")
	w.opens("b", "0")
	confirmed, timed := w.asks("a", "b", "4"), w.asks("a", "b", "3")
	for _, e := range w.said("transfers") {
		if e.AggregateID != timed {
			if err := w.hear(t.Context(), "ledger", e); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.hear(t.Context(), "transfers", w.said("ledger")...); err != nil {
		t.Fatal(err)
	}
	for range 3 { // the deadline; the answer; the third finds nothing: STUCK is not due again
		w.expire()
		w.sweep()
	}
	for id, want := range map[string]Saga{confirmed: {Stuck, ""}, timed: {Stuck, TimedOut}} {
		if v := w.view(id); v.saga != want || v.version != 3 || v.saga.State.Public() != "IN_PROGRESS" {
			t.Errorf("%+v", v)
		}
	}
	if err := w.transfers.metrics.Count(t.Context(), w.pools["transfers"], openSagasSQL); err != nil {
		t.Fatal(err)
	}
	if n := w.metric("converge_saga_instances", "STUCK"); n != 2 {
		t.Errorf("%v stuck transfers are shown", n)
	}
	w.settle(nil)
	for id, want := range map[string]Saga{confirmed: {Completed, ""}, timed: {Failed, TimedOut}} {
		if v := w.view(id); v.saga != want {
			t.Errorf("%+v, want %+v", v.saga, want)
		}
	}
	if err := w.transfers.metrics.Count(t.Context(), w.pools["transfers"], openSagasSQL); err != nil {
		t.Fatal(err)
	}
	if n := w.metric("converge_saga_instances", "STUCK"); n != 0 {
		t.Errorf("%v stuck transfers are shown at the end", n)
	}
}

// AccountOpened has another key than TransferRequested, and may be read later.
func TestATransferMayOvertakeTheOpeningOfItsAccounts(t *testing.T) {
	w := newWorld(t, time.Hour, time.Hour)
	w.opens("a", "10")
	w.opens("b", "0")
	id := w.asks("a", "b", "4")
	for _, e := range w.said("transfers") {
		if e.Type == "TransferRequested" {
			if err := w.hear(t.Context(), "ledger", e); err != nil {
				t.Fatal(err)
			}
		}
	}
	if diff := cmp.Diff([]string{"TransferDebited"}, w.types("ledger", id)); diff != "" {
		t.Error(diff)
	}
	w.settle(nil)
	if got := w.do("GET", "/accounts/a", ""); got.raw != `{"id":"a","currency":"USD","balance":6,"version":2}` {
		t.Error(got.raw)
	}
}

// Transfers of one account have keys of their own, so their words come in any order.
func TestABalanceNeverGoesBackInTime(t *testing.T) {
	w := newWorld(t, time.Hour, time.Hour)
	w.opens("a", "10")
	one, two := w.asks("a", "b", "1"), w.asks("a", "b", "2")
	for _, e := range []*event.Event{
		newEvent(t, "TransferDebited", schemas.TransferDebited{TransferID: two, AccountID: "a", Balance: 7, Version: 3}),
		newEvent(t, "TransferDebited", schemas.TransferDebited{TransferID: one, AccountID: "a", Balance: 9, Version: 2}),
	} {
		if err := w.hear(t.Context(), "transfers", e); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.do("GET", "/accounts/a", ""); got.raw != `{"id":"a","currency":"USD","balance":7,"version":3}` {
		t.Error(got.raw)
	}
}

// Many transfers on real tables: events in random order and again and again, deadlines that strike at random
// moments, two sweepers at once.
func TestTransfersEndWholeOnPostgreSQL(t *testing.T) {
	const transfers = 60
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	w := newWorld(t, time.Hour, time.Hour)
	names := []string{"a", "b", "c", "a", "b", "c", "closed", "nobody"}
	w.opens("a", "90")
	w.opens("b", "40")
	w.opens("c", "0")
	var ids []string
	for len(ids) < transfers {
		if from, to := names[rng.IntN(len(names))], names[rng.IntN(len(names))]; from != to {
			ids = append(ids, w.asks(from, to, strconv.Itoa(1+rng.IntN(12))))
		}
	}
	for range 4 {
		if rng.IntN(2) == 0 {
			if _, err := w.pools["transfers"].Exec(t.Context(), "UPDATE transfers SET due_at = now() WHERE due_at < 'infinity' AND random() < 0.3"); err != nil {
				t.Fatal(err)
			}
		}
		var g errgroup.Group
		for _, emitter := range []string{"transfers", "ledger"} {
			events := w.said(emitter)
			rng.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
			for part := range slices.Chunk(events, 20) {
				g.Go(func() error { return w.hear(t.Context(), other[emitter], part...) })
			}
		}
		for range 2 {
			g.Go(func() error {
				_, err := w.transfers.sweep(t.Context())
				return err
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err) // a deadlock among them
		}
	}
	w.settle(rng)
	w.agrees(ids)
}

// A batch that hears the Ledger waits for another one that does, whatever transfers they are about: which accounts
// either writes, and in what order, is only seen on the way.
func TestBatchesThatHearTheLedgerWaitForEachOther(t *testing.T) {
	w := newWorld(t, time.Hour, time.Hour)
	pool := w.pools["transfers"]
	first, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := lock(t.Context(), first, []uuid.UUID{uuid.New()}); err != nil {
		t.Fatal(err)
	}
	through := make(chan error, 1)
	go func() {
		through <- pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			_, err := lock(t.Context(), tx, []uuid.UUID{uuid.New()})
			return err
		})
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for waits := false; !waits; {
		select {
		case err := <-through:
			t.Fatalf("it did not wait: %v", err)
		case <-tick.C:
		}
		if err := pool.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity a USING (pid) WHERE locktype = 'advisory' AND NOT granted AND a.datname = current_database())").Scan(&waits); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-through; err != nil {
		t.Error(err)
	}
}

// agrees holds the tables of the two services against each other.
func (w *world) agrees(ids []string) {
	w.t.Helper()
	want := map[string]int64{"a": 90, "b": 40, "c": 0, "closed": 0}
	ends := map[string]int{}
	for _, id := range ids {
		v := w.view(id)
		ends[string(v.saga.State)+" "+v.saga.Reason]++
		if !v.saga.State.Terminal() {
			w.t.Errorf("%s rests in %s", id, v.saga.State)
		}
		if v.saga.State == Completed {
			want[v.terms.from] -= v.terms.amount
			want[v.terms.to] += v.terms.amount
		}
		if int64(len(v.history)) != v.version || v.history[0].State != Pending || v.history[v.version-1].State != v.saga.State ||
			!v.history[v.version-1].At.Equal(v.updatedAt) {
			w.t.Errorf("%s: version %d, %s, history %+v", id, v.version, v.saga.State, v.history)
		}
		for i := 1; i < len(v.history); i++ {
			if edge := (Edge{v.history[i-1].State, v.history[i].State}); !slices.Contains(Edges(), edge) {
				w.t.Errorf("%s: %v is not in the table", id, edge)
			}
		}
	}
	w.t.Logf("ends %v", ends)
	for _, service := range []string{"transfers", "ledger"} {
		rows, err := w.pools[service].Query(w.t.Context(), "SELECT id, balance FROM accounts WHERE id NOT LIKE '(%'")
		if err != nil {
			w.t.Fatal(err)
		}
		got := map[string]int64{}
		var id string
		var amount int64
		if _, err := pgx.ForEachRow(rows, []any{&id, &amount}, func() error { got[id] = amount; return nil }); err != nil {
			w.t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			w.t.Errorf("balances by the transfers that completed (-) and of %s (+):\n%s", service, diff)
		}
	}
	for _, sql := range []string{"SELECT coalesce(sum(amount), 0) FROM postings", "SELECT sum(balance) FROM accounts",
		"SELECT sum(balance) FROM accounts WHERE id LIKE '(clearing)%'"} {
		var sum int64
		if err := w.pools["ledger"].QueryRow(w.t.Context(), sql).Scan(&sum); err != nil || sum != 0 {
			w.t.Errorf("%s: %d %v", sql, sum, err)
		}
	}
}

func TestMetricsAreWellNamedAndThereFromTheStart(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	New(Config{Registerer: registry})
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
	for name, want := range map[string]int{
		"converge_saga_instances":           4,
		"converge_saga_oldest_open_seconds": 4,
		"converge_saga_transitions_total":   len(Edges()),
		"converge_saga_duration_seconds":    5,
		"converge_saga_timeouts_total":      3,
	} {
		if n, err := testutil.GatherAndCount(registry, name); err != nil || n != want {
			t.Errorf("%s has %d series, want %d (%v)", name, n, want, err)
		}
	}
}

// A hundred thousand transfers have ended; what runs every few moments must not look at them.
func TestSweepingAndCountingLookAtOpenTransfersOnly(t *testing.T) {
	w := newWorld(t, time.Hour, time.Hour)
	w.opens("a", "1")
	w.asks("a", "b", "1")
	pool := w.pools["transfers"]
	for _, statement := range []string{`
INSERT INTO transfers (id, from_account, to_account, amount, currency, state, version, history, correlation_id, created_at, updated_at)
SELECT gen_random_uuid(), 'a', 'b', 1, 'USD', 'COMPLETED', 3, '[]', '', now(), now()
FROM generate_series(1, 100000)`, "ANALYZE transfers"} {
		if _, err := pool.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	for name, sql := range map[string]string{"counting": openSagasSQL, "sweeping": strings.Replace(overdueSQL, "$1", "100", 1)} {
		rows, err := pool.Query(t.Context(), "EXPLAIN (ANALYZE, COSTS OFF) "+sql)
		if err != nil {
			t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		plan := strings.Join(lines, "\n")
		if !strings.Contains(plan, "transfers_due") || strings.Contains(plan, "Seq Scan") {
			t.Errorf("%s:\n%s", name, plan)
		}
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	w := newWorld(t, time.Nanosecond, time.Hour)
	w.opens("a", "1")
	id := w.asks("a", "b", "1")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.transfers.Run(ctx) }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(30 * time.Second); w.view(id).saga.State == Pending; {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the deadline did not strike")
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run ended with %v", err)
	}
}
