package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"time"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"

	"converge/relay"
)

type relayReplayCmd struct {
	sharedRelayFlags
	From     string   `placeholder:"TIME|SEQ" help:"The first row: a time of created_at (2026-11-23T10:00:00Z or 2026-11-23, UTC), or a number of the column seq."`
	To       string   `placeholder:"TIME|SEQ" help:"Where to end; this row itself is not sent."`
	Topic    []string `env:"CONVERGE_REPLAY_TOPIC" help:"Only rows for these topics."`
	Key      []string `help:"Only rows of these aggregates."`
	Template string   `name:"topic-template" env:"CONVERGE_TOPIC" placeholder:"TEMPLATE" help:"The relay's --topic."`
	Mark     string   `default:"true" help:"What the header replay says, for consumers to tell."`
	All      bool     `help:"Send every row there is, when nothing else chooses."`
	DryRun   bool     `help:"Count the rows, and send none."`
}

// Help is shown below the flags.
func (*relayReplayCmd) Help() string {
	return `Reads the tables, not the WAL: neither slot nor relay are touched, and a relay may run
meanwhile. Consumers see the events once more, with the same event_id. Ctrl-C stops at
once; whoever begins again sends everything again.`
}

func (c *relayReplayCmd) Run(ctx context.Context, log *slog.Logger, stdout io.Writer, k *kong.Kong) error {
	config, err := c.configFor(c.Template)
	if err != nil {
		return err
	}
	which, err := c.chosen()
	if err != nil {
		return usageError{err}
	}
	counted, err := relay.CountRows(ctx, config, which)
	if err != nil {
		return err
	}
	var total int64
	for _, t := range counted {
		total += t.Rows
	}
	if c.DryRun {
		for _, t := range counted {
			if t.Rows > 0 {
				fmt.Fprintf(stdout, "%10d  %s\n", t.Rows, t.Table)
			}
		}
		_, err := fmt.Fprintf(stdout, "would send %d rows of %d tables\n", total, len(counted))
		return err
	}
	metrics := prometheus.NewRegistry()
	config.Logger, config.Registerer = log, metrics
	stop := progress(k.Stderr, metrics, total)
	began := time.Now()
	sent, err := relay.Replay(ctx, config, which)
	stop()
	if err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		return fmt.Errorf("%d of %d rows are sent: %w", sent, total, err)
	}
	_, err = fmt.Fprintf(stdout, "sent %d rows in %s\n", sent, time.Since(began).Round(time.Millisecond))
	return err
}

// chosen returns the range that the flags describe.
func (c *relayReplayCmd) chosen() (relay.Range, error) {
	which := relay.Range{Topics: c.Topic, Keys: c.Key, Mark: c.Mark}
	if !c.All && !c.DryRun && c.From == "" && c.To == "" && len(c.Topic) == 0 && len(c.Key) == 0 && len(c.Table) == 0 {
		return which, errors.New("this would send every row there is: choose with --from, --to, --topic, --key or --table, or say --all")
	}
	for _, bound := range []struct {
		flag, text string
		at         *time.Time
		seq        *int64
	}{{"--from", c.From, &which.From, &which.FromSeq}, {"--to", c.To, &which.To, &which.ToSeq}} {
		if err := parseBound(bound.text, bound.at, bound.seq); err != nil {
			return which, fmt.Errorf("%s %w", bound.flag, err)
		}
	}
	return which, nil
}

func parseBound(text string, at *time.Time, seq *int64) (err error) {
	if text == "" {
		return nil
	}
	if *seq, err = strconv.ParseInt(text, 10, 64); err == nil {
		if *seq <= 0 {
			return fmt.Errorf("%s: seq begins with 1", text)
		}
		return nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", time.DateOnly} {
		if *at, err = time.Parse(layout, text); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s is neither a time (2026-11-23T10:00:00Z, 2026-11-23) nor a number of the column seq", text)
}

// progress writes a line every second until the returned function is called.
func progress(w io.Writer, metrics prometheus.Gatherer, total int64) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				fmt.Fprintf(w, "%d of %d rows sent\n", published(metrics), total)
			case <-done:
				return
			}
		}
	}()
	return func() { close(done); <-ended }
}

// published reads the relay's own count.
func published(metrics prometheus.Gatherer) (n int64) {
	families, err := metrics.Gather()
	if err != nil {
		return 0
	}
	for _, family := range families {
		if family.GetName() != "converge_relay_events_published_total" {
			continue
		}
		for _, m := range family.GetMetric() {
			n += int64(m.GetCounter().GetValue())
		}
	}
	return n
}
