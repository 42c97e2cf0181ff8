// Package relay takes the rows of outbox tables out of PostgreSQL's write-ahead log and puts them on
// Kafka topics.
//
// The guarantee: a row whose transaction committed after the slot was made reaches its topic at least
// once; a row whose transaction rolled back never does; rows of one key first appear in the order in
// which their transactions committed, and in the order of insertion within one. The server is told a
// position only when every record of every transaction before it has been acknowledged by all in-sync
// replicas, so killing the relay at any moment costs repetition, never loss.
//
// How it fails: rows are repeated after a crash, a lost connection or a refused record, back to the
// last confirmed position (at most about one second of work, or one transaction if that is longer).
// Rows are lost when the slot is dropped, invalidated or made anew while rows wait in it, when a table
// joins the publication after its rows were committed, or when a topic loses acknowledged records; the
// first two end [Relay.Run] with an error that says so. When the number of partitions of a topic is
// changed, keys move and their order across the move is lost, as with any producer.
//
// A row that no waiting makes publishable (too large for its topic, headers that are no object, a name
// that no topic can have, a record that the brokers will not take) goes to the dead-letter topic, with its
// commit LSN and its place in the transaction, and counts as published when that record is acknowledged; the
// stream goes on. A missing topic or a missing right stops the stream in front of the row instead, until
// someone helps: nothing that follows is confirmed.
//
// # One session
//
// A session is one connection to either side, and everything that is not confirmed dies with it.
//
//	             one goroutine                          the Kafka client's goroutine
//	WAL ──▶ wire ──▶ pgoutput ──▶ record ──▶ Produce ─ ─ ─ ▶ acknowledged
//	          ▲                     │                           │
//	          │ arena is free again │ begin, commit             │ one record less
//	          │                     ▼                           ▼
//	        arenas ◀──────────── tracker ◀──────────────────────┘
//	                                │ watermark
//	                                ▼
//	                          status, every second, from a goroutine of its own
//
// The bytes of a row are read from the socket into an arena and never copied: the record's key, value
// and headers point into it, and it goes back to its pool when its last record is acknowledged. The
// pool's size is the memory bound. When Kafka does not answer, the arenas run out and reading stops;
// the status goroutine goes on, so that PostgreSQL does not hang up.
//
// With [Config.SpillDir] the server sends large transactions before they end. They wait on disk, and come
// through the same path, as one transaction, when they have committed; see spill.
//
// # Other sources
//
// [SourceMessage] is the same stream with messages of pg_logical_emit_message for rows. [SourcePolling] needs no WAL:
// it asks the tables for the rows that are not marked as published, and marks them when their records are
// acknowledged. The promise is the same, with the order of the column seq for that of the commits; its session is
// in polling.go.
//
// # States
//
//	          checks pass              slot is ours
//	connecting ─────────▶ starting ──────────────────▶ streaming
//	  ▲  ▲   │               │ 55006: another reads        │
//	  │  │   │ fatal         ▼                             │ ctx ends
//	  │  │   ▼            standby ──┐ retry                ▼
//	  │  │ Run returns       ▲      │                   draining ──▶ Run returns nil
//	  │  │ the error         └──────┘                      │ time is up
//	  │  │                                                 ▼
//	  │  └───────── backoff ◀──────── any other error    ErrDrainTimedOut
//	  └ either side answers again
package relay
