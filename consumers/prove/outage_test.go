package prove

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"converge/internal/proof"
)

var outage = flag.Duration("prove.outage", 2*time.Second, "how long each side is away under load")

// outageRate is how many events a second come meanwhile.
const outageRate = 500

// However long a side is away while events come: no try is counted, nothing is held, nothing dies, and the group
// catches up by itself.
func TestAnOutageUnderLoadIsOnlyAPause(t *testing.T) {
	t.Parallel()
	w := newWorld(t, buildMember(t), "")
	w.quick = true
	seed := newSeed()
	t.Logf("seed %d", seed)
	pen := &ledger{kafka: w.kafka, rng: rand.New(rand.NewPCG(seed, 1)), rate: outageRate, harmless: true}
	for range 3 {
		w.start()
	}
	writing, stop := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	var failed error
	wait.Go(func() { failed = pen.write(writing) })
	defer func() { stop(); wait.Wait() }()
	for _, side := range []struct {
		name string
		leg  *proof.Leg
	}{{"PostgreSQL", w.server.Leg}, {"Kafka", w.cluster.Leg}} {
		if err := await("the members keep up", func() error { return w.behind(t.Context(), outageRate) }); err != nil {
			t.Fatal(err)
		}
		side.leg.Cut()
		<-time.After(*outage)
		before, ends := w.stored(t.Context()), w.ends(t.Context())
		side.leg.Mend()
		began := time.Now()
		if err := await("the backlog is taken on", func() error {
			if at := w.stored(t.Context()); at < ends {
				return fmt.Errorf("%d of %d", at, ends)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		rate := float64(w.stored(t.Context())-before) / took.Seconds()
		t.Logf("%s away for %v at %d events/s: %d events waited, taken on within %v of its return, %.0f events/s, %.0f × the rate at which they came",
			side.name, *outage, outageRate, ends-before, took.Round(100*time.Millisecond), rate, rate/outageRate)
	}
	stop()
	wait.Wait()
	if failed != nil {
		t.Fatal(failed)
	}
	if err := w.settled(t.Context()); err != nil {
		t.Fatal(err)
	}
	h := &History{MaxAttempts: Policy().MaxAttempts, Facts: pen.facts}
	if err := w.collect(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	if v := Check(h); !v.Passed() || len(h.Letters) > 0 || v.Retried > 0 {
		t.Errorf("%d dead letters, %d retried, %v\n%s", len(h.Letters), v.Retried, v.Counts, strings.Join(v.Examples, "\n"))
	}
}

// stored is how many records the group has taken on.
func (w *world) stored(ctx context.Context) (sum int64) {
	w.t.Helper()
	if err := w.pool.QueryRow(ctx, "SELECT coalesce(sum(next_offset), 0)::bigint FROM consumer_offsets").Scan(&sum); err != nil {
		w.t.Fatal(err)
	}
	return sum
}

// ends is how many there are.
func (w *world) ends(ctx context.Context) (sum int64) {
	w.t.Helper()
	ends, err := w.admin.ListEndOffsets(ctx, Topic)
	if err = errors.Join(err, ends.Error()); err != nil {
		w.t.Fatal(err)
	}
	ends.Each(func(o kadm.ListedOffset) { sum += o.Offset })
	return sum
}

// behind says how far the members are behind, if it is far.
func (w *world) behind(ctx context.Context, far int64) error {
	ends, stored := w.ends(ctx), w.stored(ctx)
	if stored == 0 || ends-stored > far {
		return fmt.Errorf("they are at %d of %d", stored, ends)
	}
	return nil
}
