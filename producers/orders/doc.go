// Package orders takes orders and follows each one's saga: it hears what Inventory, Payments and Shipping
// did, tells where the order stands, and ends it when the customer or the clock says so. It commands
// nobody.
//
// The guarantee: every order ends COMPLETED, with stock, money and shipment held for it, or FAILED, with
// each of them let go for good, never both; and once it has ended it never moves again. It fails to hold
// while a participant is away: the order then stays COMPENSATING, later STUCK, until it is heard again.
//
//	                StockReserved      PaymentAuthorized     ShipmentArranged
//	POST ─▶ PENDING ─────────▶ RESERVED ─────────────▶ PAID ────────────────▶ SHIPPED ─▶ COMPLETED
//	          │ │                 │ PaymentDeclined      │ ShipmentFailed       (pivot)
//	          │ │ cancel,         │ cancel, deadline     │ cancel, deadline
//	          │ │ deadline        ▼                      │
//	          │ └──────────▶ COMPENSATING ◀──────────────┘
//	          │                │       │ acknowledgements overdue
//	          │ StockRejected  │       └─────────▶ STUCK
//	          │                │ all acknowledged    │
//	          └──────────────▶ FAILED ◀──────────────┘
//
// Topics are independent, so any event may come before the one that led to it. rules.go therefore keeps
// a set of facts that only grows plus one decision that is made once, and derives the state from them:
// the order of arrival cannot matter. The table of all cells is docs/saga.md, written by a test.
//
// The clock is the database's: deadlines are compared with now() where they were written.
package orders
