package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/consumers/retry"
	"converge/internal/database"
)

type dlqEditCmd struct {
	letters
	decision
	Event       eventID `arg:"" name:"event-id" help:"The event's id, as list prints it."`
	Value       string  `required:"" placeholder:"FILE" help:"The new value, as bytes; - for standard input. converge event encode makes Avro."`
	ContentType string  `placeholder:"TYPE" help:"What the new value is, if it is not what the old one was: application/json, say."`
}

func (c *dlqEditCmd) Run(ctx context.Context, stdout io.Writer) error {
	if c.Why == "" {
		return usageError{errors.New("say --why: it is kept with the letter")}
	}
	value, err := readValue(c.Value)
	if err != nil {
		return err
	}
	found, err := c.find(ctx, retry.Filter{EventID: c.Event.UUID, State: "dead"})
	switch {
	case err != nil:
		return err
	case len(found) == 0:
		return fmt.Errorf("event %s: %w", c.Event, retry.ErrNoLetter)
	case len(found) > 1:
		return usageError{fmt.Errorf("event %s is a dead letter of %d groups: choose one with --group", c.Event, len(found))}
	}
	group := found[0].Consumer
	pool, err := database.Open(ctx, c.Database, group, 2)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := (retry.Ladder{Consumer: group}).Edit(ctx, pool, c.Event.UUID, value, c.ContentType, c.decision.decision()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "edited: %s of %s; converge dlq redrive --group %s --key %q gives it to its consumer\n", c.Event, group, group, found[0].Key)
	return err
}

func readValue(file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(os.Stdin)
	}
	return os.ReadFile(file)
}

// batchOfLetters bounds what is listed at once.
const batchOfLetters = 100000

// target is the unit of a redrive: a key's dead letters, in order.
type target struct{ group, topic, key string }

type dlqRedriveCmd struct {
	letters
	decision
	All    bool          `help:"Redrive all that the filters choose; without a filter, all there are."`
	DryRun bool          `help:"Print what would be redriven, and change nothing."`
	Rate   int           `default:"0" placeholder:"KEYS" help:"At most this many keys a second; 0 for no bound."`
	Wait   time.Duration `default:"15s" help:"How long to wait for what becomes of them, before the report."`
}

// redriveReport is what a redrive comes to.
type redriveReport struct {
	Keys      int `json:"keys"`
	Events    int `json:"events"`
	Applied   int `json:"applied"`
	DeadAgain int `json:"dead_again"`
	Waiting   int `json:"waiting"` // for their consumer, or on the ladder
}

func (c *dlqRedriveCmd) Run(ctx context.Context, stdout io.Writer) error {
	if !c.All && !c.DryRun && !c.chosen() {
		return usageError{errors.New("this would redrive every dead letter there is: choose with --group, --topic, --type, --key, --class, --cause, --since or --until, or say --all")}
	}
	found, err := c.find(ctx, retry.Filter{State: "dead", Limit: batchOfLetters})
	if err != nil {
		return err
	}
	var targets []target
	seen := map[target]bool{}
	for _, l := range found {
		if t := (target{l.Consumer, l.Topic, l.Key}); !seen[t] {
			seen[t] = true
			targets = append(targets, t)
		}
	}
	if c.DryRun {
		if c.JSON {
			return printJSON(stdout, redriveReport{Keys: len(targets), Events: len(found)})
		}
		_, err := fmt.Fprintf(stdout, "would redrive the dead letters of %d keys (%d chosen)\n", len(targets), len(found))
		return err
	}
	work := redrive{cmd: c, pools: map[string]*pgxpool.Pool{}, ids: map[string][]uuid.UUID{}}
	defer work.close()
	if err := work.run(ctx, targets); err != nil {
		return err
	}
	report, err := work.report(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		err = printJSON(stdout, report)
	} else {
		_, err = fmt.Fprintf(stdout, "redriven: %d events of %d keys; %d applied, %d dead again, %d waiting or tried again later\n",
			report.Events, report.Keys, report.Applied, report.DeadAgain, report.Waiting)
	}
	if err == nil && report.DeadAgain > 0 {
		return fmt.Errorf("%d are dead letters again: converge dlq list shows why", report.DeadAgain)
	}
	return err
}

// redrive is a redrive under way.
type redrive struct {
	cmd   *dlqRedriveCmd
	pools map[string]*pgxpool.Pool
	keys  int
	ids   map[string][]uuid.UUID // group → events
}

func (r *redrive) close() {
	for _, pool := range r.pools {
		pool.Close()
	}
}

func (r *redrive) run(ctx context.Context, targets []target) error {
	pace := time.NewTicker(time.Second / time.Duration(max(r.cmd.Rate, 1)))
	defer pace.Stop()
	told := time.Now()
	for i, t := range targets {
		if r.cmd.Rate > 0 && i > 0 {
			select {
			case <-pace.C:
			case <-ctx.Done():
			}
		}
		if time.Since(told) > time.Second {
			told = time.Now()
			fmt.Fprintf(os.Stderr, "%d of %d keys are redriven\n", i, len(targets))
		}
		if r.pools[t.group] == nil {
			pool, err := database.Open(ctx, r.cmd.Database, t.group, 2)
			if err != nil {
				return err
			}
			r.pools[t.group] = pool
		}
		ids, err := retry.Ladder{Consumer: t.group}.Redrive(ctx, r.pools[t.group], t.topic, t.key, r.cmd.decision.decision())
		if err != nil {
			return fmt.Errorf("%d of %d keys are redriven: %w", i, len(targets), err)
		}
		r.keys++
		r.ids[t.group] = append(r.ids[t.group], ids...)
	}
	return nil
}

// report waits for what becomes of the events, for as long as the command is to.
func (r *redrive) report(ctx context.Context) (redriveReport, error) {
	deadline := time.NewTimer(r.cmd.Wait)
	defer deadline.Stop()
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	for {
		report := redriveReport{Keys: r.keys}
		for group, ids := range r.ids {
			states, err := retry.States(ctx, r.pools[group], group, ids)
			if err != nil {
				return report, err
			}
			report.Events += len(ids)
			report.Applied += states["resolved"]
			report.DeadAgain += states["dead"]
			report.Waiting += states["redriving"]
		}
		if report.Waiting == 0 {
			return report, nil
		}
		select {
		case <-again.C:
		case <-deadline.C:
			return report, nil
		case <-ctx.Done():
			return report, ctx.Err()
		}
	}
}

type dlqDiscardCmd struct {
	letters
	decision
	Events []eventID `arg:"" optional:"" name:"event-id" help:"The events' ids, as list prints them; the filters choose otherwise."`
	All    bool      `help:"Discard all that the filters choose; without a filter, all there are."`
	DryRun bool      `help:"Print what would be discarded, and change nothing."`
}

func (c *dlqDiscardCmd) Run(ctx context.Context, stdout io.Writer) error {
	switch {
	case c.Why == "" && !c.DryRun:
		return usageError{errors.New("say --why: it is kept with the letters")}
	case len(c.Events) == 0 && !c.All && !c.DryRun && !c.chosen():
		return usageError{errors.New("this would discard every dead letter there is: name events, choose with a filter, or say --all")}
	}
	filters := []retry.Filter{{State: "dead", Limit: batchOfLetters}}
	if len(c.Events) > 0 {
		filters = nil
		for _, id := range c.Events {
			filters = append(filters, retry.Filter{State: "dead", EventID: id.UUID})
		}
	}
	discarded := 0
	for _, filter := range filters {
		before := discarded
		if err := c.each(ctx, filter, func(pool *pgxpool.Pool, filter retry.Filter) error {
			found, err := retry.List(ctx, pool, filter)
			for i := 0; i < len(found) && err == nil; i++ {
				if !c.DryRun {
					err = retry.Ladder{Consumer: filter.Consumer}.Discard(ctx, pool, found[i].EventID, c.decision.decision())
				}
				if errors.Is(err, retry.ErrNoLetter) { // somebody decided meanwhile
					err = nil
					continue
				}
				if err == nil {
					discarded++
				}
			}
			return err
		}); err != nil {
			return fmt.Errorf("%d are discarded: %w", discarded, err)
		}
		if len(c.Events) > 0 && discarded == before {
			return fmt.Errorf("event %s: %w", filter.EventID, retry.ErrNoLetter)
		}
	}
	if c.JSON {
		return printJSON(stdout, map[string]int{"discarded": discarded})
	}
	what := "discarded"
	if c.DryRun {
		what = "would discard"
	}
	_, err := fmt.Fprintf(stdout, "%s: %d dead letters\n", what, discarded)
	return err
}
