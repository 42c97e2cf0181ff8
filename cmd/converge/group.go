package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/consumers/group"
	"converge/internal/database"
	"converge/internal/kafkaauth"
	"converge/schemas"
)

type groupCmd struct {
	Show  groupShowCmd  `cmd:"" help:"Show where consumer groups are: in the database, which decides, and in Kafka."`
	Reset groupResetCmd `cmd:"" help:"Set where a consumer group reads on, in the database and in Kafka."`
}

// either is the two places that know where a group is.
type either struct {
	Database string   `env:"CONVERGE_DATABASE,DATABASE_URL" required:"" placeholder:"URL" help:"PostgreSQL; up prints its own at the start."`
	Brokers  []string `default:"127.0.0.1:9092" placeholder:"HOST:PORT" help:"Kafka bootstrap addresses, separated by commas."`
	kafkaauth.Flags
	JSON bool `name:"json" help:"Print JSON."`
}

func (e either) at() connection {
	return connection{Database: e.Database, Brokers: e.Brokers, Flags: e.Flags}
}

// open returns both sides of a group; close ends them.
func (e either) open(ctx context.Context, name string) (pool *pgxpool.Pool, client *kgo.Client, closeBoth func(), err error) {
	if readers := schemas.Readers(); !slices.Contains(readers, name) {
		return nil, nil, nil, usageError{fmt.Errorf("there is no consumer group %q: the groups are %v", name, readers)}
	}
	if client, err = e.at().client(); err != nil {
		return nil, nil, nil, err
	}
	if pool, err = database.Open(ctx, e.Database, name, 2); err != nil {
		client.Close()
		return nil, nil, nil, err
	}
	return pool, client, func() { pool.Close(); client.Close() }, nil
}

type groupShowCmd struct {
	either
	Names []string `arg:"" optional:"" name:"group" help:"Consumer groups; all by default."`
}

// shownPosition is a line of show.
type shownPosition struct {
	Group string `json:"group"`
	group.Position
}

func (c *groupShowCmd) Run(ctx context.Context, stdout io.Writer) error {
	names := c.Names
	if len(names) == 0 {
		names = schemas.Readers()
	}
	shown := []shownPosition{}
	for _, name := range names {
		pool, client, closeBoth, err := c.open(ctx, name)
		if err != nil {
			return err
		}
		topics, _ := schemas.ReadBy(name)
		positions, err := positionsOf(ctx, pool, client, name, topics)
		closeBoth()
		if err != nil {
			return err
		}
		for _, p := range positions {
			shown = append(shown, shownPosition{name, p})
		}
	}
	if c.JSON {
		return printJSON(stdout, shown)
	}
	out := tabwriter.NewWriter(stdout, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "GROUP\tTOPIC\tPARTITION\tSTORED\tKAFKA\tSTART\tEND\tLAG\tHELD\t  MEMBER\t")
	for _, p := range shown {
		fmt.Fprintf(out, "%s\t%s\t%d\t%s\t%s\t%d\t%d\t%d\t%d\t  %s\t\n", p.Group, p.Topic, p.Partition, offset(p.Stored), offset(p.Committed),
			p.Start, p.End, p.Lag, p.Held, orNobody(p.Member))
	}
	return out.Flush()
}

// kafkaTime bounds what is asked of Kafka.
const kafkaTime = 15 * time.Second

func positionsOf(ctx context.Context, pool *pgxpool.Pool, client *kgo.Client, name string, topics []string) ([]group.Position, error) {
	ctx, cancel := context.WithTimeout(ctx, kafkaTime)
	defer cancel()
	return group.Positions(ctx, pool, client, name, topics...)
}

func offset(at int64) string {
	if at < 0 {
		return "-"
	}
	return strconv.FormatInt(at, 10)
}

func orNobody(member string) string {
	if member == "" {
		return "(nobody)"
	}
	return member
}

type groupResetCmd struct {
	either
	Name      string  `arg:"" name:"group" help:"The consumer group."`
	Topic     string  `required:"" help:"The topic."`
	Partition []int32 `placeholder:"N" help:"Its partitions, separated by commas; all by default."`
	To        string  `required:"" placeholder:"WHERE" help:"start, end, an offset, or a time: 2h (ago), or 2026-03-01T12:00:00Z."`
	DryRun    bool    `help:"Print what would be set, and change nothing."`
}

func (c *groupResetCmd) Run(ctx context.Context, stdout io.Writer) error {
	pool, client, closeBoth, err := c.open(ctx, c.Name)
	if err != nil {
		return err
	}
	defer closeBoth()
	if topics, _ := schemas.ReadBy(c.Name); !slices.Contains(topics, c.Topic) {
		return usageError{fmt.Errorf("%s does not read a topic %q: its topics are %v", c.Name, c.Topic, topics)}
	}
	all, err := positionsOf(ctx, pool, client, c.Name, []string{c.Topic})
	if err != nil {
		return err
	}
	before := all[:0]
	for _, p := range all {
		if len(c.Partition) == 0 || slices.Contains(c.Partition, p.Partition) {
			before = append(before, p)
		}
	}
	if len(before) == 0 || len(before) < len(c.Partition) {
		return usageError{fmt.Errorf("topic %s does not have all of the partitions %v", c.Topic, c.Partition)}
	}
	to, err := c.targets(ctx, client, before)
	if err != nil {
		return err
	}
	if !c.DryRun {
		ctx, cancel := context.WithTimeout(ctx, kafkaTime)
		defer cancel()
		if err := group.Reset(ctx, pool, client, c.Name, map[string]map[int32]int64{c.Topic: to}); err != nil {
			if errors.Is(err, group.ErrNoSuchOffset) {
				return usageError{err}
			}
			return err
		}
	}
	return c.print(stdout, before, to)
}

// targets returns the offset for each partition.
func (c *groupResetCmd) targets(ctx context.Context, client *kgo.Client, positions []group.Position) (map[int32]int64, error) {
	to := map[int32]int64{}
	var when moment
	at, err := strconv.ParseInt(c.To, 10, 64)
	switch {
	case err == nil, c.To == "start", c.To == "end":
	case when.UnmarshalText([]byte(c.To)) != nil:
		return nil, usageError{fmt.Errorf("%q is neither start, end, an offset, a duration as in 2h, nor a time as in 2026-03-01T12:00:00Z", c.To)}
	}
	var listed kadm.ListedOffsets
	if !when.IsZero() {
		ctx, cancel := context.WithTimeout(ctx, kafkaTime)
		defer cancel()
		if listed, err = kadm.NewClient(client).ListOffsetsAfterMilli(ctx, when.UnixMilli(), c.Topic); err == nil {
			err = listed.Error()
		}
		if err != nil {
			return nil, fmt.Errorf("looking for the offsets of %s: %w", c.To, err)
		}
	}
	for _, p := range positions {
		switch {
		case c.To == "start":
			to[p.Partition] = p.Start
		case c.To == "end":
			to[p.Partition] = p.End
		case !when.IsZero():
			found, _ := listed.Lookup(p.Topic, p.Partition)
			to[p.Partition] = found.Offset
		default:
			to[p.Partition] = at
		}
	}
	return to, nil
}

// resetLine is a partition that was set.
type resetLine struct {
	Partition int32 `json:"partition"`
	Before    int64 `json:"before"`
	After     int64 `json:"after"`
}

func (c *groupResetCmd) print(stdout io.Writer, before []group.Position, to map[int32]int64) error {
	lines := make([]resetLine, len(before))
	for i, p := range before {
		lines[i] = resetLine{p.Partition, p.Stored, to[p.Partition]}
	}
	if c.JSON {
		return printJSON(stdout, lines)
	}
	verb := "set"
	if c.DryRun {
		verb = "would set"
	}
	for _, l := range lines {
		fmt.Fprintf(stdout, "%s: %s %s/%d from %s to %d\n", verb, c.Name, c.Topic, l.Partition, offset(l.Before), l.After)
	}
	_, err := fmt.Fprintln(stdout, "events that were taken on before are duplicates and change nothing; those passed over are never read")
	return err
}
