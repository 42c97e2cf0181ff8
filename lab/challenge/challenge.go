// Package challenge runs the profile-propagation mini challenge: profile changes go on while Analytics
// is down for (the backlog of) ten minutes, the relay is killed in the middle, records come twice, and
// then an independent judge says whether everything converged.
//
// The guarantee: the faults are real (SIGKILL to real processes, records on the real topic), the
// evidence is read from outside (the topic by a reader of its own, the journals by SQL, the views by
// HTTP), and package history alone gives the verdict; no process and no directory stays behind, except
// the evidence of a FAIL. It fails to judge when the parts cannot be started or the evidence cannot be
// read: that is UNKNOWN, never PASS. When this process itself is killed with SIGKILL, the kernel ends its
// children on Linux; elsewhere they stay behind, and the private directory does everywhere.
package challenge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"converge/internal/kafkaauth"
	"converge/lab/history"
)

// Config says how to run it. Binary, Report and Out are required.
type Config struct {
	Binary string // the converge binary whose processes are put to the test
	Report string // directory for history, timeline, logs and report; it is made
	Out    io.Writer

	Outage  time.Duration // how long Analytics is down; 0: 20 s
	Backlog int           // changes sent meanwhile; 0: 6000, which is ten a second for ten minutes
	Users   int           // 0: 200; at least 96
	Seed    uint64        // of every draw

	// Where the engines are. Empty: embedded Kafka and registry and a PostgreSQL of its own, in a
	// private directory. Given, nothing else may run converge on them.
	Database, Registry string
	Brokers            []string
	Kafka              kafkaauth.Flags // what the Kafka that was given wants
}

const (
	ordinaryMost = 4 * time.Second        // of changes before and after the outage, each
	relayDies    = 0.3                    // of the outage
	resendAt     = 0.6                    // of the outage
	resendShare  = 0.1                    // of the records on the topic then
	watchEvery   = 100 * time.Millisecond // how exactly the catch-up is measured
	graceMost    = 5 * time.Second
	catchUpBound = 3 * time.Minute
	quietTime    = 10 * time.Second // when nothing moves for so long, nothing will
	cleanUpTime  = 30 * time.Second
)

// withDefaults returns c with every zero value replaced.
func (c Config) withDefaults() Config {
	if c.Outage == 0 {
		c.Outage = 20 * time.Second
	}
	if c.Backlog == 0 {
		c.Backlog = 6000
	}
	if c.Users == 0 {
		c.Users = 200
	}
	return c
}

func (c Config) validate() error {
	switch {
	case c.Binary == "" || c.Report == "" || c.Out == nil:
		return errors.New("the challenge needs a binary, a report directory and somewhere to print")
	case c.Users < usersAtLeast:
		return fmt.Errorf("%d users are too few: at least %d", c.Users, usersAtLeast)
	case c.Outage < 2*time.Second || c.Backlog < 1:
		return errors.New("the outage must last at least 2 s and see at least one change")
	case len(c.Brokers) > 0 != (c.Database != ""):
		return errors.New("give both --brokers and --database, or neither")
	}
	return nil
}

// run is one challenge as it goes.
type run struct {
	cfg     Config
	id      string // prefix of the users' ids
	history history.History

	engines    *engines
	db         *pgx.Conn
	clock      clock
	broker     *broker
	population *population
	processes  map[string]*child
	timeline   *timeline
	rng        *rand.Rand      // of resend, which never runs twice at the same time
	ends       map[int32]int64 // of the topic, when it was last looked at
}

// Run runs the challenge and returns the judge's report, which it has also written to the report
// directory. It blocks until everything that it started has ended. An error means that there is no
// verdict; ctx ending is one.
func Run(ctx context.Context, cfg Config) (report history.Report, err error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return report, err
	}
	if cfg.Report, err = filepath.Abs(cfg.Report); err != nil {
		return report, fmt.Errorf("finding the report directory: %w", err)
	}
	if err := os.MkdirAll(cfg.Report, 0o755); err != nil {
		return report, fmt.Errorf("making the report directory: %w", err)
	}
	r := &run{cfg: cfg, id: fmt.Sprintf("u%08x", rand.Uint32()), processes: map[string]*child{}, rng: rand.New(rand.NewPCG(cfg.Seed, 2))}
	r.history.Plan = history.Plan{
		Name: "profile challenge", Mode: cfg.mode(), Seed: cfg.Seed, Truth: "identity", Services: consumers,
		Grace: min(graceMost, cfg.Outage/4), CatchUpBound: catchUpBound,
	}
	if r.timeline, err = newTimeline(filepath.Join(cfg.Report, "timeline.jsonl"), cfg.Out); err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, r.timeline.close()) }()
	err = r.play(ctx)
	if err == nil {
		report = history.Check(&r.history)
	}
	r.cleanUp(ctx, report.Verdict == history.FAIL)
	if err != nil {
		return report, errors.Join(err, r.history.Save(cfg.Report))
	}
	return report, r.write(&report)
}

// ordinaryRate is how many changes per second the backlog stands for.
const ordinaryRate = 10

func (c Config) mode() string {
	stands := time.Duration(c.Backlog) * time.Second / ordinaryRate
	if c.Outage >= stands {
		return fmt.Sprintf("Analytics really down for %v, %d changes meanwhile", c.Outage, c.Backlog)
	}
	return fmt.Sprintf("Analytics down for %v with the backlog of %v (%d changes, %d a second)", c.Outage, stands, c.Backlog, ordinaryRate)
}
