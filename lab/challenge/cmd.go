package challenge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"converge/internal/kafkaauth"
	"converge/lab/history"
)

// Cmd is `converge challenge`.
type Cmd struct {
	Profile ProfileCmd `cmd:"" default:"withargs" help:"Profile changes flow to Billing and Analytics while Analytics is down for ten minutes."`
}

// ProfileCmd is `converge challenge profile`, which is also what `converge challenge` alone runs.
type ProfileCmd struct {
	Fast     bool     `xor:"length" help:"Analytics is down for about 20 s, with the backlog of ten minutes (the default)."`
	Real     bool     `xor:"length" help:"Analytics is down for 600 s."`
	Seed     uint64   `placeholder:"N" help:"Replays the draws of an earlier run; drawn when 0."`
	Report   string   `type:"path" placeholder:"DIR" help:"Where history, timeline, logs and report go; .converge/challenge/TIME by default."`
	JSON     bool     `name:"json" help:"Print the report as JSON, and the progress on standard error."`
	Database string   `placeholder:"URL" help:"Use this PostgreSQL (wal_level=logical) instead of an own one; needs --brokers."`
	Brokers  []string `placeholder:"HOST:PORT" help:"Use this Kafka instead of an embedded one; needs --database. Nothing else may run converge on them."`
	kafkaauth.Flags
	Registry string `placeholder:"URL" help:"Schema registry beside --brokers; without one, events are JSON."`
}

// Help is shown below the flags.
func (*ProfileCmd) Help() string {
	return `Starts an embedded Kafka and a PostgreSQL in a private directory, and relay, identity,
billing and analytics as processes. Changes flow; analytics is killed (SIGKILL) and stays
away; the relay is killed and comes back; records are delivered twice; analytics comes
back. Then the topic, the journals of both consumers and all views are read from outside,
and a checker that shares no code with the services gives the verdict.

Exit code 0 PASS, 1 FAIL (with the smallest counterexample), 2 UNKNOWN (nothing was read,
or the parts could not be started).`
}

const realOutage = 10 * time.Minute

// noVerdict is why a run ended without one. That is UNKNOWN.
type noVerdict struct{ err error }

func (e noVerdict) Error() string { return "no verdict (UNKNOWN): " + e.err.Error() }
func (e noVerdict) Unwrap() error { return e.err }
func (noVerdict) ExitCode() int   { return history.UNKNOWN.ExitCode() }

// Run runs the challenge. It returns nil on PASS, a [*history.NotPassed] on FAIL and UNKNOWN, and
// another error with exit code 2 when there is no verdict.
func (c *ProfileCmd) Run(ctx context.Context, stdout io.Writer) error {
	binary, err := os.Executable()
	if err != nil {
		return noVerdict{fmt.Errorf("finding the own binary: %w", err)}
	}
	cfg := Config{Binary: binary, Report: c.Report, Out: stdout, Seed: c.Seed,
		Database: c.Database, Brokers: c.Brokers, Kafka: c.Flags, Registry: c.Registry}
	if c.JSON {
		cfg.Out = os.Stderr
	}
	if c.Real {
		cfg.Outage = realOutage
	}
	if cfg.Seed == 0 {
		cfg.Seed = rand.Uint64()
	}
	if cfg.Report == "" {
		cfg.Report = filepath.Join(".converge", "challenge", time.Now().UTC().Format("20060102T150405Z"))
	}
	report, err := Run(ctx, cfg)
	if errors.Is(err, context.Canceled) {
		return noVerdict{errors.New("interrupted")}
	}
	if err != nil {
		return noVerdict{err}
	}
	if c.JSON {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(report); err != nil {
			return noVerdict{fmt.Errorf("printing the report: %w", err)}
		}
	}
	if report.Verdict != history.PASS {
		return &history.NotPassed{Verdict: report.Verdict, Report: cfg.Report}
	}
	return nil
}

// write puts history and report into the report directory and prints the report.
func (r *run) write(report *history.Report) error {
	text := "\n" + report.Text()
	fmt.Fprint(r.cfg.Out, text)
	body, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	return errors.Join(
		r.history.Save(r.cfg.Report),
		os.WriteFile(filepath.Join(r.cfg.Report, "report.json"), append(body, '\n'), 0o644),
		os.WriteFile(filepath.Join(r.cfg.Report, "report.txt"), []byte(text), 0o644),
	)
}
