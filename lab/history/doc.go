// Package history records what was done to a running pipeline and what came of it, and judges it.
//
// The guarantee: a PASS means that every write which was acknowledged took effect exactly once at every
// consumer, in the order of its user's versions, that all copies ended equal, and that a consumer's
// outage neither lost anything nor held up the others; a FAIL names the smallest event that shows
// otherwise. The judge reads histories only and shares no code with what it judges.
//
// It fails when the history is wrong: a write recorded as acknowledged that was not, a journal read
// before the consumers were done, times from clocks that differ (all times in one history are of one
// clock, the database's, see [Plan]). What was not observed is never counted as good: a property whose
// evidence is missing, or that no recorded fault put to the test, is UNKNOWN.
package history
