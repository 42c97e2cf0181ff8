package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"converge/internal/opshttp"
	"converge/internal/process"
	"converge/relay"
)

// told means that standard output says all there is to say; only the exit code is left.
type told struct{}

func (told) Error() string { return "" }
func (told) ExitCode() int { return process.ExitFailed }

type relayStatusCmd struct {
	relayFlags
	HTTP string `name:"http" placeholder:"HOST:PORT" help:"The running relay's --http: ask it too, for its last error and the lag in seconds."`
	JSON bool   `name:"json" help:"Print JSON."`
}

// shownStatus is what status prints.
type shownStatus struct {
	Healthy bool `json:"healthy"`
	relay.Status
	// LagSeconds is the age of the oldest transaction that waits, as the relay says; nil when nobody asked it or it does not read the slot.
	LagSeconds *float64 `json:"lag_seconds"`
	// Relay is the answer of the process at --http.
	Relay *shownRelay `json:"relay,omitempty"`
}

type shownRelay struct {
	Address string           `json:"address"`
	Ready   bool             `json:"ready"`
	Reasons []opshttp.Reason `json:"reasons,omitempty"`
}

func (c *relayStatusCmd) Run(ctx context.Context, stdout io.Writer) error {
	config, err := c.config()
	if err != nil {
		return err
	}
	status, err := relay.Inspect(ctx, config)
	if err != nil {
		return err
	}
	shown := shownStatus{Status: status}
	if c.HTTP != "" {
		asked, lag, err := askRelay(ctx, c.HTTP)
		switch {
		case err != nil:
			shown.Problems = append(shown.Problems, relay.Finding{Check: "relay", Level: relay.Fail,
				Found: err.Error(), Fix: "start the relay, or name the address of its --http"})
		case !asked.Ready:
			for _, reason := range asked.Reasons {
				shown.Problems = append(shown.Problems, relay.Finding{Check: "relay", Level: relay.Fail, Found: reason.Reason})
			}
			fallthrough
		default:
			shown.Relay, shown.LagSeconds = asked, lag
		}
	}
	shown.Healthy = len(shown.Problems) == 0
	if c.JSON {
		err = printJSON(stdout, shown)
	} else {
		err = shown.print(stdout)
	}
	if err == nil && !shown.Healthy {
		return told{}
	}
	return err
}

func (s shownStatus) print(stdout io.Writer) error {
	out := tabwriter.NewWriter(stdout, 0, 4, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(out, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	switch {
	case s.Source == relay.SourcePolling && s.Active:
		line("polling", "as %s by %s (server process %d)", s.Slot, orElse(s.Reader, "a relay"), s.PID)
	case s.Source == relay.SourcePolling:
		line("polling", "as %s by nobody", s.Slot)
	case !s.Exists:
		line("slot", "%s does not exist", s.Slot)
	case s.Active:
		line("slot", "%s, read by %s (server process %d)", s.Slot, orElse(s.Reader, "a relay"), s.PID)
	case s.InactiveSince != nil:
		line("slot", "%s, read by nobody since %s", s.Slot, s.InactiveSince.Local().Format(time.DateTime))
	default:
		line("slot", "%s, read by nobody", s.Slot)
	}
	if s.Exists {
		line("wal_status", "%s", s.WALStatus)
		line("current", "%s", s.Current)
		line("confirmed", "%s, %s behind", orElse(s.Confirmed, "-"), size(s.LagBytes))
		line("restart", "%s, %s of WAL retained", orElse(s.Restart, "-"), size(s.RetainedBytes))
		if s.SafeBytes == nil {
			line("room", "no limit (max_slot_wal_keep_size is -1)")
		} else {
			line("room", "%s of WAL until the slot is lost", size(*s.SafeBytes))
		}
	}
	if s.Backlog != nil {
		text := fmt.Sprintf("%d rows wait", *s.Backlog)
		if s.Oldest != nil {
			text += ", the oldest since " + s.Oldest.Local().Format(time.DateTime)
		}
		line("backlog", "%s", text)
	}
	if c := s.Checkpoint; c != nil {
		text := fmt.Sprintf("%s, written %s", c.Confirmed, c.At.Local().Format(time.DateTime))
		if !c.Covered.IsZero() {
			text += ", rows up to " + c.Covered.Local().Format(time.DateTime)
		}
		if c.Pending {
			text += ", backfill not finished"
		}
		line("checkpoint", "%s", text)
	}
	switch {
	case s.LagSeconds == nil:
	case *s.LagSeconds == 0:
		line("oldest", "no transaction waits in the relay")
	default:
		line("oldest", "%.1f s: the transaction that has waited longest", *s.LagSeconds)
	}
	if s.Relay != nil && s.Relay.Ready {
		line("relay", "ready at %s", base(s.Relay.Address))
	}
	if err := out.Flush(); err != nil {
		return err
	}
	return printFindings(stdout, s.Problems, "healthy")
}

func orElse(text, other string) string {
	if text == "" {
		return other
	}
	return text
}

// size is a number of bytes for people.
func size(n int64) string {
	value, unit := float64(n), "bytes"
	for _, larger := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if value < 1024 {
			break
		}
		value, unit = value/1024, larger
	}
	if unit == "bytes" {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}

// printFindings prints what is not as it should be, each with its fix, or that all is well.
func printFindings(w io.Writer, findings []relay.Finding, well string) error {
	if len(findings) == 0 {
		_, err := fmt.Fprintln(w, "\n"+well)
		return err
	}
	for _, f := range findings {
		if _, err := fmt.Fprintf(w, "\n%s: %s\n", f.Check, f.Found); err != nil {
			return err
		}
		if f.Fix != "" {
			if _, err := fmt.Fprintf(w, "  → %s\n", f.Fix); err != nil {
				return err
			}
		}
	}
	return nil
}

// askTime bounds the questions to a running relay.
const askTime = 5 * time.Second

const (
	lagMetric    = "converge_relay_lag_seconds"
	leaderMetric = "converge_relay_leader"
)

// askRelay asks the process at the address whether it is ready and how old the oldest transaction is that waits
// in it; nil when it does not read the slot.
func askRelay(ctx context.Context, address string) (*shownRelay, *float64, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	asked := &shownRelay{Address: address}
	if err := get(ctx, base(address)+"/readyz", func(status int, body io.Reader) error {
		asked.Ready = status == http.StatusOK
		answer := struct{ Reasons *[]opshttp.Reason }{&asked.Reasons}
		if err := json.NewDecoder(body).Decode(&answer); err != nil || !asked.Ready && len(asked.Reasons) == 0 {
			return errors.New("the answer is not a relay's")
		}
		return nil
	}); err != nil {
		return nil, nil, fmt.Errorf("asking the relay at %s: %w", address, err)
	}
	var lag *float64
	err := get(ctx, base(address)+"/metrics", func(_ int, body io.Reader) error {
		parser := expfmt.NewTextParser(model.UTF8Validation)
		families, err := parser.TextToMetricFamilies(body)
		if err != nil {
			return err
		}
		if leader, known := gauge(families, leaderMetric); known && leader == 1 { // one that stands by knows nothing
			if value, known := gauge(families, lagMetric); known {
				lag = &value
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("reading the relay's metrics at %s: %w", address, err)
	}
	return asked, lag, nil
}

// gauge returns the value of a gauge without labels.
func gauge(families map[string]*dto.MetricFamily, name string) (value float64, known bool) {
	family := families[name]
	if family == nil || len(family.GetMetric()) == 0 {
		return 0, false
	}
	return family.GetMetric()[0].GetGauge().GetValue(), true
}

func get(ctx context.Context, url string, read func(status int, body io.Reader) error) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	return read(response.StatusCode, response.Body)
}

type relayDoctorCmd struct {
	relayFlags
	JSON bool `name:"json" help:"Print JSON."`
}

// Help is shown below the flags.
func (*relayDoctorCmd) Help() string {
	return `Runs the checks that the relay makes before it streams, and those of what it will meet,
each on its own. Give it the relay's own flags: whether a missing slot is a fault, for
instance, is --on-missing-slot's to say. It may run beside the relay.

Exit code 0 when nothing keeps the relay from streaming (there may be warnings), else 1.`
}

func (c *relayDoctorCmd) Run(ctx context.Context, stdout io.Writer) error {
	config, err := c.config()
	if err != nil {
		return err
	}
	findings, err := relay.Diagnose(ctx, config)
	if err != nil {
		return err
	}
	healthy := !slices.ContainsFunc(findings, func(f relay.Finding) bool { return f.Level == relay.Fail })
	if c.JSON {
		err = printJSON(stdout, struct {
			Healthy  bool            `json:"healthy"`
			Findings []relay.Finding `json:"findings"`
		}{healthy, findings})
	} else {
		err = printDiagnosis(stdout, findings)
	}
	if err == nil && !healthy {
		return told{}
	}
	return err
}

func printDiagnosis(stdout io.Writer, findings []relay.Finding) error {
	out := tabwriter.NewWriter(stdout, 0, 4, 2, ' ', 0)
	count := map[relay.Level]int{}
	for _, f := range findings {
		count[f.Level]++
		fmt.Fprintf(out, "%s\t%s\t%s\n", f.Level, f.Check, f.Found)
		if f.Fix != "" {
			fmt.Fprintf(out, "\t\t  → %s\n", f.Fix)
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	parts := []string{fmt.Sprintf("%d ok", count[relay.OK])}
	if n := count[relay.Warn]; n > 0 {
		parts = append(parts, fmt.Sprintf("%d to look at", n))
	}
	verdict := "the relay can stream"
	if n := count[relay.Fail]; n > 0 {
		parts = append(parts, fmt.Sprintf("%d to mend", n))
		verdict = "the relay cannot stream"
	}
	_, err := fmt.Fprintf(stdout, "\n%s: %s\n", verdict, strings.Join(parts, ", "))
	return err
}
