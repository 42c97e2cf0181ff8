// Package consumers holds no code: it is the map of the services that work enters by events, and of the
// runtime that feeds them.
//
// The runtime, for any consumer whose effects live in PostgreSQL:
//
//   - [converge/consumers/event] is what a handler sees: the event, the two shapes of a handler, and how it
//     says what went wrong (event.Permanent, event.RetryAfter). A service imports this one alone.
//   - [converge/consumers/group] runs a consumer group: one transaction per batch of a partition, fenced,
//     with order per key. Start here; its Example is a whole consumer.
//   - [converge/consumers/retry] has the ladder of retry topics, held keys, dead letters and their redrive.
//     Group drives it; what lists or redrives dead letters uses it directly.
//   - [converge/consumers/inbox] remembers which events were taken on. Group asks it for every event; use
//     inbox.Once in a consumer that does without group.
//   - [converge/consumers/rebuild] builds a read model anew beside the one in use, and puts it in its place.
//
// Choosing a handler: Batch when a set of events is one statement, several times faster; Each otherwise.
// Order per key is kept unless retry.Policy says Unordered, for effects that commute.
//
// The services, each with a PostgreSQL schema and a role of its own:
//
//   - [converge/consumers/inventory] reserves stock for orders, and releases what compensations undo.
//   - [converge/consumers/shipping] arranges what is paid, and cancels what is compensated.
//   - [converge/consumers/ledger] debits, credits and refunds what transfers ask for, in double entry.
//   - [converge/consumers/billing] and [converge/consumers/analytics] follow the profiles of users.
//   - [converge/consumers/orderviews] builds the read model of orders.
//   - [converge/consumers/readmodel] is what read models share: how far behind they are.
//
// The guarantee that they all give: the effect of an event happens once, after those of earlier events of
// its key. It fails to hold for effects outside the transaction; those need the event's ID as their
// idempotency key.
package consumers
