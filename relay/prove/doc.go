// Package prove holds what shows that the relay keeps its promise while it is killed: a ledger of all that
// was written, kept outside the relay's reach, and a judge of what came of it.
//
// The guarantee: a run that passes lost no committed row, published none that was rolled back, kept each
// key's order of commits and every record's content, never confirmed a position in front of a row that
// Kafka did not have, and repeated nothing that had been confirmed. A run that fails names the rows and
// prints their history. The judge reads histories only and shares no code with the relay.
//
// It fails when the evidence is wrong, which it looks for: a writer's answers and the server's log, read
// through a slot of the judge's own, must tell the same story, and the topics must have been read without a
// gap. What no run did is not proved by it: see the table that it prints for what was done.
//
// make prove-relay N=1000 is the long run; the tests of this package are a short one, and the same run on
// relays with faults in them, each of which the judge must find.
package prove
