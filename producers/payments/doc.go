// Package payments holds customers' money: for sagas when it hears that stock is reserved, and for
// whoever posts a payment.
//
// The guarantee: an order of a saga is charged at most once, and after a compensation no money is held
// for it and none ever will be, whichever came first; a posted payment is made once per idempotency key.
// It fails to hold for a real provider that does not take the order as its own idempotency key: here the
// charge is a row.
package payments
