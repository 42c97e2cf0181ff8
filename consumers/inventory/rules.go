package inventory

// State is what Inventory has done for one order.
type State string

// The states. RELEASED is also the tombstone of an order whose compensation came first.
const (
	Untouched State = "UNTOUCHED"
	Reserved  State = "RESERVED"
	Rejected  State = "REJECTED"
	Released  State = "RELEASED"
)

// Line is a number of pieces of one product.
type Line struct {
	SKU      string `json:"sku"`
	Quantity int64  `json:"quantity"`
}

// Level is how much of a product there is.
type Level struct {
	Available int64 // can be reserved
	Reserved  int64 // belongs to orders, those that have completed included
}

// Shelf is the levels by SKU. Invariant: no level is negative, and for each SKU the sum of available and
// reserved is changed by nothing here.
type Shelf map[string]Level

// What Inventory says; "" is nothing.
const (
	SaidReserved = "StockReserved"
	SaidRejected = "StockRejected"
	SaidReleased = "StockReleased"
)

// Place reserves all lines of an order or none, and tells what to say of it. Of an order that was dealt
// with already, and of one whose compensation came first, there is nothing to say: the compensation was
// acknowledged when it came.
func Place(s State, lines []Line, shelf Shelf) (next State, say string) {
	if s != Untouched {
		return s, ""
	}
	wanted := map[string]int64{}
	for _, line := range lines {
		wanted[line.SKU] += line.Quantity
	}
	for sku, quantity := range wanted {
		if shelf[sku].Available < quantity {
			return Rejected, SaidRejected
		}
	}
	for sku, quantity := range wanted {
		level := shelf[sku]
		level.Available -= quantity
		level.Reserved += quantity
		shelf[sku] = level
	}
	return Reserved, SaidReserved
}

// Release puts back what is reserved for an order, if anything is, and sees to it that nothing will be.
// It is acknowledged once per order, however many compensations there are and whatever came first.
func Release(s State, lines []Line, shelf Shelf) (next State, say string) {
	if s == Released {
		return s, ""
	}
	if s == Reserved {
		for _, line := range lines {
			level := shelf[line.SKU]
			level.Available += line.Quantity
			level.Reserved -= line.Quantity
			shelf[line.SKU] = level
		}
	}
	return Released, SaidReleased
}

// On says what Inventory makes of an event: an order is placed, or one of the reasons to undo it came.
// An event of any other type changes nothing.
func On(s State, eventType string, lines []Line, shelf Shelf) (next State, say string) {
	switch eventType {
	case "OrderPlaced":
		return Place(s, lines, shelf)
	case "PaymentDeclined", "ShipmentFailed", "OrderCancelled", "OrderTimedOut":
		return Release(s, lines, shelf)
	default:
		return s, ""
	}
}
