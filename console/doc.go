// Package console is the dashboard that the binary serves: the flow of events through topics, groups
// and read models, and each group's lag, live and for the last hour.
//
// The guarantee: what it shows was measured, with the age of the measurement beside it. Lag in seconds
// is now minus the timestamp of the record at the committed offset; it is never interpolated. What could
// not be measured is unknown (null in JSON, a dash on the page, absent from /metrics), never zero. The
// console only reads: it commits nothing, joins no group, and its transactions are read only.
//
// How it fails: when Kafka or PostgreSQL is away, that source's last numbers stay with a growing age and
// the reason, and sampling goes on; nothing else in the process is touched. History lives in memory and
// starts anew with the process. A group's commits in Kafka are a hint written after the database's
// commit, so lag can look larger than it is for a moment, never smaller.
//
// Files: verdict.go judges a partition; history.go keeps the last hour; kafka.go, records.go, database.go
// and gathered.go measure; snapshot.go joins what they saw; metrics.go exports it; layout.go draws the
// flow; http.go and stream.go serve.
package console
