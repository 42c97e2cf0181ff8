package group_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"converge/consumers/event"
	"converge/internal/nettest"
)

// away is an error of what everything leans on.
type away struct{}

func (away) Error() string        { return "the registry is away" }
func (away) Infrastructure() bool { return true }

// nothingCounted demands that no event was blamed.
func (w *world) nothingCounted() {
	w.t.Helper()
	if n := w.blames(); n != 0 {
		w.t.Fatalf("%d rows blame an event", n)
	}
}

const blamesSQL = `
SELECT (SELECT count(*) FROM dead_letters) + (SELECT count(*) FROM held_keys) +
       (SELECT count(*) FROM held_events) + (SELECT count(*) FROM outbox)`

func (w *world) blames() int { return ask[int](w, blamesSQL) }

func TestAnOutageThatTheHandlerMeetsPausesAndBlamesNoEvent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	list := facts(80, 4, 2)
	var out atomic.Bool
	var refused atomic.Int64
	out.Store(true)
	w.produce(list...)
	m := w.start(w.config(tally{"a", func(_ context.Context, e *event.Event) error {
		if e.Attempt != 0 {
			t.Errorf("attempt %d", e.Attempt)
		}
		if out.Load() {
			refused.Add(1)
			return fmt.Errorf("decoding: %w", away{})
		}
		return nil
	}}))
	eventually(t, "the group tries again and again, past the ladder's end", func() error {
		if n := refused.Load(); n < 2*int64(quick.MaxAttempts)+2 && w.blames() == 0 {
			return fmt.Errorf("%d tries", n)
		}
		return nil
	})
	w.nothingCounted()
	if m.Ready() == nil {
		t.Error("a group that waits is ready")
	}
	for p := range int32(2) {
		if kafka, database := w.kafkaHas(p), w.stored(p); kafka > database {
			t.Errorf("Kafka was told %d while the database has %d", kafka, database)
		}
	}
	if n := len(w.effects()); n != 0 || w.stored(0) != 0 || w.stored(1) != 0 {
		t.Errorf("%d effects, stored %d and %d", n, w.stored(0), w.stored(1))
	}
	out.Store(false)
	w.settled()
	w.check(list, nil)
	w.nothingCounted()
	eventually(t, "the group is ready again", m.Ready)
}

// The head of a held key meets the outage: the ladder's memory must not move either.
func TestAnOutageCountsNoAttemptOfAWaitingEvent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	w.relay()
	list := facts(10, 1, 1)
	var tries, outages atomic.Int64
	w.produce(list...)
	w.start(w.config(tally{"a", func(_ context.Context, e *event.Event) error {
		if e.ID != list[0].id {
			return nil
		}
		tries.Add(1)
		switch {
		case e.Attempt == 0:
			return errors.New("no stock")
		case outages.Add(1) < 6:
			return away{}
		case e.Attempt != 1:
			t.Errorf("the outage counted: attempt %d", e.Attempt)
		}
		return nil
	}}))
	w.settled()
	w.check(list, nil)
	if letters := w.letters(); len(letters) != 0 || outages.Load() < 6 {
		t.Errorf("letters %v, %d tries in the outage", letters, outages.Load())
	}
}

func TestATerminatedBackendPausesAndBlamesNoEvent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	list := facts(300, 6, 2)
	cfg := w.config(tally{})
	cfg.Pool = w.openPool(w.url)
	killed := make(chan struct{})
	var calls, ended atomic.Int64
	cfg.Handler = tally{"a", func(ctx context.Context, _ *event.Event) error {
		// Three times the handler's own transaction is in the backend that dies.
		if n := calls.Add(1); n == 20 || n == 90 || n == 250 {
			tag, err := w.root.Exec(ctx, terminateSQL)
			if err != nil {
				t.Errorf("terminating: %v", err)
			}
			ended.Add(tag.RowsAffected())
			if n == 250 {
				close(killed)
			}
		}
		return nil
	}}.handler()
	cfg.MaxEvents = 40
	w.produce(list...)
	w.start(cfg)
	closed(t, "the backends are terminated", killed)
	w.settled()
	w.check(list, nil)
	w.nothingCounted()
	if n := ended.Load(); n < 3 {
		t.Errorf("%d backends were terminated", n)
	}
}

const terminateSQL = `
SELECT pg_terminate_backend(pid)
FROM pg_stat_activity
WHERE datname = current_database() AND state = 'idle in transaction'`

func TestADatabaseThatRefusesConnectionsPausesAndBlamesNoEvent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	list := facts(200, 4, 2)
	proxy, url := nettest.ToDatabase(t, w.url)
	cfg := w.config(tally{name: "a"})
	cfg.Pool = w.openPool(url)
	m := w.start(cfg)
	w.produce(list[:100]...)
	w.settled()
	proxy.Close()
	w.produce(list[100:]...)
	eventually(t, "the group says that it waits", func() error {
		if m.Ready() == nil {
			return errors.New("it is ready")
		}
		return nil
	})
	w.nothingCounted()
	if n := len(w.effects()); n != 100 {
		t.Errorf("%d effects", n)
	}
	proxy.Open()
	w.settled()
	w.check(list, nil)
	w.nothingCounted()
	eventually(t, "the group is ready again", m.Ready)
}

// A member that is assigned partitions while the database is away cannot know where to read from.
func TestAMemberThatStartsInAnOutageWaitsForItsOffsets(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	list := facts(20, 2, 1)
	w.produce(list[:10]...)
	first := w.start(w.config(tally{name: "a"}))
	w.settled()
	must(t, first.stop())
	w.produce(list[10:]...)
	proxy, url := nettest.ToDatabase(t, w.url)
	proxy.Close()
	cfg := w.config(tally{name: "b"})
	cfg.Pool = w.openPool(url)
	m := w.start(cfg)
	eventually(t, "it has tried", func() error {
		if err := m.Ready(); err == nil {
			return errors.New("it is ready")
		}
		return w.joined()
	})
	proxy.Open()
	w.settled()
	w.check(list, nil)
	m.counts(t, 10, "converge_consumer_events_total", "outcome", "applied")
	m.counts(t, 0, "converge_consumer_events_total", "outcome", "duplicate")
	eventually(t, "the group is ready", m.Ready)
}

// joined returns nil when the group has a member that is assigned something.
func (w *world) joined() error {
	info := w.kafka.GroupInfo(service)
	if info == nil || len(info.Members) == 0 {
		return errors.New("the group has no member")
	}
	return nil
}

// The reply to COMMIT is lost: whether it happened is for the stored offset to say, never to be guessed.
func TestALostCommitReplyLeavesOneEffect(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]nettest.Cut{"before the server has it": nettest.CutBefore, "while the server works": nettest.CutDuring, "after it happened": nettest.CutAfter} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1)
			w.relay()
			proxy, url := nettest.ToDatabase(t, w.url)
			cfg := w.config(tally{})
			cfg.Pool = w.openPool(url)
			cfg.MaxEvents = 10
			s := newScript()
			list := facts(200, 5, 1)
			s.fail(list[12], 2, errors.New("no stock")) // commits of retries are cut as well
			s.fail(list[15], 1, event.Permanentf("never"))
			cfg.Handler = tally{"a", func(ctx context.Context, e *event.Event) error {
				if proxy.Cuts() < 6 && (e.Attempt > 0 || e.Offset%7 == 0) {
					proxy.CutNext(how)
				}
				return s.verdict(ctx, e)
			}}.handler()
			w.produce(list...)
			w.start(cfg)
			w.settled()
			w.check(list, map[uuid.UUID]bool{list[15].id: true})
			if n := proxy.Cuts(); n < 5 {
				t.Errorf("only %d commits were cut", n)
			}
			if letters := w.letters(); len(letters) != 1 || letters[list[15].id] != "permanent" {
				t.Errorf("dead letters: %v", letters)
			}
			if n := ask[int](w, "SELECT count(*) FROM outbox WHERE topic LIKE '%.dlq'"); n != 1 {
				t.Errorf("%d records for one dead letter", n)
			}
		})
	}
}

// A full disk refuses statements, and nothing else: the code is PostgreSQL's own for it.
func TestAFullDiskPausesAndBlamesNoEvent(t *testing.T) {
	t.Parallel()
	for _, table := range []string{"effects", "inbox", "outbox"} {
		t.Run(table, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 2)
			_, err := w.pool.Exec(t.Context(), `
CREATE TABLE disk (room int);
CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM disk) THEN
        RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER fill BEFORE INSERT ON `+table+` FOR EACH STATEMENT EXECUTE FUNCTION fill()`)
			must(t, err)
			w.relay()
			list := facts(100, 4, 2)
			m := w.start(w.config(tally{"a", func(_ context.Context, e *event.Event) error {
				if e.ID == list[7].id && e.Attempt == 0 {
					return errors.New("not yet") // holding it needs the outbox
				}
				return nil
			}}))
			w.produce(list...)
			eventually(t, "the group says that it waits", func() error {
				if m.Ready() == nil {
					return errors.New("it is ready")
				}
				return nil
			})
			w.nothingCounted()
			_, err = w.pool.Exec(t.Context(), "INSERT INTO disk VALUES (1)")
			must(t, err)
			w.settled()
			w.check(list, nil)
			if letters := w.letters(); len(letters) != 0 {
				t.Errorf("dead letters: %v", letters)
			}
		})
	}
}

// Whoever decides when an event is tried again may have a clock that is wrong: that is when, and nothing else.
func TestClocksThatJumpMoveTriesAlone(t *testing.T) {
	t.Parallel()
	for name, shift := range map[string]string{"behind": "-1 hour", "ahead": "1500 milliseconds"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 2)
			_, err := w.pool.Exec(t.Context(), `
CREATE FUNCTION jump() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.headers ? 'not_before' THEN
        NEW.headers := jsonb_set(NEW.headers, '{not_before}', to_jsonb(to_char(((NEW.headers->>'not_before')::timestamptz + interval '`+shift+`')
            AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')));
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER jump BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION jump()`)
			must(t, err)
			w.relay()
			list := facts(120, 6, 2)
			var tried atomic.Int64
			w.start(w.config(tally{"a", func(_ context.Context, e *event.Event) error {
				for _, i := range []int{5, 30, 31} {
					if e.ID == list[i].id && e.Attempt < 2 {
						tried.Add(1)
						return errors.New("not yet")
					}
				}
				return nil
			}}))
			w.produce(list...)
			w.settled()
			w.check(list, nil)
			if letters := w.letters(); len(letters) != 0 || tried.Load() < 6 {
				t.Errorf("dead letters %v, %d tries that failed", letters, tried.Load())
			}
		})
	}
}
