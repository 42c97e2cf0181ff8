package shipping

import "converge/producers/catalog"

// State is what Shipping has done for one order.
type State string

// The states. CANCELLED is also the tombstone of an order whose compensation came first.
const (
	Untouched State = "UNTOUCHED"
	Arranged  State = "ARRANGED"
	Refused   State = "REFUSED"
	Cancelled State = "CANCELLED"
)

// What Shipping says; "" is nothing.
const (
	SaidArranged  = "ShipmentArranged"
	SaidFailed    = "ShipmentFailed"
	SaidCancelled = "ShipmentCancelled"
)

// Arrange asks a carrier to take the order to a country (ISO 3166-1 alpha-2). Of an order that was dealt
// with already, and of one whose compensation came first, there is nothing to say: the compensation was
// acknowledged when it came.
func Arrange(s State, country string) (next State, say string) {
	if s != Untouched {
		return s, ""
	}
	if country == catalog.NotServed {
		return Refused, SaidFailed
	}
	return Arranged, SaidArranged
}

// CancelShipment stops the shipment, if there is one, and sees to it that there will be none. It is
// acknowledged once per order, however many compensations there are and whatever came first.
func CancelShipment(s State) (next State, say string) {
	if s == Cancelled {
		return s, ""
	}
	return Cancelled, SaidCancelled
}

// On says what Shipping makes of an event: the order is paid, or it was called off. An event of any
// other type changes nothing.
func On(s State, eventType, country string) (next State, say string) {
	switch eventType {
	case "PaymentAuthorized":
		return Arrange(s, country)
	case "OrderCancelled", "OrderTimedOut":
		return CancelShipment(s)
	default:
		return s, ""
	}
}
