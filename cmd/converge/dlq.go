package main

import (
	"context"
	"encoding/json"
	"errors"
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
	Show    dlqShowCmd    `cmd:"" help:"Show one dead letter with its headers and value."`
	Redrive dlqRedriveCmd `cmd:"" help:"Give dead letters to their consumer again, each key whole and in order."`
}

// letters chooses dead letters.
type letters struct {
	Database string `env:"CONVERGE_DATABASE,DATABASE_URL" required:"" placeholder:"URL" help:"PostgreSQL; up prints its own at the start."`
	Group    string `placeholder:"NAME" help:"Only this consumer group's; all by default."`
	Topic    string `help:"Only events of this topic."`
	Type     string `help:"Only events of this type."`
	Key      string `help:"Only events of this key."`
	Class    string `enum:"permanent,retriable," default:"" help:"Only those that died of a ${enum} error."`
	JSON     bool   `name:"json" help:"Print JSON."`
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

// find returns the dead letters chosen, of every group asked for.
func (l letters) find(ctx context.Context, filter retry.Filter) ([]retry.Letter, error) {
	groups, err := l.groups()
	if err != nil {
		return nil, err
	}
	filter.Topic, filter.Type, filter.Key, filter.Class = l.Topic, l.Type, l.Key, l.Class
	found := []retry.Letter{}
	for _, group := range groups {
		pool, err := database.Open(ctx, l.Database, group, 2)
		if err != nil {
			return nil, err
		}
		filter.Consumer = group
		some, err := retry.List(ctx, pool, filter)
		pool.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", group, err)
		}
		found = append(found, some...)
	}
	return found, nil
}

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

type dlqShowCmd struct {
	letters
	Event string `arg:"" name:"event-id" help:"The event's id, as list prints it."`
}

func (c *dlqShowCmd) Run(ctx context.Context, stdout io.Writer) error {
	id, err := uuid.Parse(c.Event)
	if err != nil {
		return usageError{fmt.Errorf("%q is not an event id: list prints them", c.Event)}
	}
	var found []retry.Letter
	for _, state := range []string{"", "resolved", "discarded"} {
		some, err := c.find(ctx, retry.Filter{EventID: id, State: state})
		if err != nil {
			return err
		}
		found = append(found, some...)
	}
	if len(found) == 0 {
		return fmt.Errorf("event %s: %w", id, retry.ErrNoLetter)
	}
	shown := make([]shownLetter, len(found))
	for i, l := range found {
		shown[i] = show(l)
	}
	if c.JSON {
		return printJSON(stdout, shown)
	}
	for _, l := range shown {
		fmt.Fprintf(stdout, "%s %s of %s, %s\n  key      %s\n  origin   %s/%d at %d\n  attempts %d, first %s, last %s\n  error    %s: %s\n",
			l.EventType, l.EventID, l.Consumer, l.State, l.Key, l.Topic, l.Partition, l.Offset, l.Attempts,
			l.FirstFailedAt.Format(time.RFC3339), l.LastFailedAt.Format(time.RFC3339), l.ErrorClass, l.Error)
		for _, h := range l.Headers {
			fmt.Fprintf(stdout, "  header   %s: %s\n", h.Key, h.Value)
		}
		fmt.Fprintf(stdout, "  value    %s\n", l.Value)
	}
	return nil
}

// shownLetter is a dead letter with what it carries, for people.
type shownLetter struct {
	retry.Letter
	Headers []shownHeader `json:"headers"`
	Value   string        `json:"value"` // as it is when it is text, quoted bytes otherwise
}

type shownHeader struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

func show(l retry.Letter) shownLetter {
	shown := shownLetter{Letter: l, Value: text(l.Payload), Headers: []shownHeader{}}
	for _, h := range l.Headers {
		shown.Headers = append(shown.Headers, shownHeader{h.Key, text(h.Value)})
	}
	return shown
}

func text(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	return fmt.Sprintf("%q", b)
}

type dlqRedriveCmd struct {
	letters
	All    bool `help:"Redrive all that the filters choose; without a filter, all there are."`
	DryRun bool `help:"Print what would be redriven, and change nothing."`
}

// batchOfKeys bounds what is listed at once while redriving.
const batchOfKeys = 100000

func (c *dlqRedriveCmd) Run(ctx context.Context, stdout io.Writer) error {
	if !c.All && !c.DryRun && c.Group == "" && c.Topic == "" && c.Type == "" && c.Key == "" && c.Class == "" {
		return usageError{errors.New("this would redrive every dead letter there is: choose with --group, --topic, --type, --key or --class, or say --all")}
	}
	found, err := c.find(ctx, retry.Filter{State: "dead", Limit: batchOfKeys})
	if err != nil {
		return err
	}
	type target struct{ group, topic, key string }
	var targets []target
	seen := map[target]bool{}
	for _, l := range found {
		if t := (target{l.Consumer, l.Topic, l.Key}); !seen[t] {
			seen[t] = true
			targets = append(targets, t)
		}
	}
	if c.DryRun {
		_, err := fmt.Fprintf(stdout, "would redrive the dead letters of %d keys (%d chosen)\n", len(targets), len(found))
		return err
	}
	redriven := 0
	pools := map[string]*pgxpool.Pool{}
	for i, t := range targets {
		pool := pools[t.group]
		if pool == nil {
			if pool, err = database.Open(ctx, c.Database, t.group, 2); err != nil {
				return err
			}
			defer pool.Close()
			pools[t.group] = pool
		}
		n, err := retry.Ladder{Consumer: t.group}.Redrive(ctx, pool, t.topic, t.key)
		if err != nil {
			return fmt.Errorf("%d of %d keys are redriven: %w", i, len(targets), err)
		}
		redriven += n
	}
	_, err = fmt.Fprintf(stdout, "redriven: %d events of %d keys; converge dlq list shows those that die again\n", redriven, len(targets))
	return err
}
