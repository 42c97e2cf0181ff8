package inbox_test

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/consumers/inbox"
	"converge/internal/database"
	"converge/internal/partitions"
	"converge/internal/pgtest"
)

const retention = 16 * partitions.Day

// The tests' days lie in the past, because no day is forgotten of which the database says that it is not over.
var today = time.Date(2026, 3, 20, 12, 0, 0, 0, time.UTC)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// dated returns an event of that time, whose id tells nothing.
func dated(at time.Time) inbox.Entry {
	id := uuid.New()
	return inbox.Entry{ID: id, Day: inbox.Day(id, at)}
}

// days returns an inbox with partitions around each of the times.
func days(t *testing.T, pool *pgxpool.Pool, times ...time.Time) inbox.Days {
	t.Helper()
	d := inbox.Days{Pool: pool, Retention: retention}
	for _, at := range times {
		must(t, d.Make(t.Context(), at))
	}
	return d
}

func prune(t *testing.T, d inbox.Days, now time.Time) []string {
	t.Helper()
	dropped, err := d.Prune(t.Context(), now)
	must(t, err)
	return dropped
}

// deliver takes the event on for the consumer, and returns "fresh", "duplicate" or "forgotten".
func deliver(t *testing.T, pool *pgxpool.Pool, consumer string, e inbox.Entry) (verdict string) {
	t.Helper()
	must(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		fresh, err := inbox.Once(t.Context(), tx, consumer, e)
		switch {
		case errors.Is(err, inbox.ErrForgotten):
			verdict = "forgotten"
			return nil
		case fresh:
			verdict = "fresh"
		default:
			verdict = "duplicate"
		}
		return err
	}))
	return verdict
}

func want(t *testing.T, got, want, what string) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %s, want %s", what, got, want)
	}
}

// An event is a duplicate for as long as retention promises, to the last moment of it, and forgotten after
// that: at no time is it fresh.
func TestAnEventIsRememberedForItsRetentionAndIsNeverFreshAgain(t *testing.T) {
	t.Parallel()
	pool := open(t)
	old := today.AddDate(0, 0, -16)
	d := days(t, pool, old)
	first, last := dated(partitions.Start(old)), dated(partitions.Start(old).Add(partitions.Day-time.Nanosecond))
	for _, e := range []inbox.Entry{first, last} {
		want(t, deliver(t, pool, "billing", e), "fresh", "the first delivery")
	}
	end := partitions.Start(old).Add(partitions.Day + retention)
	prune(t, d, end.Add(-time.Nanosecond))
	want(t, deliver(t, pool, "billing", last), "duplicate", "an event at the end of its retention")
	if dropped := prune(t, d, end); !slices.Contains(dropped, partitions.Name("inbox", partitions.Start(old))) {
		t.Fatalf("dropped %v", dropped)
	}
	want(t, deliver(t, pool, "billing", first), "forgotten", "an event that was applied before its day was dropped")
	want(t, deliver(t, pool, "billing", dated(old)), "forgotten", "an event of that day that never came before")
	want(t, deliver(t, pool, "billing", first), "duplicate", "an event that is under review")
	want(t, deliver(t, pool, "billing", dated(old.AddDate(0, 0, 1))), "fresh", "an event of the next day")
	prune(t, d, today.AddDate(0, 0, 1))
	want(t, deliver(t, pool, "billing", first), "duplicate", "an event that is under review, a prune later")
}

func TestAConsumerHasForgottenOnlyWhatItKnew(t *testing.T) {
	t.Parallel()
	pool := open(t)
	old, older := today.AddDate(0, 0, -20), today.AddDate(0, 0, -25)
	d := days(t, pool, old, older)
	for consumer, at := range map[string]time.Time{"billing": old, "analytics": older, "zebra": old} {
		want(t, deliver(t, pool, consumer, dated(at)), "fresh", "the first delivery")
	}
	if dropped := prune(t, d, today); len(dropped) < 4 {
		t.Fatalf("dropped %v", dropped)
	}
	for consumer, verdict := range map[string]string{"billing": "forgotten", "analytics": "fresh", "zebra": "forgotten", "new": "fresh"} {
		want(t, deliver(t, pool, consumer, dated(old)), verdict, "an old event for "+consumer)
	}
	want(t, deliver(t, pool, "analytics", dated(older)), "forgotten", "an older event for analytics")
}

func TestRowsWithoutADayAreForgottenUnderTheSameRule(t *testing.T) {
	t.Parallel()
	pool := open(t)
	d := days(t, pool, today)
	loose, undated := dated(today.AddDate(0, 0, -40)), dated(time.Time{})
	for _, e := range []inbox.Entry{loose, undated} {
		want(t, deliver(t, pool, "billing", e), "fresh", "the first delivery")
	}
	prune(t, d, today)
	want(t, deliver(t, pool, "billing", loose), "forgotten", "an old event")
	want(t, deliver(t, pool, "billing", undated), "duplicate", "an event that tells no time")
	want(t, deliver(t, pool, "billing", dated(time.Time{})), "fresh", "another one")
	want(t, deliver(t, pool, "billing", dated(today)), "fresh", "an event of today")
}

func TestNoRetentionRemembersForEver(t *testing.T) {
	t.Parallel()
	pool := open(t)
	old := today.AddDate(-1, 0, 0)
	d, e := days(t, pool, old), dated(old)
	d.Retention = 0
	want(t, deliver(t, pool, "billing", e), "fresh", "the first delivery")
	if dropped := prune(t, d, today); len(dropped) > 0 {
		t.Errorf("dropped %v", dropped)
	}
	want(t, deliver(t, pool, "billing", e), "duplicate", "the second")
}

// Deliveries go on while a day is forgotten: each finds its row, or that the day is forgotten.
func TestADeliveryThatMeetsThePruneIsNotFresh(t *testing.T) {
	t.Parallel()
	pool := open(t)
	old := today.AddDate(0, 0, -20)
	d := days(t, pool, old)
	entries := make([]inbox.Entry, 300)
	for i := range entries {
		entries[i] = dated(old)
	}
	must(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		var batch pgx.Batch
		inbox.Queue(&batch, "billing", entries, func(_, _ []uuid.UUID) {})
		return tx.SendBatch(t.Context(), &batch).Close()
	}))
	open, err := pool.Begin(t.Context()) // a batch that is under way
	must(t, err)
	defer open.Rollback(context.Background())
	_, err = inbox.Once(t.Context(), open, "billing", dated(today))
	must(t, err)
	pruned := make(chan error, 1)
	go func() {
		_, err := d.Prune(context.WithoutCancel(t.Context()), today)
		pruned <- err
	}()
	verdicts := map[string]int{}
	for i, e := range entries {
		verdicts[deliver(t, pool, "billing", e)]++ // the prune waits for the batch, but not these for the prune
		if i == len(entries)/3 {
			must(t, open.Commit(t.Context()))
		}
		if i == 2*len(entries)/3 {
			must(t, <-pruned)
		}
	}
	if verdicts["fresh"] > 0 || verdicts["forgotten"] < len(entries)/3-1 || verdicts["duplicate"] == 0 {
		t.Errorf("verdicts %v", verdicts)
	}
}

// A delivery that waits for the prune's lock looks at the horizon behind it, not before.
func TestADeliveryThatWaitedForThePruneIsForgotten(t *testing.T) {
	t.Parallel()
	pool := open(t)
	old := today.AddDate(0, 0, -20)
	days(t, pool, old)
	e := dated(old)
	want(t, deliver(t, pool, "billing", e), "fresh", "the first delivery")
	want(t, deliver(t, pool, "billing", e), "duplicate", "the second")
	tx, err := pool.Begin(t.Context())
	must(t, err)
	defer tx.Rollback(context.Background())
	// What Prune does, but for the pause in the middle.
	_, err = tx.Exec(t.Context(), "LOCK TABLE ONLY inbox IN ACCESS EXCLUSIVE MODE")
	must(t, err)
	verdict := make(chan string, 1)
	go func() { verdict <- deliver(t, pool, "billing", e) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for waiting := false; !waiting; <-tick.C {
		must(t, pool.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'inbox'::regclass)").Scan(&waiting))
	}
	_, err = tx.Exec(t.Context(), "INSERT INTO inbox_horizons VALUES ('billing', $1)", today)
	must(t, err)
	must(t, partitions.Drop(t.Context(), tx, []string{partitions.Name("inbox", partitions.Start(old))}))
	must(t, tx.Commit(t.Context()))
	want(t, <-verdict, "forgotten", "the delivery that waited")
}

// What an older version has taken on is remembered by this one.
func TestRowsFromBeforeThereWereHorizonsAreRemembered(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	first := fstest.MapFS{}
	text, err := inbox.Migrations.ReadFile("migrations/00001_inbox.sql")
	must(t, err)
	first["migrations/00001_inbox.sql"] = &fstest.MapFile{Data: text}
	module := func(files fs.FS) database.Module {
		return database.Module{Service: "billing", Sets: []database.Set{{Name: "inbox", FS: files}}}
	}
	must(t, database.Migrate(t.Context(), url, module(first)))
	pool, err := database.Open(t.Context(), url, "billing", 2)
	must(t, err)
	defer pool.Close()
	undated, loose := dated(time.Time{}), dated(today)
	_, err = pool.Exec(t.Context(), "INSERT INTO inbox SELECT 'billing', id, day FROM unnest($1::uuid[], $2::date[]) u (id, day)",
		[]uuid.UUID{undated.ID, loose.ID}, []time.Time{undated.Day, loose.Day})
	must(t, err)
	must(t, database.Migrate(t.Context(), url, module(inbox.Migrations)))
	for _, e := range []inbox.Entry{undated, loose} {
		want(t, deliver(t, pool, "billing", e), "duplicate", "an event of the older version")
	}
	var inDefault int
	must(t, pool.QueryRow(t.Context(), "SELECT count(*) FROM inbox_default").Scan(&inDefault))
	if inDefault != 1 {
		t.Errorf("%d rows in the default partition, want the one with a day", inDefault)
	}
}
