package console

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"converge/internal/sagas"
)

func TestSagasOfAllKindsAreAddedUp(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	orders := sagas.New(registry, sagas.Kind{Saga: "order", Open: []string{"PENDING", "PAID", "STUCK"}})
	transfers := sagas.New(registry, sagas.Kind{Saga: "transfer", Open: []string{"PENDING", "STUCK"}})
	orders.Open([]sagas.Counted{{State: "PENDING", Number: 2}, {State: "STUCK", Number: 1}})
	transfers.Open([]sagas.Counted{{State: "PENDING", Number: 3}})
	sample, err := (&metricsSource{gatherer: registry}).sample(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]SagaState{{"PAID", 0}, {"PENDING", 5}, {"STUCK", 1}}, sample.sagas); diff != "" {
		t.Error(diff)
	}
}
