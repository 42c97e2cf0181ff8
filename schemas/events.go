package schemas

// The Go side of the schemas in *.avsc. Each struct is what one event carries; the field tags serve
// Avro and JSON alike. Times are in the event's headers, not in its data.

// Line is one product of an order.
type Line struct {
	SKU      string `avro:"sku" json:"sku"`
	Quantity int    `avro:"quantity" json:"quantity"`
}

// OrderPlaced: a customer asked for an order; nothing is reserved yet.
type OrderPlaced struct {
	OrderID       string `avro:"order_id" json:"order_id"`
	CustomerID    string `avro:"customer_id" json:"customer_id"`
	Items         []Line `avro:"items" json:"items"`
	TotalAmount   int64  `avro:"total_amount" json:"total_amount"` // minor units
	Currency      string `avro:"currency" json:"currency"`         // ISO 4217
	PaymentMethod string `avro:"payment_method" json:"payment_method"`
	ShipCountry   string `avro:"ship_country" json:"ship_country"` // ISO 3166-1 alpha-2
}

// OrderCancelled: the customer took the order back before the pivot.
type OrderCancelled struct {
	OrderID string `avro:"order_id" json:"order_id"`
}

// OrderTimedOut: the order's deadline passed before the pivot.
type OrderTimedOut struct {
	OrderID string `avro:"order_id" json:"order_id"`
}

// OrderStatusChanged: the order moved. Its aggregate version orders the changes.
type OrderStatusChanged struct {
	OrderID     string `avro:"order_id" json:"order_id"`
	CustomerID  string `avro:"customer_id" json:"customer_id"`
	State       string `avro:"state" json:"state"`               // PENDING, IN_PROGRESS, COMPLETED, FAILED
	DetailState string `avro:"detail_state" json:"detail_state"` // the saga's own state
	Reason      string `avro:"reason" json:"reason"`             // "" unless it failed or is failing
	TotalAmount int64  `avro:"total_amount" json:"total_amount"`
	Currency    string `avro:"currency" json:"currency"`
}

// StockReserved: every line of the order is set aside. It carries on what the payment needs.
type StockReserved struct {
	OrderID       string `avro:"order_id" json:"order_id"`
	CustomerID    string `avro:"customer_id" json:"customer_id"`
	TotalAmount   int64  `avro:"total_amount" json:"total_amount"`
	Currency      string `avro:"currency" json:"currency"`
	PaymentMethod string `avro:"payment_method" json:"payment_method"`
	ShipCountry   string `avro:"ship_country" json:"ship_country"`
}

// StockRejected: not every line could be set aside; none is.
type StockRejected struct {
	OrderID string `avro:"order_id" json:"order_id"`
	Reason  string `avro:"reason" json:"reason"`
}

// StockReleased acknowledges a compensation: nothing is set aside for the order, and nothing will be.
type StockReleased struct {
	OrderID string `avro:"order_id" json:"order_id"`
}

// PaymentAuthorized: the customer's money is set aside. It carries on what the shipment needs.
type PaymentAuthorized struct {
	OrderID     string `avro:"order_id" json:"order_id"`
	PaymentID   string `avro:"payment_id" json:"payment_id"`
	Amount      int64  `avro:"amount" json:"amount"`
	Currency    string `avro:"currency" json:"currency"`
	ShipCountry string `avro:"ship_country" json:"ship_country"`
}

// PaymentDeclined: the customer's money could not be had.
type PaymentDeclined struct {
	OrderID string `avro:"order_id" json:"order_id"`
	Reason  string `avro:"reason" json:"reason"`
}

// PaymentVoided acknowledges a compensation: no money is held for the order, and none will be.
type PaymentVoided struct {
	OrderID string `avro:"order_id" json:"order_id"`
}

// ShipmentArranged: a carrier took the order on. This is the saga's pivot.
type ShipmentArranged struct {
	OrderID    string `avro:"order_id" json:"order_id"`
	ShipmentID string `avro:"shipment_id" json:"shipment_id"`
}

// ShipmentFailed: no carrier serves the address.
type ShipmentFailed struct {
	OrderID string `avro:"order_id" json:"order_id"`
	Reason  string `avro:"reason" json:"reason"`
}

// ShipmentCancelled acknowledges a compensation: nothing is shipped for the order, and nothing will be.
type ShipmentCancelled struct {
	OrderID string `avro:"order_id" json:"order_id"`
}

// ProfileUpdated: a user's profile has this content as of this version. It is a contract shared with
// the mini challenge.
type ProfileUpdated struct {
	UserID         string `avro:"user_id" json:"user_id"`
	Version        int64  `avro:"version" json:"version"`
	Email          string `avro:"email" json:"email"`
	DisplayName    string `avro:"display_name" json:"display_name"`
	Address        string `avro:"address" json:"address"`
	MarketingOptIn bool   `avro:"marketing_opt_in" json:"marketing_opt_in"`
}

// AccountOpened: there is a new account.
type AccountOpened struct {
	AccountID      string `avro:"account_id" json:"account_id"`
	Currency       string `avro:"currency" json:"currency"`
	OpeningBalance int64  `avro:"opening_balance" json:"opening_balance"` // minor units
}

// OpenAccount is an account with what it was opened with.
type OpenAccount struct {
	AccountID      string `avro:"account_id" json:"account_id"`
	OpeningBalance int64  `avro:"opening_balance" json:"opening_balance"` // minor units
}

// TransferRequested: a customer asked to move money; nothing has moved yet.
type TransferRequested struct {
	TransferID  string        `avro:"transfer_id" json:"transfer_id"`
	FromAccount string        `avro:"from_account" json:"from_account"`
	ToAccount   string        `avro:"to_account" json:"to_account"`
	Amount      int64         `avro:"amount" json:"amount"` // minor units
	Currency    string        `avro:"currency" json:"currency"`
	Accounts    []OpenAccount `avro:"accounts" json:"accounts"` // those of the two that were open by then
}

// TransferConfirmed: the payer's money came in time. This is the saga's pivot.
type TransferConfirmed struct {
	TransferID string `avro:"transfer_id" json:"transfer_id"`
}

// TransferTimedOut: the transfer's deadline passed before the pivot.
type TransferTimedOut struct {
	TransferID string `avro:"transfer_id" json:"transfer_id"`
}

// TransferDebited: the money left the payer's account and is held for the transfer.
type TransferDebited struct {
	TransferID string `avro:"transfer_id" json:"transfer_id"`
	AccountID  string `avro:"account_id" json:"account_id"`
	Balance    int64  `avro:"balance" json:"balance"`
	Version    int64  `avro:"version" json:"version"` // orders what is said of the balance
}

// TransferCompleted: the money is on the payee's account, for good.
type TransferCompleted struct {
	TransferID string `avro:"transfer_id" json:"transfer_id"`
	AccountID  string `avro:"account_id" json:"account_id"`
	Balance    int64  `avro:"balance" json:"balance"`
	Version    int64  `avro:"version" json:"version"` // orders what is said of the balance
}

// TransferFailed: no money is held for the transfer, and none will be.
type TransferFailed struct {
	TransferID string `avro:"transfer_id" json:"transfer_id"`
	Reason     string `avro:"reason" json:"reason"`
	AccountID  string `avro:"account_id" json:"account_id"` // who got the money back; "" when none had left
	Balance    int64  `avro:"balance" json:"balance"`
	Version    int64  `avro:"version" json:"version"` // orders what is said of the balance
}
