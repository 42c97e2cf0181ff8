package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"converge/internal/process"
)

// Cmd is `converge load`.
type Cmd struct {
	Target     string        `default:"http://127.0.0.1:8080" help:"Where the API answers."`
	Token      string        `placeholder:"TOKEN" help:"Bearer token, for an API that asks for one. The environment twin keeps it out of the list of processes."`
	Kind       string        `enum:"orders,profiles,mixed" default:"orders" help:"What to send: ${enum}."`
	Rate       float64       `default:"50" help:"Arrivals per second, on a fixed schedule that no reply holds up."`
	Duration   time.Duration `default:"20s" help:"How long to send; 0 until interrupted."`
	Customers  int           `default:"100" help:"How many customers there are."`
	Skew       string        `enum:"zipf,uniform" default:"zipf" help:"How customers are drawn: ${enum}; zipf means that a few make most of the load."`
	Duplicates float64       `default:"0.05" help:"Share that is sent twice with one key: both replies must name the same order."`
	Declined   float64       `default:"0.05" help:"Share of orders whose payment is declined: they must end FAILED."`
	InFlight   int           `default:"256" help:"Requests that wait for a reply, at most; latencies count the waiting."`
	Settle     time.Duration `default:"1m" help:"How long to wait for ends after the last arrival."`
	Seed       uint64        `placeholder:"N" help:"Replays the draws of an earlier run; drawn when 0."`
	JSON       bool          `name:"json" help:"Print the summary as JSON, and no progress."`
}

// Help is shown below the flags.
func (*Cmd) Help() string {
	return `Latencies count from the moment an arrival was due, so a stalled server cannot hide
(coordinated omission). Every accepted order is followed to COMPLETED or FAILED by looking
at its status; such a time is at most 20 ms or a quarter too long.
Exit code 1 when a promise broke: an accepted order was lost or did not end, one key made
two orders, a declined payment completed an order; or when nothing was accepted.`
}

// ErrBroken: the summary lists promises that did not hold.
var ErrBroken = errors.New("a promise was broken, see above")

// ErrNothingAccepted: not one request was accepted.
var ErrNothingAccepted = errors.New("nothing was accepted: is the target up, and does it want a --token? converge up starts one")

// usage is a load that cannot be sent as asked.
type usage struct{ error }

func (usage) ExitCode() int { return process.ExitUsage }

// Run sends the load and prints progress and summary.
func (c *Cmd) Run(ctx context.Context, stdout io.Writer) error {
	if c.Rate <= 0 || c.Customers <= 0 || c.InFlight <= 0 || c.Settle <= 0 {
		return usage{errors.New("rate, customers, in-flight and settle must be above 0")}
	}
	seed := c.Seed
	if seed == 0 {
		seed = rand.Uint64()
	}
	cfg := Config{Target: c.Target, Token: c.Token, Kind: c.Kind, Rate: c.Rate, Duration: c.Duration, Customers: c.Customers, Skew: c.Skew,
		Duplicates: c.Duplicates, Declined: c.Declined, InFlight: c.InFlight, Settle: c.Settle, Seed: seed}
	if !c.JSON {
		cfg.Progress = func(p Progress) {
			fmt.Fprintf(stdout, "%4.0fs  sent %d  accepted %d  ended %d  open %d  errors %d\n",
				p.Elapsed.Seconds(), p.Sent, p.Accepted, p.Finished, p.Open, p.Errors)
		}
	}
	summary, err := Run(ctx, cfg)
	if err != nil {
		return usage{err}
	}
	if c.JSON {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(summary); err != nil {
			return fmt.Errorf("printing the summary: %w", err)
		}
	} else {
		summary.Text(stdout)
	}
	switch {
	case summary.BrokenCount > 0:
		return ErrBroken
	case summary.Accepted == 0 && summary.Sent > 0:
		return ErrNothingAccepted
	}
	return nil
}
