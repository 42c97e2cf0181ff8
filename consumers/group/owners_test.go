package group_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/event"
	"converge/internal/nettest"
)

// valve is a pool whose batches wait at its door while it is shut: a process that stalls with records in
// its hands.
type valve struct {
	shut    atomic.Bool
	waiting atomic.Int64
	opened  chan struct{}
}

func (w *world) valved() (*pgxpool.Pool, *valve) {
	w.t.Helper()
	v := &valve{opened: make(chan struct{})}
	cfg := w.pool.Config()
	cfg.PrepareConn = func(ctx context.Context, _ *pgx.Conn) (bool, error) {
		if _, batch := ctx.Deadline(); !batch || !v.shut.Load() { // chores have no deadline
			return true, nil
		}
		v.waiting.Add(1)
		select {
		case <-v.opened:
			return true, nil
		case <-ctx.Done():
			return true, ctx.Err()
		}
	}
	pool, err := pgxpool.NewWithConfig(w.t.Context(), cfg)
	must(w.t, err)
	w.t.Cleanup(pool.Close)
	return pool, v
}

// impatient makes Kafka give up soon on a member that does not answer a rebalance or sends no heartbeat.
func impatient(more ...kgo.Opt) []kgo.Opt {
	return append([]kgo.Opt{kgo.FetchMaxWait(20 * time.Millisecond), kgo.SessionTimeout(500 * time.Millisecond),
		kgo.HeartbeatInterval(50 * time.Millisecond), kgo.RebalanceTimeout(500 * time.Millisecond)}, more...)
}

// kafkaHas returns the offset that Kafka has for the partition.
func (w *world) kafkaHas(partition int32) int64 {
	w.t.Helper()
	offsets, err := w.admin.FetchOffsets(w.t.Context(), service)
	must(w.t, err)
	o, _ := offsets.Lookup(topic, partition)
	return o.At
}

// The first owner stalls between its poll and its transaction; Kafka gives the partition to a second one,
// which goes on. When the first wakes up its batch must come to nothing, though its inbox rows have been
// pruned meanwhile and nothing else would tell.
func TestAZombieThatWakesUpLateCommitsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	list := facts(150, 5, 1)
	pool, v := w.valved()
	cfg := w.config(tally{name: "zombie"})
	cfg.Pool, cfg.Client = pool, impatient()
	w.produce(list[:50]...)
	zombie := w.start(cfg)
	w.settled()
	v.shut.Store(true)
	w.produce(list[50:100]...)
	eventually(t, "the zombie stalls with records in its hands", func() error {
		if v.waiting.Load() == 0 {
			return errors.New("it does not")
		}
		return nil
	})
	cfg = w.config(tally{name: "owner"})
	cfg.Client = impatient()
	owner := w.start(cfg)
	w.produce(list[100:]...)
	w.settled()
	eventually(t, "Kafka knows", func() error {
		if at := w.kafkaHas(0); at != 150 {
			return fmt.Errorf("it has %d", at)
		}
		return nil
	})
	if _, err := w.pool.Exec(t.Context(), "DELETE FROM inbox"); err != nil {
		t.Fatal(err)
	}
	close(v.opened)
	eventually(t, "the zombie's batch ends", func() error {
		if zombie.counted(t, "converge_consumer_fenced_total") == 0 && len(w.effects()) == len(list) {
			return errors.New("it goes on")
		}
		return nil
	})
	w.check(list, nil)
	// It comes back as an ordinary member. What it does then is right as well.
	eventually(t, "both are members", func() error {
		if info := w.kafka.GroupInfo(service); info == nil || len(info.Members) != 2 {
			return errors.New("they are not")
		}
		return nil
	})
	w.check(list, nil)
	for _, e := range w.effects() {
		if (e.AppliedBy == "zombie") != (e.Seq < 10) {
			t.Fatalf("%s applied %s/%d", e.AppliedBy, e.Key, e.Seq)
		}
	}
	if w.stored(0) != 150 || w.kafkaHas(0) != 150 {
		t.Errorf("stored %d, Kafka has %d", w.stored(0), w.kafkaHas(0))
	}
	must(t, zombie.stop())
	must(t, owner.stop())
	if w.stored(0) != 150 || w.kafkaHas(0) != 150 {
		t.Errorf("at the end: stored %d, Kafka has %d", w.stored(0), w.kafkaHas(0))
	}
}

// The first owner stalls inside its transaction. The second must wait for it, not read around it:
// whatever becomes of the first, each event has one effect.
func TestASecondOwnerWaitsForTheBatchOfTheFirst(t *testing.T) {
	t.Parallel()
	for name, commits := range map[string]bool{"which commits": true, "which runs out of time": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1)
			list := facts(60, 5, 1)
			inHand, release := make(chan struct{}), make(chan struct{})
			var once sync.Once
			cfg := w.config(tally{"first", func(ctx context.Context, e *event.Event) error {
				if e.ID != list[30].id {
					return nil
				}
				once.Do(func() { close(inHand) })
				select {
				case <-release:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}})
			cfg.Client, cfg.Pool = impatient(), w.openPool(w.url)
			if !commits {
				cfg.BatchTime = 2 * time.Second
			}
			w.produce(list...)
			first := w.start(cfg)
			closed(t, "the first owner stalls", inHand)
			cfg = w.config(tally{name: "second"})
			cfg.Client = impatient()
			second := w.start(cfg)
			eventually(t, "the second waits for the first's transaction", func() error {
				var waits bool
				must(t, w.root.QueryRow(t.Context(), waitsSQL).Scan(&waits))
				if !waits {
					return errors.New("it does not")
				}
				return nil
			})
			if n := len(w.effects()); n != 0 {
				t.Errorf("%d effects while the first has the fence", n)
			}
			if commits {
				close(release)
			}
			w.settled()
			w.check(list, nil)
			by := ask[string](w, "SELECT string_agg(DISTINCT applied_by, ' ') FROM effects")
			if want := map[bool]string{true: "first", false: "second"}[commits]; by != want {
				t.Errorf("applied by %s, want %s", by, want)
			}
			eventually(t, "Kafka knows, whoever tells it", func() error {
				if at := w.kafkaHas(0); at != 60 {
					return fmt.Errorf("it has %d", at)
				}
				return nil
			})
			if !commits {
				close(release)
			}
			must(t, second.stop())
			must(t, first.stop())
			if at := w.kafkaHas(0); at != 60 {
				t.Errorf("Kafka has %d at the end", at)
			}
		})
	}
}

const waitsSQL = `
SELECT EXISTS (
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%consumer_offsets%')`

func TestMembersShareThePartitionsAndOneLeavesWithoutLossOrDouble(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 4)
	w.relay()
	list := facts(1200, 12, 4)
	s := newScript()
	for i := 0; i < len(list); i += 97 {
		s.fail(list[i], 1, errors.New("not yet"))
	}
	start := func(name string) *member {
		cfg := w.config(tally{name, s.verdict})
		cfg.MaxEvents, cfg.Client = 20, impatient()
		return w.start(cfg)
	}
	a, b := start("a"), start("b")
	w.produce(list[:400]...)
	eventually(t, "both have applied something", func() error {
		if ask[int](w, "SELECT count(DISTINCT applied_by) FROM effects") < 2 {
			// One may have done all before the other had a partition: more to do.
			return errors.New("one has done all")
		}
		return nil
	})
	w.produce(list[400:800]...)
	if err := a.stop(); err != nil {
		t.Errorf("leaving: %v", err)
	}
	w.produce(list[800:]...)
	w.settled()
	w.check(list, nil)
	// The stored offset was where a stopped: nothing was delivered twice.
	if n := b.counted(t, "converge_consumer_events_total", "outcome", "duplicate"); n != 0 {
		t.Errorf("%v events came twice", n)
	}
}

// The first owner's machine dies inside its transaction: no connection is closed, nothing is said.
func TestTheTransactionOfADeadMachineDoesNotHoldItsPartitionForEver(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	list := facts(40, 4, 1)
	proxy, url := nettest.ToDatabase(t, w.url)
	var kafka line
	inHand, ended := make(chan struct{}), make(chan struct{})
	var once sync.Once
	cfg := w.config(tally{"first", func(context.Context, *event.Event) error {
		once.Do(func() {
			proxy.Poison(nettest.Toxic{Silent: true}, nettest.Up, nettest.Down)
			kafka.die()
			close(inHand)
		})
		<-ended
		return nil
	}})
	cfg.Pool, cfg.Client, cfg.BatchTime = w.openPool(url), impatient(kgo.Dialer(kafka.dial)), 200*time.Millisecond
	w.produce(list...)
	first := w.start(cfg)
	t.Cleanup(func() { close(ended); proxy.Close(); first.cancel() })
	closed(t, "the first owner has the batch", inHand)
	cfg = w.config(tally{name: "second"})
	cfg.Client = impatient()
	w.start(cfg)
	w.settled()
	w.check(list, nil)
}

// line is a member's way to Kafka, which can be cut for good, as when its machine dies.
type line struct {
	mu    sync.Mutex // guards both below
	cut   bool
	conns []net.Conn
}

func (l *line) dial(ctx context.Context, network, host string) (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		return nil, net.ErrClosed
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, host)
	if err == nil {
		l.conns = append(l.conns, conn)
	}
	return conn, err
}

func (l *line) die() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = true
	for _, c := range l.conns {
		c.Close()
	}
}

func TestAMemberThatDiesInTheMiddleLosesAndDoublesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	w.relay()
	list := facts(400, 8, 2)
	s := newScript()
	for i := 0; i < len(list); i += 31 {
		s.fail(list[i], 2, errors.New("not yet"))
	}
	proxy, url := nettest.ToDatabase(t, w.url)
	var kafka line
	var calls atomic.Int64
	dead := make(chan struct{})
	cfg := w.config(tally{"mortal", func(ctx context.Context, e *event.Event) error {
		if calls.Add(1) == 150 { // in the middle of a batch
			kafka.die()
			proxy.Close()
			close(dead)
		}
		return s.verdict(ctx, e)
	}})
	cfg.Pool, cfg.Client, cfg.MaxEvents = w.openPool(url), impatient(kgo.Dialer(kafka.dial)), 25
	w.produce(list...)
	mortal := w.start(cfg)
	closed(t, "the member dies", dead)
	cfg = w.config(tally{"heir", s.verdict})
	cfg.Client = impatient()
	w.start(cfg)
	w.settled()
	w.check(list, nil)
	if n := ask[int](w, "SELECT count(DISTINCT applied_by) FROM effects"); n != 2 {
		t.Errorf("%d members applied something", n)
	}
	// A member that can reach nothing any more still ends when it is told to.
	if err := mortal.stop(); err != nil {
		t.Errorf("ending: %v", err)
	}
}

// Members without a partition wait, and take over when the others are gone.
func TestMembersBeyondThePartitionsWaitForTheirTurn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	list := facts(90, 3, 1)
	var members []*member
	for _, name := range []string{"a", "b", "c"} {
		cfg := w.config(tally{name: name})
		cfg.Client = impatient()
		members = append(members, w.start(cfg))
	}
	for i, m := range members {
		w.produce(list[30*i : 30*(i+1)]...)
		w.settled()
		if i < 2 {
			must(t, m.stop())
		}
	}
	w.check(list, nil)
}
