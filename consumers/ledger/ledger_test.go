package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"converge/consumers/event"
	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/producers/outbox"
	"converge/schemas"
)

func open(t *testing.T) (*Service, *pgxpool.Pool) {
	t.Helper()
	url := pgtest.Database(t, "ledger", func(ctx context.Context, url string) error {
		return database.Migrate(ctx, url, database.Module{Service: "ledger", Sets: []database.Set{
			{Name: "outbox", FS: outbox.Migrations}, {Name: "ledger", FS: Migrations}}})
	})
	pool, err := database.Open(t.Context(), url, "ledger", 8)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	codec := schemas.NewCodec(schemas.JSON, schemas.IDs{})
	return New(Config{Outbox: outbox.New(codec), Decoder: codec}), pool
}

func newEvent(t *testing.T, eventType string, data any) *event.Event {
	t.Helper()
	value, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	return &event.Event{ID: uuid.New(), Type: eventType, ContentType: schemas.ContentTypeJSON, Value: value, CorrelationID: "c"}
}

func opened(t *testing.T, id string, balance int64) *event.Event {
	return newEvent(t, "AccountOpened", schemas.AccountOpened{AccountID: id, Currency: "USD", OpeningBalance: balance})
}

func requested(t *testing.T, id, from, to string, amount int64, accounts ...schemas.OpenAccount) *event.Event {
	return newEvent(t, Requested, schemas.TransferRequested{TransferID: id, FromAccount: from, ToAccount: to, Amount: amount, Currency: "USD",
		Accounts: append([]schemas.OpenAccount{}, accounts...)})
}

func confirmed(t *testing.T, id string) *event.Event {
	return newEvent(t, Confirmed, schemas.TransferConfirmed{TransferID: id})
}

func timedOut(t *testing.T, id string) *event.Event {
	return newEvent(t, TimedOut, schemas.TransferTimedOut{TransferID: id})
}

func apply(ctx context.Context, s *Service, pool *pgxpool.Pool, events ...*event.Event) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return s.apply(ctx, tx, events) })
}

func mustApply(t *testing.T, s *Service, pool *pgxpool.Pool, events ...*event.Event) {
	t.Helper()
	if err := apply(t.Context(), s, pool, events...); err != nil {
		t.Fatal(err)
	}
}

// column returns the only column of a statement.
func column(t *testing.T, pool *pgxpool.Pool, sql string) []string {
	t.Helper()
	rows, err := pool.Query(t.Context(), sql)
	if err != nil {
		t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func said(t *testing.T, pool *pgxpool.Pool) []string {
	t.Helper()
	return column(t, pool, "SELECT event_type || ' ' || aggregate_id || ' v' || aggregate_version FROM outbox ORDER BY seq")
}

func accounts(t *testing.T, pool *pgxpool.Pool) []string {
	t.Helper()
	return column(t, pool, `SELECT id || ' ' || balance || ' v' || version FROM accounts ORDER BY id COLLATE "C"`)
}

// books fails the test when the books contradict themselves.
func books(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	for claim, sql := range map[string]string{
		"the postings of everything sum to zero": `
SELECT currency || ' ' || sum(amount) FROM postings JOIN accounts ON id = account_id GROUP BY currency HAVING sum(amount) <> 0`,
		"every entry sums to zero": `
SELECT reference || ' ' || kind FROM postings GROUP BY reference, kind HAVING sum(amount) <> 0 OR count(*) <> 2`,
		"a balance is the sum of the account's postings, and its version counts them": `
SELECT id || ' ' || balance || ' ' || coalesce(sum(amount), 0)
FROM accounts LEFT JOIN postings ON account_id = id
GROUP BY id
HAVING balance <> coalesce(sum(amount), 0) OR version <> 1 + count(amount) FILTER (WHERE kind <> 'opening' OR id LIKE '(equity)%')`,
		"the clearing account holds what is debited and nothing else": `
SELECT a.id || ' ' || a.balance
FROM accounts a
WHERE a.id LIKE '(clearing)%'
  AND a.balance <> (SELECT coalesce(sum(amount), 0) FROM transfers t WHERE t.state = 'DEBITED' AND a.id = '(clearing) ' || t.currency)`,
		"the entries are what the state says": `
SELECT transfer_id || ' ' || state || ' ' || coalesce(string_agg(kind, ' ' ORDER BY kind DESC), '')
FROM transfers LEFT JOIN entries ON reference = transfer_id AND kind <> 'opening'
GROUP BY transfer_id, state
HAVING coalesce(string_agg(kind, ' ' ORDER BY kind DESC), '') <> CASE state WHEN 'DEBITED' THEN 'debit' WHEN 'CREDITED' THEN 'debit credit'
    WHEN 'REFUNDED' THEN 'refund debit' ELSE '' END`,
	} {
		if wrong := column(t, pool, sql); len(wrong) > 0 {
			t.Errorf("%s: %q", claim, wrong)
		}
	}
}

func TestHandlesWhatTheTopologySays(t *testing.T) {
	got := New(Config{}).Handler().Types()
	slices.Sort(got)
	_, want := schemas.ReadBy("ledger")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-topology +handler:\n%s", diff)
	}
}

func TestATransferIsDebitedThenCredited(t *testing.T) {
	s, pool := open(t)
	mustApply(t, s, pool, opened(t, "a", 10), opened(t, "b", 0))
	mustApply(t, s, pool, requested(t, "t-1", "a", "b", 4))
	want := []string{"(clearing) USD 4 v2", "(equity) USD -10 v2", "a 6 v2", "b 0 v1", "closed 0 v1"}
	if diff := cmp.Diff(want, accounts(t, pool)); diff != "" {
		t.Error(diff)
	}
	books(t, pool)
	mustApply(t, s, pool, confirmed(t, "t-1"))
	want = []string{"(clearing) USD 0 v3", "(equity) USD -10 v2", "a 6 v2", "b 4 v2", "closed 0 v1"}
	if diff := cmp.Diff(want, accounts(t, pool)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"TransferDebited t-1 v1", "TransferCompleted t-1 v2"}, said(t, pool)); diff != "" {
		t.Error(diff)
	}
	books(t, pool)
}

func TestARefusedCreditIsGivenBack(t *testing.T) {
	s, pool := open(t)
	mustApply(t, s, pool, opened(t, "a", 10),
		newEvent(t, "AccountOpened", schemas.AccountOpened{AccountID: "e", Currency: "EUR", OpeningBalance: 7}))
	for _, to := range []string{"closed", "nobody", "e"} {
		mustApply(t, s, pool, requested(t, "to-"+to, "a", to, 10))
		mustApply(t, s, pool, confirmed(t, "to-"+to))
	}
	want := []string{"(clearing) EUR 0 v1", "(clearing) USD 0 v7", "(equity) EUR -7 v2", "(equity) USD -10 v2", "a 10 v7", "closed 0 v1", "e 7 v1"}
	if diff := cmp.Diff(want, accounts(t, pool)); diff != "" {
		t.Error(diff)
	}
	why := column(t, pool, "SELECT convert_from(payload, 'UTF8')::jsonb->>'reason' || ' ' || (convert_from(payload, 'UTF8')::jsonb->>'balance') FROM outbox WHERE event_type = 'TransferFailed' ORDER BY seq")
	if diff := cmp.Diff([]string{"account_closed 10", "account_not_found 10", "account_not_found 10"}, why); diff != "" {
		t.Error(diff)
	}
	books(t, pool)
}

func TestNobodyPaysWhatHeHasNot(t *testing.T) {
	s, pool := open(t)
	mustApply(t, s, pool, opened(t, "a", 10), opened(t, "b", 0),
		requested(t, "t-1", "a", "b", 11), requested(t, "t-2", "a", "b", 6), requested(t, "t-3", "a", "b", 5),
		requested(t, "t-4", "closed", "b", 1), requested(t, "t-5", "nobody", "b", 1), requested(t, "t-6", "a", "b", 4))
	want := []string{"TransferFailed t-1 v1", "TransferDebited t-2 v1", "TransferFailed t-3 v1", "TransferFailed t-4 v1", "TransferFailed t-5 v1",
		"TransferDebited t-6 v1"}
	if diff := cmp.Diff(want, said(t, pool)); diff != "" {
		t.Error(diff)
	}
	books(t, pool)
}

// Topics are partitioned by key: the opening may come after the transfer, and more than once.
func TestATransferThatOvertakesItsAccountsOpensThem(t *testing.T) {
	s, pool := open(t)
	a, b := schemas.OpenAccount{AccountID: "a", OpeningBalance: 10}, schemas.OpenAccount{AccountID: "b"}
	mustApply(t, s, pool, requested(t, "t-1", "a", "b", 4, a, b), requested(t, "t-2", "b", "a", 1, b, a))
	mustApply(t, s, pool, confirmed(t, "t-1"), opened(t, "a", 10), opened(t, "b", 0))
	want := []string{"(clearing) USD 0 v3", "(equity) USD -10 v2", "a 6 v2", "b 4 v2", "closed 0 v1"}
	if diff := cmp.Diff(want, accounts(t, pool)); diff != "" {
		t.Error(diff)
	}
	books(t, pool)
}

func TestTimeIsUpOnceWhateverCameFirst(t *testing.T) {
	s, pool := open(t)
	mustApply(t, s, pool, opened(t, "a", 10), opened(t, "b", 0))
	for _, events := range [][]*event.Event{
		{timedOut(t, "early")},
		{requested(t, "early", "a", "b", 1), timedOut(t, "early")},
		{requested(t, "late", "a", "b", 2), timedOut(t, "late")},
		{requested(t, "late", "a", "b", 2), timedOut(t, "late"), confirmed(t, "late")},
		{requested(t, "done", "a", "b", 3), confirmed(t, "done"), timedOut(t, "done"), confirmed(t, "done")},
		{confirmed(t, "unknown")},
	} {
		mustApply(t, s, pool, events...)
	}
	want := []string{"TransferFailed early v1", "TransferDebited late v1", "TransferFailed late v2", "TransferDebited done v1", "TransferCompleted done v2"}
	if diff := cmp.Diff(want, said(t, pool)); diff != "" {
		t.Error(diff)
	}
	books(t, pool)
}

// Sixteen transactions at once, each event twice, in an order of its own: no deadlock, no cent too many.
func TestTheBooksHoldWhenManyMoveMoneyAtOnce(t *testing.T) {
	s, pool := open(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	names := []string{"a", "b", "c", "closed", "nobody"}
	mustApply(t, s, pool, opened(t, "a", 20), opened(t, "b", 10), opened(t, "c", 0))
	var events []*event.Event
	for i := range 60 {
		id := fmt.Sprintf("t-%d", i)
		from, to := rng.IntN(len(names)), rng.IntN(len(names)-1)
		if to >= from {
			to++
		}
		ask, answer := requested(t, id, names[from], names[to], 1+rng.Int64N(9)), confirmed(t, id)
		if rng.IntN(3) == 0 {
			answer = timedOut(t, id)
		}
		events = append(events, ask, ask, answer, answer)
	}
	rng.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
	var g errgroup.Group
	for part := range slices.Chunk(events, len(events)/16) {
		g.Go(func() error {
			return pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
				for run := range slices.Chunk(part, 4) {
					if err := s.apply(t.Context(), tx, run); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err) // a deadlock among them
	}
	books(t, pool)
	for _, wrong := range column(t, pool, "SELECT event_type || ' ' || aggregate_id FROM outbox GROUP BY event_type, aggregate_id HAVING count(*) > 1") {
		t.Errorf("said twice: %s", wrong)
	}
}

// Whatever the rules are turned into, the tables take no entry twice, no credit beside a refund, no overdraft.
func TestTheTablesRefuseWhatTheRulesExclude(t *testing.T) {
	s, pool := open(t)
	mustApply(t, s, pool, opened(t, "a", 10), opened(t, "b", 0), requested(t, "t-1", "a", "b", 4), confirmed(t, "t-1"))
	const entry = "INSERT INTO entries (reference, kind, from_account, to_account, amount) VALUES "
	for name, sql := range map[string]string{
		"entries_pkey":                  entry + "('t-1', 'debit', 'a', 'b', 4)",
		"entries_credited_or_refunded":  entry + "('t-1', 'refund', 'b', 'a', 4)",
		"entries_amount_check":          entry + "('t-2', 'debit', 'a', 'b', 0)",
		"entries_check":                 entry + "('t-2', 'debit', 'a', 'a', 4)",
		"entries_to_account_fkey":       entry + "('t-2', 'debit', 'a', 'nobody', 4)",
		"not_overdrawn":                 "UPDATE accounts SET balance = balance - 7 WHERE id = 'a'",
		"accounts_pkey":                 "INSERT INTO accounts (id, currency) VALUES ('a', 'USD')",
		"transfers_state_check":         "UPDATE transfers SET state = 'LOST'",
		"entries_kind_check":            entry + "('t-2', 'gift', 'a', 'b', 4)",
		"entries_from_account_fkey":     entry + "('t-2', 'debit', 'nobody', 'a', 4)",
		"not_overdrawn on the clearing": "UPDATE accounts SET balance = balance - 1 WHERE id = '(clearing) USD'",
	} {
		_, err := pool.Exec(t.Context(), sql)
		var pg *pgconn.PgError
		if constraint, _, _ := strings.Cut(name, " "); !errors.As(err, &pg) || pg.ConstraintName != constraint {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRefusesForeverWhatNoTransferCanMean(t *testing.T) {
	s, pool := open(t)
	for name, e := range map[string]*event.Event{
		"no id":                requested(t, "", "a", "b", 1),
		"NUL in the id":        requested(t, "t\x00", "a", "b", 1),
		"nothing":              requested(t, "t-1", "a", "b", 0),
		"less than nothing":    requested(t, "t-1", "a", "b", -1),
		"more than there is":   requested(t, "t-1", "a", "b", maxAmount+1),
		"one account":          requested(t, "t-1", "a", "a", 1),
		"the clearing account": requested(t, "t-1", Clearing("USD"), "a", 1),
		"another's account":    requested(t, "t-1", "a", "b", 1, schemas.OpenAccount{AccountID: "c", OpeningBalance: 1000}),
		"a debt to begin with": requested(t, "t-1", "a", "b", 1, schemas.OpenAccount{AccountID: "a", OpeningBalance: -1}),
		"no currency":          newEvent(t, Requested, schemas.TransferRequested{TransferID: "t-1", FromAccount: "a", ToAccount: "b", Amount: 1, Accounts: []schemas.OpenAccount{}}),
		"an account in debt":   opened(t, "a", -1),
		"an own account":       opened(t, Equity("USD"), 1),
		"no account":           opened(t, "", 1),
		"its own events":       newEvent(t, "TransferDebited", schemas.TransferDebited{TransferID: "t-1"}),
		"no transfer":          confirmed(t, ""),
		"no transfer either":   timedOut(t, "t\x00"),
	} {
		if err := apply(t.Context(), s, pool, e); err == nil || event.Classify(err) != event.ClassPermanent {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := said(t, pool); len(got) > 0 {
		t.Errorf("said %q", got)
	}
}
