package console

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/producers/outbox"
)

// populated is a database as the console finds it: two services with outboxes, one of them with orders, and
// dead letters in one.
func populated(t *testing.T) (url string, conn *pgx.Conn) {
	t.Helper()
	url = pgtest.URL(t)
	if err := database.Migrate(t.Context(), url,
		database.Module{Service: "orders", Sets: []database.Set{{Name: "outbox", FS: outbox.Migrations}, {Name: "orders", FS: os.DirFS("../producers/orders")}}},
		database.Module{Service: "inventory", Sets: []database.Set{{Name: "outbox", FS: outbox.Migrations}}},
	); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	exec(t, conn, `CREATE TABLE inventory.dead_letters (seq bigint GENERATED ALWAYS AS IDENTITY, state text NOT NULL)`)
	exec(t, conn, `INSERT INTO inventory.dead_letters (state) VALUES ('dead'), ('dead'), ('redriving'), ('resolved'), ('discarded')`)
	return url, conn
}

func exec(t *testing.T, conn *pgx.Conn, statement string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func source(t *testing.T, url string) *databaseSource {
	t.Helper()
	cfg, err := readerConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return newDatabaseSource(pool, []string{"orders", "inventory", "payments"})
}

func lookDatabase(t *testing.T, d *databaseSource, seconds float64) *databaseSample {
	t.Helper()
	at := noon.Add(time.Duration(seconds * float64(time.Second)))
	s, err := d.sample(t.Context(), func() time.Time { return at })
	if err != nil {
		t.Fatal(err)
	}
	if s.err != nil {
		t.Errorf("a part could not be measured: %v", s.err)
	}
	return s
}

func TestDatabaseCountsWhatIsUnresolvedAndKnowsWhatIsAbsent(t *testing.T) {
	url, conn := populated(t)
	d := source(t, url)
	lookDatabase(t, d, 0)
	exec(t, conn, `SELECT nextval('orders.outbox_seq') FROM generate_series(1, 30)`)
	s := lookDatabase(t, d, 2)
	want := []Service{
		{Name: "orders", OutboxPerSecond: new(15.0)},
		{Name: "inventory", OutboxPerSecond: new(0.0), DeadLetters: new(int64(3))},
		{Name: "payments"},
	}
	if diff := cmp.Diff(want, s.services); diff != "" {
		t.Errorf("services (-want +got):\n%s", diff)
	}
	if len(s.slots) != 0 {
		t.Errorf("slots %v in a database without one", s.slots)
	}
	if s.orders == nil || *s.orders != 0 {
		t.Errorf("orders per second %v, want 0 in a quiet table", s.orders)
	}
}

func TestDatabaseSeesTablesThatAMigrationAddsLater(t *testing.T) {
	url, conn := populated(t)
	d := source(t, url)
	if s := lookDatabase(t, d, 0); s.services[1].HeldKeys != nil {
		t.Fatalf("held keys %d without a table", *s.services[1].HeldKeys)
	}
	exec(t, conn, `CREATE TABLE inventory.held_keys (key text)`)
	exec(t, conn, `INSERT INTO inventory.held_keys VALUES ('a'), ('b')`)
	if s := lookDatabase(t, d, tablesFor.Seconds()); s.services[1].HeldKeys == nil || *s.services[1].HeldKeys != 2 {
		t.Errorf("held keys %v after the migration, want 2", s.services[1].HeldKeys)
	}
}

func TestDatabaseReadsSlots(t *testing.T) {
	url, conn := populated(t)
	slot := "console_" + conn.Config().Database
	exec(t, conn, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
	t.Cleanup(func() { _, _ = conn.Exec(context.Background(), `SELECT pg_drop_replication_slot($1)`, slot) })
	s := lookDatabase(t, source(t, url), 0)
	if len(s.slots) != 1 || s.slots[0].Name != slot || s.slots[0].Active || s.slots[0].WALStatus != "reserved" || s.slots[0].RetainedBytes == nil {
		t.Errorf("slots %+v, want one inactive, reserved slot with its retained bytes", s.slots)
	}
}

// A table of another shape costs the count that it belongs to, with the reason, and nothing else.
func TestUnreadableTableCostsItsCountOnly(t *testing.T) {
	url, conn := populated(t)
	exec(t, conn, `CREATE TABLE orders.dead_letters (nothing int)`)
	d := source(t, url)
	for range 2 {
		s, err := d.sample(t.Context(), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		if s.err == nil || s.services[1].DeadLetters != nil {
			t.Errorf("sample %+v with error %v, want dead letters unknown and the reason", s.services, s.err)
		}
		if d.appended["orders"] == nil || s.slots == nil && s.orders == nil && d.appended["orders"].n > 1 {
			t.Errorf("sample %+v: the other numbers are gone too", s)
		}
	}
}

func TestConsoleCannotWrite(t *testing.T) {
	url, _ := populated(t)
	d := source(t, url)
	if _, err := d.pool.Exec(t.Context(), `CREATE TABLE forbidden (i int)`); err == nil {
		t.Error("the console's connection created a table")
	}
}
