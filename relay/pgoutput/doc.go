// Package pgoutput reads what PostgreSQL's logical replication sends, and writes what it wants to
// hear: the CopyData envelopes of the streaming protocol, and the messages of the pgoutput plugin,
// protocol versions 1 and 2, as far as a publication of inserts uses them, and logical messages.
//
// It is pure: bytes in, values out, no connection, no clock, no goroutine. The guarantee is that any
// input gives either a value that lies wholly inside that input or [ErrMalformed], never a panic and
// never an allocation that the input's own length does not justify. Parsing a row allocates nothing
// once its [Tuple] has grown to the table's width.
//
// It fails by aliasing: every []byte it returns points into the input. A caller that reuses the input
// must be done with the values first.
//
// Sources: PostgreSQL 15 manual, chapters 55.4 (Streaming Replication Protocol), 55.5 (Logical
// Streaming Replication Protocol) and 55.9 (Logical Replication Message Formats).
package pgoutput
