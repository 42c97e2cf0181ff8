package load

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// skus are products that every pipeline has plenty of.
var skus = []string{"BOOK-1", "MUG-1", "LAMP-1"}

type orderRequest struct {
	CustomerID    string      `json:"customer_id"`
	Items         []orderLine `json:"items"`
	PaymentMethod string      `json:"payment_method"`
}

type orderLine struct {
	SKU      string `json:"sku"`
	Quantity int    `json:"quantity"`
}

// placed is what POST /orders answered.
type placed struct {
	err    error
	status int
	ID     string `json:"id"`
	URL    string `json:"status_url"`
}

func (p placed) accepted() bool { return p.err == nil && p.status == http.StatusAccepted && p.ID != "" }

// sendOrder places the order and returns how to follow it, nil when it was not accepted. An order that
// is to be sent twice is sent twice at once, so that the two meet.
func (r *runner) sendOrder(ctx context.Context, a arrival) func(context.Context) {
	body, err := json.Marshal(orderRequest{
		CustomerID: fmt.Sprintf("load-%d", a.customer), Items: []orderLine{{skus[a.sku], 1}}, PaymentMethod: method(a.declined),
	})
	if err != nil {
		r.tally.failed("not sent")
		return nil
	}
	key := fmt.Sprintf("%s-%d", r.id, a.n)
	var again chan placed
	if a.twice {
		again = make(chan placed, 1)
		r.work.Go(func() { again <- r.place(ctx, key, body) })
	}
	first := r.place(ctx, key, body)
	replied := time.Since(a.due)
	if a.twice {
		first = r.compare(ctx, key, body, first, <-again)
	}
	if ctx.Err() != nil && !first.accepted() {
		return nil // the run was stopped: this says nothing of the server
	}
	if !first.accepted() {
		r.tally.failed(reason(first.status, first.err))
		return nil
	}
	r.tally.accepted(replied)
	return func(ctx context.Context) { r.followOrder(ctx, a, first) }
}

func method(declined bool) string {
	if declined {
		return "card-declined"
	}
	return "card-ok"
}

func reason(status int, err error) string {
	if err != nil {
		return "no reply"
	}
	return fmt.Sprint(status)
}

// compare checks that one key names one order, and returns the reply that counts. Of two that meet, one
// may be told that the other is in flight (409): then the key is sent once more.
func (r *runner) compare(ctx context.Context, key string, body []byte, first, second placed) placed {
	r.tally.duplicate()
	if !first.accepted() {
		first, second = second, first
	}
	if first.accepted() && !second.accepted() {
		second = r.place(ctx, key, body)
	}
	if first.accepted() && second.accepted() && first.ID != second.ID {
		r.tally.broke(fmt.Sprintf("one idempotency key made two orders: %s and %s", first.ID, second.ID))
	}
	return first
}

func (r *runner) place(ctx context.Context, key string, body []byte) (p placed) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.cfg.Target+"/orders", bytes.NewReader(body))
	if err != nil {
		return placed{err: err}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", key)
	status, _, reply, err := r.do(req)
	if err == nil && status == http.StatusAccepted {
		err = json.Unmarshal(reply, &p)
	}
	p.status, p.err = status, err
	return p
}

// followOrder looks at the order's status until it is terminal.
func (r *runner) followOrder(ctx context.Context, a arrival, p placed) {
	url := r.cfg.Target + "/orders/" + p.ID + "/status"
	var last struct{ State, Reason string }
	ended := r.poll(ctx, a.due, func(ctx context.Context) bool {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return false
		}
		status, _, reply, err := r.do(req)
		if err != nil {
			return false
		}
		if status == http.StatusNotFound {
			r.tally.broke(fmt.Sprintf("order %s was accepted, and its status is 404", p.ID))
			last.State = "LOST"
			return true
		}
		if status != http.StatusOK || json.Unmarshal(reply, &last) != nil {
			return false
		}
		return last.State == "COMPLETED" || last.State == "FAILED"
	})
	if !ended {
		r.tally.unfinished("order " + p.ID + " " + last.State)
		return
	}
	if a.declined && last.State == "COMPLETED" {
		r.tally.broke(fmt.Sprintf("order %s was completed though its payment is declined", p.ID))
	}
	final := last.State
	if last.Reason != "" {
		final += " " + last.Reason
	}
	r.tally.finished(final, time.Since(a.due))
}
