package payments

import (
	"errors"

	"converge/producers/catalog"
)

// State is what Payments has done for one order of a saga.
type State string

// The states. VOIDED is also the tombstone of an order whose compensation came first.
const (
	Untouched  State = "UNTOUCHED"
	Waiting    State = "PENDING" // a slow card: the answer comes later
	Authorized State = "AUTHORIZED"
	Declined   State = "DECLINED"
	Voided     State = "VOIDED"
)

// Final reports whether no input leaves the state.
func (s State) Final() bool { return s == Voided }

// What Payments says; "" is nothing.
const (
	SaidAuthorized = "PaymentAuthorized"
	SaidDeclined   = "PaymentDeclined"
	SaidVoided     = "PaymentVoided"
)

// ErrProvider is a passing failure of the payment provider: the same attempt may succeed later.
var ErrProvider = errors.New("payment provider is not available")

// errorsOfCard is how often a card-error-2 fails before it succeeds.
const errorsOfCard = 2

// Charge asks for the order's money. attempt counts earlier tries. Of an order that was dealt with
// already, and of one whose compensation came first, there is nothing to say: the compensation was
// acknowledged when it came. The error is [ErrProvider] or nil; with an error nothing has changed.
func Charge(s State, method string, attempt int) (next State, say string, err error) {
	if s != Untouched {
		return s, "", nil
	}
	switch method {
	case catalog.CardOK:
		return Authorized, SaidAuthorized, nil
	case catalog.CardError2:
		if attempt < errorsOfCard {
			return s, "", ErrProvider
		}
		return Authorized, SaidAuthorized, nil
	case catalog.CardSlow:
		return Waiting, "", nil
	default:
		return Declined, SaidDeclined, nil
	}
}

// Answer is the late word of a slow card's provider. It counts only while somebody waits for it.
func Answer(s State) (next State, say string) {
	if s != Waiting {
		return s, ""
	}
	return Authorized, SaidAuthorized
}

// Void lets go of the order's money, if any is held, and sees to it that none will be. It is
// acknowledged once per order, however many compensations there are and whatever came first.
func Void(s State) (next State, say string) {
	if s == Voided {
		return s, ""
	}
	return Voided, SaidVoided
}

// On says what Payments makes of an event: stock is reserved, or one of the reasons to undo the payment
// came. An event of any other type changes nothing.
func On(s State, eventType, method string, attempt int) (next State, say string, err error) {
	switch eventType {
	case "StockReserved":
		return Charge(s, method, attempt)
	case "ShipmentFailed", "OrderCancelled", "OrderTimedOut":
		next, say = Void(s)
		return next, say, nil
	default:
		return s, "", nil
	}
}
