// Package sandbox runs the distributed engines on one machine, inside or below this process: a real
// PostgreSQL server, a broker that speaks the real Kafka protocol, and a schema registry. Their data
// lives under one directory and is there again at the next start.
//
// The guarantee: what they acknowledged survives the death of this process, kill -9 included, and no
// server outlives it on Linux. It fails to hold when the machine loses power: the embedded broker, like
// a real one, leaves flushing to the operating system, and has no replica to make up for that. On other
// systems a server that outlived its process is stopped by the next start on its directory.
package sandbox
