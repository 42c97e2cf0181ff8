// Package httpapi gives every service the same HTTP manners: problem details for whatever goes wrong,
// idempotency keys, conditional requests, bodies that are read strictly, and resources that are followed to
// their end, by asking, by waiting or by a stream.
//
// The guarantee: a request with an Idempotency-Key has its effect once, however often it is sent, whoever
// is killed in between; key, effect and answer commit in one transaction, so that a key without an effect
// or an effect without an answer cannot be. Requests that come together may share it, and none fails for
// another's fault. An error is a problem document (RFC 9457) that never repeats
// what was sent. A stream has every version of its resource once, in order, whoever made it and wherever the
// client left off; who waits learns of a change within 20 ms and a query. It fails to hold for effects outside the
// database, and for handlers that write to the database by other means than the transaction they are given.
package httpapi
