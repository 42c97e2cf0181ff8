// Package prove holds what shows that the consumer runtime keeps its promise while its processes are killed,
// stopped in their tracks and cut off: a ledger of all that was put on the topic, kept outside the runtime's
// reach, and a judge of what came of it.
//
// The guarantee: in a run that passes every event had its effect, once, after those of all earlier events of its
// key, or became the dead letter that it was to become, after exactly the tries that its handler refused and not
// one for an outage; what each applied event emitted went out once; no stored offset went back and Kafka's was
// never in front of it; the state is that of a sequential fold; and the dead letters' table and topic agree. A run
// that fails names the events. The judge reads histories only and shares no code with the runtime.
//
// What no run did is not proved by it: see the table that it prints for what was done.
//
// make prove-consumers N=500 is the long run; the tests of this package are a short one, and the same run on
// runtimes with faults in them, each of which the judge must find.
package prove
