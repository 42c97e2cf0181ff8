package relay_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"

	"converge/internal/pgtest"
)

// exampleTable is the table of docs/relay.md.
const exampleTable = `
CREATE TABLE public.outbox (
    event_id          uuid        NOT NULL DEFAULT gen_random_uuid(),
    topic             text        NOT NULL,
    aggregate_type    text        NOT NULL,
    aggregate_id      text        NOT NULL,
    aggregate_version bigint      NOT NULL DEFAULT 1,
    event_type        text        NOT NULL,
    content_type      text        NOT NULL DEFAULT 'application/json',
    payload           bytea,
    headers           jsonb       NOT NULL DEFAULT '{}',
    created_at        timestamptz NOT NULL DEFAULT now(),
    seq               bigint      GENERATED ALWAYS AS IDENTITY
)`

// TestTheExampleRelaysATableOfItsOwn: the one in the documentation, with the program in the documentation.
func TestTheExampleRelaysATableOfItsOwn(t *testing.T) {
	t.Parallel()
	address, kafka := pgtest.URL(t), startBroker(t)
	conn := connect(t, address)
	execute(t, conn, exampleTable)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	http1 := free.Addr().String()
	free.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- carry(ctx, address, kafka.addrs()[0], http1) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("the example does not end")
		}
	})
	eventually(t, "the example is ready", func() error {
		response, err := http.Get("http://" + http1 + "/readyz")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("it answers %s", response.Status)
		}
		return nil
	})
	execute(t, conn, "INSERT INTO public.outbox (topic, aggregate_type, aggregate_id, event_type, payload) VALUES ('baskets', 'basket', 'b-1', 'BasketFilled', '{\"n\": 1}')")
	record := kafka.reader(t, "baskets").next(t)
	if string(record.Key) != "b-1" || string(record.Value) != `{"n": 1}` || headersOf(t, record)["event_type"] != "BasketFilled" {
		t.Errorf("the record is %s: %s %v", record.Key, record.Value, record.Headers)
	}
}
