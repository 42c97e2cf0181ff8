package sagas

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestNineOfTenRecentSagasWereNoSlower(t *testing.T) {
	var r Recent
	if got := r.P90(); got != 0 {
		t.Errorf("before the first: %v", got)
	}
	for i := range 1000 { // the ring forgets all but the last 128
		r.add(time.Duration(i) * time.Second)
	}
	if got := r.P90(); got != (1000-128+115)*time.Second {
		t.Errorf("of 872 to 999 seconds: %v", got)
	}
}

// A state that is counted no more is empty, not as it was.
func TestGaugesForgetWhatIsNotCounted(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	m := New(registry, Kind{Saga: "order", Open: []string{"PENDING", "PAID"}})
	m.Open([]Counted{{"PENDING", 3, 7}, {"ELSEWHERE", 9, 9}})
	m.Open([]Counted{{"PAID", 2, 1.5}})
	err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP converge_saga_instances Open sagas by state. STUCK above 0 means that a participant does not answer: somebody must look.
# TYPE converge_saga_instances gauge
converge_saga_instances{saga="order",state="PAID"} 2
converge_saga_instances{saga="order",state="PENDING"} 0
`), "converge_saga_instances")
	if err != nil {
		t.Error(err)
	}
}

func TestADeadlineWhereNothingIsWaitedForIsNotCounted(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	m := New(registry, Kind{Saga: "order", Steps: map[string]string{"PAID": "shipment"}})
	m.TimedOut("PENDING")
	m.TimedOut("PAID")
	if n := testutil.ToFloat64(m.timeouts); n != 1 {
		t.Errorf("%v counted", n)
	}
}
