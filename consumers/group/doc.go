// Package group is one consumer group whose effects live in PostgreSQL: it feeds the events of topics to
// a handler, a batch of one partition per transaction.
//
// One transaction holds the partition's new offset, the inbox rows of the batch, the handlers' effects,
// what they emit, and what became of the events that failed:
//
//	fence ─▶ inbox ─▶ held keys ─▶ handlers ─▶ retries, dead letters ─▶ COMMIT ─▶ Kafka commit, a hint
//
// The fence is an UPDATE of the stored offset that matches only the expected one. It comes first, so that
// its row lock makes a second owner of the partition (a zombie that Kafka has given up on) wait, match
// nothing and roll back.
//
// The guarantee: the effect of an event happens once, after those of all earlier events of its key,
// whatever crashes and however often it is delivered. A bad event does not hold up other keys; an outage
// of the database pauses the group and counts against no event, and so does a bad deploy, see [Guard]. It
// fails to hold for effects outside the transaction, which may happen again; and for keys that move to
// another partition, whose order nobody keeps. An event that is older than the inbox remembers is a dead
// letter, for a person to decide.
package group
