package group_test

import (
	"context"
	"log"
	"log/slog"
	"os"
	"os/signal"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"converge/consumers/event"
	"converge/consumers/group"
	"converge/schemas"
	"converge/schemas/registry"
)

// A whole consumer: it counts the orders of each customer. Its schema has the tables of packages inbox,
// retry and outbox beside its own, and a relay carries the outbox to Kafka.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	schemaRegistry, err := registry.New("http://127.0.0.1:8081", slog.Default())
	if err != nil {
		log.Fatal(err)
	}
	// The effect commits with the inbox row and the offset, or not at all: it needs no guard of its own.
	// What does not decode is a dead letter; a registry that is away pauses the group.
	count := event.Typed(schemas.NewCodec(schemas.Avro, schemas.IDs{Schema: schemaRegistry.Schema}), func(ctx context.Context, tx pgx.Tx, e *event.Event, o schemas.OrderPlaced) error {
		_, err := tx.Exec(ctx, `
INSERT INTO order_counts (customer_id, orders)
VALUES ($1, 1)
ON CONFLICT (customer_id) DO UPDATE
SET orders = order_counts.orders + 1`, o.CustomerID)
		return err
	})
	counter, err := group.New(group.Config{Name: "counter", Brokers: []string{"127.0.0.1:9092"}, Topics: []string{"orders"}, Pool: pool,
		Handler: event.Handler{Each: map[string]event.Each{"OrderPlaced": count}}})
	if err != nil {
		log.Fatal(err)
	}
	if err := counter.Run(ctx); err != nil { // until interrupted: then it drains and leaves its group
		log.Fatal(err)
	}
}
