// Package load sends orders and profile changes to a running pipeline at a fixed rate, and follows each
// to its end.
//
// The guarantee: arrivals follow a schedule that no reply can hold up (an open model), every latency
// counts from the moment the arrival was due, so a server that stalls cannot hide it (coordinated
// omission), and what a client relies on is checked of every arrival: an accepted order is found and
// ends, a key that is sent twice names one order, a declined payment never completes an order. It fails
// to measure the server when the generator itself falls behind: [Summary.Behind] says by how much.
package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/google/uuid"
)

// What a run sends.
const (
	Orders   = "orders"
	Profiles = "profiles"
	Mixed    = "mixed" // half of each, drawn
)

// How customers are drawn.
const (
	Zipf    = "zipf" // a few customers make most of the load
	Uniform = "uniform"
)

// Config says what to send. Its zero value is a gentle mixed load on http://127.0.0.1:8080 that lasts
// until the context ends.
type Config struct {
	Target     string        // base URL; "": http://127.0.0.1:8080
	Token      string        // bearer token; "": none is sent
	Rate       float64       // arrivals per second; 0: 2
	Duration   time.Duration // of the schedule; 0: until the context ends
	Kind       string        // Orders, Profiles or Mixed; "": Mixed
	Customers  int           // how many there are; 0: 100
	Skew       string        // Zipf or Uniform; "": Zipf
	Duplicates float64       // share of arrivals that are sent twice, 0 to 1
	Declined   float64       // share of orders whose payment is declined, 0 to 1
	Seed       uint64        // of every draw; the schedule itself is not drawn
	InFlight   int           // requests waiting for a reply, at most; 0: 256. More arrivals wait, and their latency counts it
	Settle     time.Duration // how long to wait for ends after the schedule; 0: a minute
	Client     *http.Client  // nil: one with keep-alive connections for InFlight
	Progress   func(Progress)
}

// Progress is where a run stands. It is called once a second, from one goroutine.
type Progress struct {
	Elapsed                                time.Duration
	Sent, Accepted, Finished, Open, Errors int
}

const (
	settleTime   = time.Minute
	replyTimeout = 10 * time.Second
)

func (c Config) withDefaults() (Config, error) {
	if c.Target == "" {
		c.Target = "http://127.0.0.1:8080"
	}
	if c.Rate == 0 {
		c.Rate = 2
	}
	if c.Kind == "" {
		c.Kind = Mixed
	}
	if c.Customers == 0 {
		c.Customers = 100
	}
	if c.Skew == "" {
		c.Skew = Zipf
	}
	if c.InFlight == 0 {
		c.InFlight = 256
	}
	if c.Settle == 0 {
		c.Settle = settleTime
	}
	if c.Client == nil {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.MaxIdleConns, transport.MaxIdleConnsPerHost = 2*c.InFlight, 2*c.InFlight
		transport.Proxy = nil
		c.Client = &http.Client{Transport: transport, Timeout: replyTimeout}
	}
	return c, c.validate()
}

func (c Config) validate() error {
	target, err := url.Parse(c.Target)
	switch {
	case err != nil || target.Host == "" || (target.Scheme != "http" && target.Scheme != "https"):
		return fmt.Errorf("the target %q is not an http URL such as http://127.0.0.1:8080", c.Target)
	case !(c.Rate > 0 && c.Rate <= 100_000):
		return fmt.Errorf("the rate %v is not above 0 and at most 100000 per second", c.Rate)
	case c.Duration < 0 || c.Settle < 0:
		return errors.New("a duration is negative")
	case c.Kind != Orders && c.Kind != Profiles && c.Kind != Mixed:
		return fmt.Errorf("there is no kind %q: orders, profiles or mixed", c.Kind)
	case c.Skew != Zipf && c.Skew != Uniform:
		return fmt.Errorf("there is no skew %q: zipf or uniform", c.Skew)
	case c.Customers < 1 || c.InFlight < 1:
		return errors.New("customers and in-flight must be at least 1")
	case !share(c.Duplicates) || !share(c.Declined):
		return errors.New("duplicates and declined are shares between 0 and 1")
	}
	return nil
}

func share(x float64) bool { return x >= 0 && x <= 1 }

// Run sends the load and blocks until everything sent has ended, or Settle has passed since the
// schedule's end. When ctx ends, Run stops sending, waits for no more ends and returns what it has with
// a nil error: stopping a load is no failure. An error means that cfg makes no sense; [Summary.Broken]
// says which promises did not hold.
func Run(ctx context.Context, cfg Config) (Summary, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return Summary{}, err
	}
	// Following the ends of orders outlives the schedule, but not ctx.
	following, stop := context.WithCancel(ctx)
	defer stop()
	r := &runner{
		cfg:   cfg,
		id:    uuid.NewString(),
		start: time.Now(),
		slots: make(chan struct{}, cfg.InFlight),
		polls: make(chan struct{}, pollsAtOnce),
		etags: map[string]string{},
	}
	var wg sync.WaitGroup
	reporting, stopReporting := context.WithCancel(context.Background())
	wg.Go(func() { r.report(reporting) })
	r.schedule(ctx, following)
	r.settle(ctx, stop)
	stopReporting()
	wg.Wait()
	return r.summary(ctx.Err() != nil), nil
}

// runner is one run.
type runner struct {
	cfg   Config
	id    string // makes the run's idempotency keys its own
	start time.Time
	slots chan struct{} // one per request that waits for a reply
	polls chan struct{} // one per look at a status
	work  sync.WaitGroup

	tally tally

	mu    sync.Mutex
	etags map[string]string // of each profile, as last seen; "" when it does not exist yet
}

// arrival is one thing to send. All draws are made by the scheduler, so that a seed replays them.
type arrival struct {
	n        int
	due      time.Time
	profile  bool
	customer int
	sku      int
	twice    bool
	declined bool
}

func (r *runner) draws() func(n int) arrival {
	rng := rand.New(rand.NewPCG(r.cfg.Seed, 0))
	customer := func() int { return rng.IntN(r.cfg.Customers) }
	if r.cfg.Skew == Zipf {
		zipf := rand.NewZipf(rng, 1.1, 1, uint64(r.cfg.Customers-1))
		customer = func() int { return int(zipf.Uint64()) }
	}
	return func(n int) arrival {
		a := arrival{n: n, due: r.start.Add(time.Duration(float64(n) / r.cfg.Rate * float64(time.Second)))}
		coin := rng.IntN(2) == 0
		a.profile = r.cfg.Kind == Profiles || r.cfg.Kind == Mixed && coin
		a.customer, a.sku = customer(), rng.IntN(len(skus))
		a.twice, a.declined = rng.Float64() < r.cfg.Duplicates, rng.Float64() < r.cfg.Declined
		return a
	}
}

// schedule starts every arrival when it is due. It waits for a slot when none is free, and the
// arrivals behind it keep their due times.
func (r *runner) schedule(ctx, following context.Context) {
	next := r.draws()
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for n := 0; ; n++ {
		a := next(n)
		if r.cfg.Duration > 0 && a.due.Sub(r.start) >= r.cfg.Duration {
			return
		}
		if wait := time.Until(a.due); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return
			}
		}
		select {
		case r.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		r.tally.sent(time.Since(a.due))
		r.work.Go(func() { r.send(following, a) })
	}
}

// send takes one arrival to its end. It gives the slot back once the replies are there.
func (r *runner) send(ctx context.Context, a arrival) {
	var follow func(context.Context)
	func() {
		defer func() { <-r.slots }()
		if a.profile {
			follow = r.sendProfile(ctx, a)
		} else {
			follow = r.sendOrder(ctx, a)
		}
	}()
	if follow != nil {
		follow(ctx)
	}
}

// settle waits for what was sent, and stops it when Settle has passed or ctx ends.
func (r *runner) settle(ctx context.Context, stop context.CancelFunc) {
	done := make(chan struct{})
	go func() {
		r.work.Wait()
		close(done)
	}()
	timer := time.NewTimer(r.cfg.Settle)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	case <-ctx.Done():
	}
	stop()
	<-done
}

func (r *runner) report(ctx context.Context) {
	if r.cfg.Progress == nil {
		return
	}
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			r.cfg.Progress(r.tally.progress(time.Since(r.start)))
		case <-ctx.Done():
			return
		}
	}
}

// do sends one request and reads its reply, at most a mebibyte of it.
func (r *runner) do(req *http.Request) (status int, header http.Header, body []byte, err error) {
	if r.cfg.Token != "" {
		req.Header.Set("Authorization", "Bearer "+r.cfg.Token)
	}
	res, err := r.cfg.Client.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer res.Body.Close()
	body, err = io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return res.StatusCode, res.Header, body, err
}

const (
	pollsAtOnce = 64
	// firstPoll and pollShare set the resolution of times to the end: a look comes 20 ms, or a quarter
	// of the time that has passed, after the last. So a measured time is never too short, and too long
	// by at most 20 ms or a quarter.
	firstPoll = 20 * time.Millisecond
	pollShare = 4
	slowPoll  = 2 * time.Second
)

// poll looks until look says that there is nothing more to see. It returns false when ctx ended first.
func (r *runner) poll(ctx context.Context, due time.Time, look func(ctx context.Context) (done bool)) bool {
	timer := time.NewTimer(firstPoll)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return false
		}
		select {
		case r.polls <- struct{}{}:
		case <-ctx.Done():
			return false
		}
		done := look(ctx)
		<-r.polls
		if done {
			return true
		}
		timer.Reset(min(slowPoll, max(firstPoll, time.Since(due)/pollShare)))
	}
}
