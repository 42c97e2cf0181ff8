package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/consumers/retry"
	"converge/internal/database"
	"converge/schemas"
)

type dlqCmd struct {
	List    dlqListCmd    `cmd:"" help:"List dead letters that are neither resolved nor discarded."`
	Stats   dlqStatsCmd   `cmd:"" help:"Count dead letters by their causes."`
	Show    dlqShowCmd    `cmd:"" help:"Show one dead letter with its headers, its value and what was decided about it."`
	Edit    dlqEditCmd    `cmd:"" help:"Replace the value of a dead letter, to be redriven; the value before is kept."`
	Redrive dlqRedriveCmd `cmd:"" help:"Give dead letters to their consumer again, each key whole and in order."`
	Discard dlqDiscardCmd `cmd:"" help:"Give dead letters up for good."`
}

// letters chooses dead letters.
type letters struct {
	Database string `env:"CONVERGE_DATABASE,DATABASE_URL" required:"" placeholder:"URL" help:"PostgreSQL; up prints its own at the start."`
	Group    string `placeholder:"NAME" help:"Only this consumer group's; all by default."`
	Topic    string `help:"Only events of this topic."`
	Type     string `help:"Only events of this type."`
	Key      string `help:"Only events of this key."`
	Class    string `enum:"permanent,retriable," default:"" help:"Only those that died of a ${enum} error."`
	Cause    string `placeholder:"TEXT" help:"Only those whose error holds this text."`
	Since    moment `placeholder:"WHEN" help:"Only those that failed last at or after then: 2h (ago), or 2026-03-01T12:00:00Z."`
	Until    moment `placeholder:"WHEN" help:"Only those that failed last before then."`
	JSON     bool   `name:"json" help:"Print JSON."`
}

// moment is a point in time, which may be given as how long ago it was.
type moment struct{ time.Time }

func (m *moment) UnmarshalText(text []byte) (err error) {
	if ago, failed := time.ParseDuration(string(text)); failed == nil {
		m.Time = time.Now().Add(-ago)
		return nil
	}
	if m.Time, err = time.Parse(time.RFC3339, string(text)); err != nil {
		return fmt.Errorf("%q is neither a duration, as in 2h, nor a time, as in 2026-03-01T12:00:00Z", text)
	}
	return nil
}

// chosen reports whether any filter is set.
func (l letters) chosen() bool {
	return l.Group != "" || l.Topic != "" || l.Type != "" || l.Key != "" || l.Class != "" || l.Cause != "" || !l.Since.IsZero() || !l.Until.IsZero()
}

func (l letters) groups() ([]string, error) {
	readers := schemas.Readers()
	if l.Group == "" {
		return readers, nil
	}
	if !slices.Contains(readers, l.Group) {
		return nil, usageError{fmt.Errorf("there is no consumer group %q: the groups are %v", l.Group, readers)}
	}
	return []string{l.Group}, nil
}

// each asks every group about the letters chosen.
func (l letters) each(ctx context.Context, filter retry.Filter, ask func(*pgxpool.Pool, retry.Filter) error) error {
	groups, err := l.groups()
	if err != nil {
		return err
	}
	filter.Topic, filter.Type, filter.Key, filter.Class = l.Topic, l.Type, l.Key, l.Class
	filter.Cause, filter.Since, filter.Until = l.Cause, l.Since.Time, l.Until.Time
	for _, group := range groups {
		pool, err := database.Open(ctx, l.Database, group, 2)
		if err != nil {
			return err
		}
		filter.Consumer = group
		err = ask(pool, filter)
		pool.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", group, err)
		}
	}
	return nil
}

// find returns the dead letters chosen, of every group asked for.
func (l letters) find(ctx context.Context, filter retry.Filter) ([]retry.Letter, error) {
	found := []retry.Letter{}
	err := l.each(ctx, filter, func(pool *pgxpool.Pool, filter retry.Filter) error {
		some, err := retry.List(ctx, pool, filter)
		found = append(found, some...)
		return err
	})
	return found, err
}

// anyState returns the letter of an event with each group that has one, whatever its state.
func (l letters) anyState(ctx context.Context, id uuid.UUID) ([]retry.Letter, error) {
	var found []retry.Letter
	for _, state := range []string{"", "resolved", "discarded"} {
		some, err := l.find(ctx, retry.Filter{EventID: id, State: state})
		if err != nil {
			return nil, err
		}
		found = append(found, some...)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("event %s: %w", id, retry.ErrNoLetter)
	}
	return found, nil
}

// decision is for commands that change something.
type decision struct {
	By  string `default:"${user}" help:"Who decides; kept with the letters. ${default} by default."`
	Why string `placeholder:"TEXT" help:"Why; kept with the letters."`
}

func (d decision) decision() retry.Decision { return retry.Decision(d) }

type dlqListCmd struct {
	letters
	State string `enum:"dead,redriving,resolved,discarded," default:"" help:"Only those in this state: ${enum}; dead and redriving by default."`
	Limit int    `default:"100" help:"At most this many of each group."`
}

func (c *dlqListCmd) Run(ctx context.Context, stdout io.Writer) error {
	found, err := c.find(ctx, retry.Filter{State: c.State, Limit: c.Limit})
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(stdout, found)
	}
	if len(found) == 0 {
		_, err := fmt.Fprintln(stdout, "no dead letters")
		return err
	}
	out := tabwriter.NewWriter(stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(out, "GROUP\tSTATE\tTYPE\tKEY\tATTEMPTS\tLAST FAILED\tEVENT\tERROR")
	for _, l := range found {
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", l.Consumer, l.State, l.EventType, l.Key, l.Attempts,
			l.LastFailedAt.Local().Format(time.DateTime), l.EventID, short(l.Error, 80))
	}
	return out.Flush()
}

func short(text string, most int) string {
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return text
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

type dlqStatsCmd struct {
	letters
	Limit int `default:"20" help:"At most this many causes of each group."`
}

func (c *dlqStatsCmd) Run(ctx context.Context, stdout io.Writer) error {
	counts := []retry.Count{}
	if err := c.each(ctx, retry.Filter{Limit: c.Limit}, func(pool *pgxpool.Pool, filter retry.Filter) error {
		some, err := retry.Stats(ctx, pool, filter)
		counts = append(counts, some...)
		return err
	}); err != nil {
		return err
	}
	if c.JSON {
		return printJSON(stdout, counts)
	}
	if len(counts) == 0 {
		_, err := fmt.Fprintln(stdout, "no dead letters")
		return err
	}
	out := tabwriter.NewWriter(stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(out, "LETTERS\tKEYS\tGROUP\tTOPIC\tTYPE\tCLASS\tOLDEST\tNEWEST\tERROR")
	for _, n := range counts {
		fmt.Fprintf(out, "%d\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", n.Letters, n.Keys, n.Consumer, n.Topic, n.EventType, n.ErrorClass,
			n.Oldest.Local().Format(time.DateTime), n.Newest.Local().Format(time.DateTime), short(n.Error, 80))
	}
	return out.Flush()
}

type dlqShowCmd struct {
	letters
	Event eventID `arg:"" name:"event-id" help:"The event's id, as list prints it."`
}

// eventID is an id as list prints it.
type eventID struct{ uuid.UUID }

func (id *eventID) UnmarshalText(text []byte) (err error) {
	if id.UUID, err = uuid.ParseBytes(text); err != nil {
		return fmt.Errorf("%q is not an event id: list prints them", text)
	}
	return nil
}

func (c *dlqShowCmd) Run(ctx context.Context, stdout io.Writer) error {
	found, err := c.anyState(ctx, c.Event.UUID)
	if err != nil {
		return err
	}
	shown := make([]shownLetter, len(found))
	for i, l := range found {
		shown[i] = show(l)
		if err := c.each(ctx, retry.Filter{}, func(pool *pgxpool.Pool, filter retry.Filter) error {
			if filter.Consumer != l.Consumer {
				return nil
			}
			decisions, err := retry.Decisions(ctx, pool, l.Consumer, l.EventID)
			for _, d := range decisions {
				shown[i].Decisions = append(shown[i].Decisions, shownDecision{d, text(d.Before), text(d.After)})
			}
			return err
		}); err != nil {
			return err
		}
	}
	if c.JSON {
		return printJSON(stdout, shown)
	}
	for _, l := range shown {
		l.print(stdout)
	}
	return nil
}

// shownLetter is a dead letter with what it carries, for people.
type shownLetter struct {
	retry.Letter
	Headers   []shownHeader   `json:"headers"`
	Value     string          `json:"value"` // as it is when it is text, quoted bytes otherwise
	Decisions []shownDecision `json:"decisions"`
}

type shownHeader struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

type shownDecision struct {
	retry.Decided
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
}

func show(l retry.Letter) shownLetter {
	shown := shownLetter{Letter: l, Value: text(l.Payload), Headers: []shownHeader{}, Decisions: []shownDecision{}}
	for _, h := range l.Headers {
		shown.Headers = append(shown.Headers, shownHeader{h.Key, text(h.Value)})
	}
	return shown
}

func (l shownLetter) print(w io.Writer) {
	fmt.Fprintf(w, "%s %s of %s, %s\n  key      %s\n  origin   %s/%d at %d\n  attempts %d, first %s, last %s\n  error    %s: %s\n",
		l.EventType, l.EventID, l.Consumer, l.State, l.Key, l.Topic, l.Partition, l.Offset, l.Attempts,
		l.FirstFailedAt.Format(time.RFC3339), l.LastFailedAt.Format(time.RFC3339), l.ErrorClass, l.Error)
	for _, h := range l.Headers {
		fmt.Fprintf(w, "  header   %s: %s\n", h.Key, h.Value)
	}
	fmt.Fprintf(w, "  value    %s\n", l.Value)
	for _, d := range l.Decisions {
		fmt.Fprintf(w, "  %-8s %s by %s %s\n", d.Act, d.At.Format(time.RFC3339), d.By, d.Why)
		if d.Act == "edited" {
			fmt.Fprintf(w, "    before %s\n    after  %s\n", d.Before, d.After)
		}
	}
}

func text(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	return fmt.Sprintf("%q", b)
}
