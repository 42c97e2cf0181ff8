package schemas

import (
	"maps"
	"slices"
	"time"
)

// Route says who emits an event type, on which topic, and who reads it. Emitters and readers are
// services; a reader's name is also its consumer group.
type Route struct {
	Type    string
	Topic   string
	Emitter string
	Readers []string
}

// Partitions is how many partitions the topics have when converge creates them.
const Partitions = 4

// TopicRetention is how long the topics keep a record when converge creates them.
const TopicRetention = 7 * 24 * time.Hour

// Routes is the choreography: the only place that says who reacts to what. Topics, diagrams and
// subscriptions follow from it.
func Routes() []Route {
	return []Route{
		{"OrderPlaced", "orders", "orders", []string{"inventory", "orderviews"}},
		{"OrderCancelled", "orders", "orders", []string{"inventory", "payments", "shipping"}},
		{"OrderTimedOut", "orders", "orders", []string{"inventory", "payments", "shipping"}},
		{"OrderStatusChanged", "orders", "orders", []string{"orderviews"}},

		{"StockReserved", "inventory", "inventory", []string{"payments", "orders"}},
		{"StockRejected", "inventory", "inventory", []string{"orders"}},
		{"StockReleased", "inventory", "inventory", []string{"orders"}},

		{"PaymentAuthorized", "payments", "payments", []string{"shipping", "orders"}},
		{"PaymentDeclined", "payments", "payments", []string{"inventory", "orders"}},
		{"PaymentVoided", "payments", "payments", []string{"orders"}},

		{"ShipmentArranged", "shipping", "shipping", []string{"orders"}},
		{"ShipmentFailed", "shipping", "shipping", []string{"inventory", "payments", "orders"}},
		{"ShipmentCancelled", "shipping", "shipping", []string{"orders"}},

		{"AccountOpened", "transfers", "transfers", []string{"ledger"}},
		{"TransferRequested", "transfers", "transfers", []string{"ledger"}},
		{"TransferConfirmed", "transfers", "transfers", []string{"ledger"}},
		{"TransferTimedOut", "transfers", "transfers", []string{"ledger"}},

		{"TransferDebited", "ledger", "ledger", []string{"transfers"}},
		{"TransferCompleted", "ledger", "ledger", []string{"transfers"}},
		{"TransferFailed", "ledger", "ledger", []string{"transfers"}},

		{"ProfileUpdated", "identity", "identity", []string{"billing", "analytics"}},
	}
}

// ReadModels maps a consumer group to the read model that it builds.
func ReadModels() map[string]string {
	return map[string]string{"orderviews": "order_views", "billing": "billing_accounts", "analytics": "analytics_profiles"}
}

// Topics returns the names of the event topics, sorted.
func Topics() []string {
	seen := map[string]bool{}
	for _, r := range Routes() {
		seen[r.Topic] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// Readers returns the names of the services that read events, sorted.
func Readers() []string {
	seen := map[string]bool{}
	for _, r := range Routes() {
		for _, reader := range r.Readers {
			seen[reader] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// ReadBy returns the topics that the service reads and the event types that it wants, both sorted.
func ReadBy(service string) (topics, types []string) {
	seen := map[string]bool{}
	for _, r := range Routes() {
		if slices.Contains(r.Readers, service) {
			seen[r.Topic] = true
			types = append(types, r.Type)
		}
	}
	slices.Sort(types)
	return slices.Sorted(maps.Keys(seen)), types
}

// TopicOf returns the topic of an event type, "" when the type is unknown.
func TopicOf(eventType string) string {
	for _, r := range Routes() {
		if r.Type == eventType {
			return r.Topic
		}
	}
	return ""
}
