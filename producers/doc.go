// Package producers holds no code: it is the map of the services that work enters by HTTP, and of what
// they share.
//
// The mechanism, for any service:
//
//   - [converge/producers/outbox] appends an event inside the caller's transaction: the only way to emit.
//   - [converge/producers/httpapi] has the HTTP manners: problem details, idempotency keys, conditional
//     requests, strict bodies.
//   - [converge/producers/openapi] describes what all of them answer, and shows it at /docs.
//
// The services, each with a PostgreSQL schema and a role of its own:
//
//   - [converge/producers/orders] takes orders, and follows each through its saga.
//   - [converge/producers/payments] charges, when a client posts a payment and when stock is reserved.
//   - [converge/producers/transfers] takes transfers of money, follows each through its saga, and opens accounts.
//   - [converge/producers/identity] owns user profiles; Billing and Analytics follow them.
//
// And what orders, payments, inventory and transfers agree on beforehand:
//
//   - [converge/producers/catalog] has the products with their prices, the ways to pay, where parcels go.
//
// The guarantee that they all give: state and event commit in one transaction, so a change is announced if
// and only if it happened. It fails to hold for a service that emits by other means than outbox; a test in
// internal/architecture keeps Kafka clients out of every one.
package producers
