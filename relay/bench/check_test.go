package main

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// recordOf makes a row's record as a contender does.
func recordOf(n int, idHeader string) *kgo.Record {
	value := fmt.Sprintf(`{"order_id":"%s","customer_id":"customer-%d","placed_at":1764000000123456,"ship_to":{"country":"NL"}}`, idOf(n), n%keys)
	return &kgo.Record{Key: []byte(keyOf(n)), Value: []byte(value), Partition: int32(n % partitions),
		Headers: []kgo.RecordHeader{{Key: idHeader, Value: []byte(idOf(n))}}}
}

func TestAnIdIsOneRowsAndNoOthers(t *testing.T) {
	for _, n := range []int{1, 10, 999_999, 1 << 40} {
		if got := rowOf(idOf(n)); got != n {
			t.Errorf("row %d has the id %s, which is said to be row %d's", n, idOf(n), got)
		}
	}
	forged := []byte(idOf(7))
	forged[35]++
	for _, id := range []string{"", "7", string(forged), "zzzzzzzz" + idOf(7)[8:]} {
		if got := rowOf(id); got != 0 {
			t.Errorf("the id %q is said to be row %d's", id, got)
		}
	}
}

func TestTheCheckerAcceptsWhatIsWhole(t *testing.T) {
	c := newChecker(2 * keys)
	for n := 1; n <= 2*keys; n++ {
		if got, err := c.take(recordOf(n, []string{"id", "event_id"}[n%2])); err != nil || got != n {
			t.Fatalf("row %d was taken for row %d: %v", n, got, err)
		}
	}
	if !c.complete() {
		t.Error("all rows came, and it is not complete")
	}
	if got := placedAt(recordOf(5, "id").Value); got != 1764000000123456 {
		t.Errorf("row 5 was placed at %d", got)
	}
}

// What a contender may do wrong must be found, or its speed proves nothing.
func TestTheCheckerFindsPlantedFaults(t *testing.T) {
	rows := func() (records []*kgo.Record) {
		for n := 1; n <= 3*keys; n++ {
			records = append(records, recordOf(n, "id"))
		}
		return records
	}
	for name, plant := range map[string]func(records []*kgo.Record) []*kgo.Record{
		"a row is lost":     func(r []*kgo.Record) []*kgo.Record { return slices.Delete(r, 41, 42) },
		"a row comes twice": func(r []*kgo.Record) []*kgo.Record { return append(r, r[41]) },
		"a key's rows change places": func(r []*kgo.Record) []*kgo.Record {
			r[5], r[5+keys] = r[5+keys], r[5]
			return r
		},
		"a row has another's payload": func(r []*kgo.Record) []*kgo.Record { r[7].Value = r[8].Value; return r },
		"a payload is cut short":      func(r []*kgo.Record) []*kgo.Record { r[7].Value = r[7].Value[:90]; return r },
		"a row has another's key":     func(r []*kgo.Record) []*kgo.Record { r[7].Key = r[8].Key; return r },
		"a row has no id":             func(r []*kgo.Record) []*kgo.Record { r[7].Headers = nil; return r },
		"a row was never written": func(r []*kgo.Record) []*kgo.Record {
			return append(r, recordOf(3*keys+1, "id"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newChecker(3 * keys)
			var err error
			for _, r := range plant(rows()) {
				if _, err = c.take(r); err != nil {
					break
				}
			}
			if err == nil && c.complete() {
				t.Error("the checker found nothing wrong")
			}
			if err != nil && !errors.Is(err, errResult) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

func TestSpreads(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   Spread
	}{
		{nil, Spread{}},
		{[]float64{3}, Spread{3, 3, 3}},
		{[]float64{5, 1, 2}, Spread{2, 1, 5}},
		{[]float64{5, 1, 2, 4}, Spread{3, 1, 5}},
	} {
		if got := spreadOf(c.values); got != c.want {
			t.Errorf("spreadOf(%v) = %v, want %v", c.values, got, c.want)
		}
	}
}

// A ratio above 1 says that we are better, whatever is compared.
func TestRatiosAreFormedWithinARound(t *testing.T) {
	m := func(round int, contender string, seconds, p99 float64) Measurement {
		return Measurement{Case: "c", Contender: contender, Round: round, Rows: 100, Seconds: seconds, FirstToLast: seconds, P99: p99}
	}
	r := Report{Measurements: []Measurement{m(1, "converge", 1, 5), m(1, "Debezium", 4, 20),
		m(2, "converge", 1, 5), // in which Debezium failed
		m(3, "converge", 10, 5), m(3, "Debezium", 80, 5)}}
	r.compare([]trial{{Name: "c", perTransaction: 100}})
	want := []Ratio{
		{Case: "c", To: "Debezium", Of: "rows/s, first to last", Value: Spread{6, 4, 8}, Aim: 4},
		{Case: "c", To: "Debezium", Of: "p99", Value: Spread{2.5, 1, 4}},
	}
	if !slices.Equal(r.Ratios, want) {
		t.Errorf("got %+v, want %+v", r.Ratios, want)
	}
}
