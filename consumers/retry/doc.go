// Package retry keeps what a consumer could not apply: events that wait for another try, in the order of
// their key, and events that are dead.
//
// A key whose event failed is held. The failed event (the head) and every later event of the key (the
// followers) wait in held_events; what travels the retry topics is a wake-up with a token, by way of the
// outbox. The tables decide, the record only calls:
//
//	           event fails                      due: the wake-up arrives, its token fits
//	free ────────────────────▶ waiting ──────────────────────────────────────▶ draining
//	 ▲                            ▲  fails again, attempts left: new token          │
//	 │                            └─────────────────────────────────────────────────┤
//	 │        nothing waits any more: the key's row goes, in a transaction alone    │
//	 └──────────────────────────────────────────────────────────────────────────────┘
//
// The guarantee: an event is applied after every earlier event of its key that this consumer took on, or
// is a dead letter, whatever crashes; a wake-up that is lost is repeated by the sweeper. It fails to hold
// across a dead letter: what follows it goes on (a redrive puts it behind what waits then), and for a
// policy that is Unordered.
//
// The design rests on one constraint:
// the foreign key from held_events to held_keys. A follower that loses
// the race with its key's release gets SQLSTATE 23503, and its batch runs again.
package retry
