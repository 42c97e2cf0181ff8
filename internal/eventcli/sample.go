package eventcli

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"converge/schemas"
)

// sample returns a plausible value of the event type. The key is the id of its aggregate.
func sample(eventType, key string) any {
	const currency, country = "EUR", "DE"
	customer := fmt.Sprintf("customer-%d", 1+rand.IntN(100))
	amount := 100 * (1 + rand.Int64N(200))
	switch eventType {
	case "OrderPlaced":
		return &schemas.OrderPlaced{OrderID: key, CustomerID: customer, TotalAmount: amount, Currency: currency,
			Items: []schemas.Line{{SKU: "BOOK-1", Quantity: 1 + rand.IntN(3)}}, PaymentMethod: "card-ok", ShipCountry: country}
	case "OrderCancelled":
		return &schemas.OrderCancelled{OrderID: key}
	case "OrderTimedOut":
		return &schemas.OrderTimedOut{OrderID: key}
	case "OrderStatusChanged":
		return &schemas.OrderStatusChanged{OrderID: key, CustomerID: customer, State: "IN_PROGRESS", DetailState: "RESERVED",
			TotalAmount: amount, Currency: currency}
	case "StockReserved":
		return &schemas.StockReserved{OrderID: key, CustomerID: customer, TotalAmount: amount, Currency: currency,
			PaymentMethod: "card-ok", ShipCountry: country}
	case "StockRejected":
		return &schemas.StockRejected{OrderID: key, Reason: "insufficient_inventory"}
	case "StockReleased":
		return &schemas.StockReleased{OrderID: key}
	case "PaymentAuthorized":
		return &schemas.PaymentAuthorized{OrderID: key, PaymentID: newID(), Amount: amount, Currency: currency, ShipCountry: country}
	case "PaymentDeclined":
		return &schemas.PaymentDeclined{OrderID: key, Reason: "payment_declined"}
	case "PaymentVoided":
		return &schemas.PaymentVoided{OrderID: key}
	case "ShipmentArranged":
		return &schemas.ShipmentArranged{OrderID: key, ShipmentID: newID()}
	case "ShipmentFailed":
		return &schemas.ShipmentFailed{OrderID: key, Reason: "shipment_refused"}
	case "ShipmentCancelled":
		return &schemas.ShipmentCancelled{OrderID: key}
	case "AccountOpened":
		return &schemas.AccountOpened{AccountID: key, Currency: currency, OpeningBalance: amount}
	case "TransferRequested":
		return &schemas.TransferRequested{TransferID: key, FromAccount: "account-1", ToAccount: "account-2", Amount: amount, Currency: currency,
			Accounts: []schemas.OpenAccount{{AccountID: "account-1", OpeningBalance: 2 * amount}, {AccountID: "account-2"}}}
	case "TransferConfirmed":
		return &schemas.TransferConfirmed{TransferID: key}
	case "TransferTimedOut":
		return &schemas.TransferTimedOut{TransferID: key}
	case "TransferDebited":
		return &schemas.TransferDebited{TransferID: key, AccountID: "account-1", Balance: amount, Version: 2}
	case "TransferCompleted":
		return &schemas.TransferCompleted{TransferID: key, AccountID: "account-2", Balance: amount, Version: 2}
	case "TransferFailed":
		return &schemas.TransferFailed{TransferID: key, Reason: "insufficient_funds"}
	case "ProfileUpdated":
		return &schemas.ProfileUpdated{UserID: key, Version: 1, Email: key + "@example.org", DisplayName: "Ada Lovelace",
			Address: "12 St James's Square, London"}
	}
	return nil
}

func newID() string { return uuid.Must(uuid.NewV7()).String() }

// override sets fields of data from key=value arguments and returns the new value, checked against the
// schema. A value is taken as text where the field is a string, as JSON otherwise.
func override(eventType string, data any, arguments []string) (any, error) {
	text, err := json.Marshal(data)
	if err != nil {
		return nil, fmt.Errorf("writing a sample: %w", err)
	}
	fields := map[string]jsontext.Value{}
	if err := json.Unmarshal(text, &fields); err != nil {
		return nil, fmt.Errorf("reading a sample: %w", err)
	}
	for _, argument := range arguments {
		name, value, ok := strings.Cut(argument, "=")
		if !ok {
			return nil, usagef("%q is not FIELD=VALUE", argument)
		}
		old, ok := fields[name]
		if !ok {
			return nil, usagef("%s has no field %q; it has %s", eventType, name, strings.Join(fieldNames(fields), ", "))
		}
		fields[name] = jsontext.Value(value)
		if old.Kind() == '"' {
			if fields[name], err = json.Marshal(value); err != nil {
				return nil, usagef("%s: %w", argument, err)
			}
		} else if !fields[name].IsValid() {
			return nil, usagef("%s: %s is not JSON", name, value)
		}
	}
	if text, err = json.Marshal(fields); err != nil {
		return nil, fmt.Errorf("writing a sample: %w", err)
	}
	return parse(eventType, text)
}

func fieldNames(fields map[string]jsontext.Value) []string {
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
