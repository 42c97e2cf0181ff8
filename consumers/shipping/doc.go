// Package shipping arranges a carrier when it hears that an order is paid, and calls it off when the
// order is.
//
// The guarantee: an order has at most one shipment, and after a cancellation none, now or later,
// whichever came first. It fails to hold for a carrier outside this database that does not take the
// order as its idempotency key: here the shipment is a row.
package shipping
