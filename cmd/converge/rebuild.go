package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/jackc/pgx/v5/pgxpool"

	"converge/consumers/event"
	"converge/consumers/rebuild"
	"converge/schemas"
	"converge/schemas/registry"
)

type rebuildCmd struct {
	either
	Model    string `arg:"" enum:"orderviews" help:"The read model: ${enum}."`
	Registry string `default:"http://127.0.0.1:8081" placeholder:"URL" help:"Schema registry with the Confluent API, to read Avro."`
	DryRun   bool   `help:"Build and compare, and replace nothing."`
}

func (c *rebuildCmd) Run(ctx context.Context, log *slog.Logger, stdout io.Writer) error {
	chosen, err := choose([]string{c.Model})
	if err != nil {
		return err
	}
	options, err := c.at().kafkaOptions()
	if err != nil {
		return err
	}
	schemaOf, err := registry.New(c.Registry, log)
	if err != nil {
		return usageError{err}
	}
	codec := schemas.NewCodec(schemas.Avro, schemas.IDs{Schema: schemaOf.Schema})
	topics, _ := schemas.ReadBy(c.Model)
	report, err := rebuild.Run(ctx, rebuild.Config{DatabaseURL: c.Database, Brokers: c.Brokers, Kafka: options, Service: c.Model,
		Sets: chosen[0].sets, Topics: topics, Table: "order_views", Key: "id", Version: "version", Others: []string{"read_model_progress"},
		Handler: func(pool *pgxpool.Pool) event.Handler {
			return chosen[0].open(deps{pool: pool, codec: codec, log: log}).handler
		},
		Progress: func(done, total int64) { fmt.Fprintf(os.Stderr, "%d of %d events\n", done, total) },
		DryRun:   c.DryRun, Logger: log})
	if err != nil {
		return err
	}
	if c.JSON {
		return printJSON(stdout, report)
	}
	verb := "replaced"
	if c.DryRun {
		verb = "would replace"
	}
	fmt.Fprintf(stdout, "%s: %s, %d rows of %d events\n  %d as before, %d newer, %d different, %d added, %d kept that the topics no longer tell of\n",
		verb, c.Model, report.Rows, report.Events, report.Same, report.Newer, report.Different, report.Added, report.Kept)
	if report.Different > 0 {
		fmt.Fprintf(stdout, "  different: %v, for example\n", report.Examples)
	}
	if report.Dead > 0 {
		fmt.Fprintf(stdout, "  %d events are refused for good, as converge dlq list --group %s should show\n", report.Dead, c.Model)
	}
	return nil
}
