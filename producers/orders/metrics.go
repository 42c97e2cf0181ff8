package orders

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"converge/internal/sagas"
)

// steps names what an order waited for when its time was up.
var steps = map[string]string{string(Pending): "reservation", string(Reserved): "payment", string(Paid): "shipment", string(Compensating): "acknowledgement"}

func newMetrics(registerer prometheus.Registerer) *sagas.Metrics {
	kind := sagas.Kind{Saga: "order", Steps: steps}
	for _, state := range States() {
		if !state.Terminal() && state != Shipped {
			kind.Open = append(kind.Open, string(state))
		}
	}
	for _, edge := range Edges() {
		kind.Edges = append(kind.Edges, [2]string{string(edge.From), string(edge.To)})
	}
	for _, o := range []Outcome{Delivered, OutOfStock, Declined, Refused, TimedOut, WasCancelled} {
		kind.Outcomes = append(kind.Outcomes, string(o))
	}
	return sagas.New(registerer, kind)
}

// measure counts what a move of an order did.
func (s *Service) measure(o *order, from State, states []State, at time.Time) {
	for _, to := range states {
		s.metrics.Moved(string(from), string(to))
		from = to
		if to.Terminal() {
			s.metrics.Ended(string(o.saga.Outcome), at.Sub(o.createdAt))
		}
	}
}
