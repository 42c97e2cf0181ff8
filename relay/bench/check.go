package main

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // it makes up names, as the server's md5 does
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// errResult means that a contender lost, changed, repeated or reordered rows: its speed is no result.
var errResult = errors.New("what arrived is not what was written")

// idOf returns a row's id, as the outbox's procedure makes it.
func idOf(n int) string {
	sum := md5.Sum([]byte(strconv.Itoa(n))) //nolint:gosec // see above
	var text [44]byte
	digits := hex.AppendEncode(text[:0], sum[:10])
	digits = fmt.Appendf(digits, "%012x", n)
	id := make([]byte, 0, 36)
	for i, from := range []int{0, 8, 12, 16, 20} {
		if i > 0 {
			id = append(id, '-')
		}
		id = append(id, digits[from:[]int{8, 12, 16, 20, 32}[i]]...)
	}
	return string(id)
}

// checker is told of every record of a pass. It shares nothing with those whom it judges.
type checker struct {
	rows  int
	seen  []bool    // by row
	last  [keys]int // of each key, the row that came last
	count int
}

func newChecker(rows int) *checker { return &checker{rows: rows, seen: make([]bool, rows+1)} }

// take returns the number of the record's row.
func (c *checker) take(r *kgo.Record) (int, error) {
	var id string
	for _, h := range r.Headers {
		if h.Key == "event_id" || h.Key == "id" {
			id = string(h.Value)
		}
	}
	n := rowOf(id)
	if n < 1 || n > c.rows {
		return 0, fmt.Errorf("%w: partition %d, offset %d: no row has the id %q", errResult, r.Partition, r.Offset, id)
	}
	key := n % keys
	switch {
	case c.seen[n]:
		return 0, fmt.Errorf("%w: row %d came twice", errResult, n)
	case string(r.Key) != keyOf(n):
		return 0, fmt.Errorf("%w: row %d came under the key %q", errResult, n, r.Key)
	case c.last[key] > n:
		return 0, fmt.Errorf("%w: row %d came before row %d of its key", errResult, c.last[key], n)
	case !bytes.HasPrefix(r.Value, []byte(`{"order_id":"`+id+`","customer_id":"customer-`+strconv.Itoa(key)+`",`)) || !bytes.HasSuffix(r.Value, []byte(`"country":"NL"}}`)):
		return 0, fmt.Errorf("%w: row %d came with the payload %q", errResult, n, r.Value)
	}
	c.seen[n], c.last[key] = true, n
	c.count++
	return n, nil
}

func (c *checker) complete() bool { return c.count == c.rows }

// checkTopic reads what was added to the topic between two positions, and holds it against what was written.
func checkTopic(ctx context.Context, brokers []string, from, to offsets, rows int) error {
	if n := to.sum() - from.sum(); n != int64(rows) {
		return fmt.Errorf("%w: %d records for %d rows", errResult, n, rows)
	}
	client, err := consumer(brokers, from)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c := newChecker(rows)
	for !c.complete() {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return fmt.Errorf("reading the topic after %d of %d records: %w", c.count, rows, err)
		}
		var wrong error
		fetches.EachRecord(func(r *kgo.Record) {
			if wrong == nil {
				_, wrong = c.take(r)
			}
		})
		if wrong != nil {
			return wrong
		}
	}
	return nil
}

// consumer returns a client that reads the topic on from the given positions.
func consumer(brokers []string, from offsets) (*kgo.Client, error) {
	at := make(map[int32]kgo.Offset, len(from))
	for partition, offset := range from {
		at[partition] = kgo.NewOffset().At(offset)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.DisableClientMetrics(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topicName: at}),
		kgo.FetchMaxBytes(16<<20), kgo.FetchMaxPartitionBytes(8<<20), kgo.FetchMaxWait(time.Second))
	if err != nil {
		return nil, fmt.Errorf("making a consumer: %w", err)
	}
	return client, nil
}
