// Package bench measures an idempotent POST in one run: in SQL beside a bare durable INSERT and beside the same
// steps one by one, and over HTTP as a process of its own that a load generator on the same machine drives. The
// ratios compare, the figures are the machine's.
//
// A latency counts from the moment at which its request was due, so that a server that stalls cannot hide it, and
// PostgreSQL flushes at every COMMIT: the run refuses to begin otherwise. It fails to measure the server where the
// generator is the slower of the two: both share the cores, so what it finds is the least that the server can do.
//
// make bench-http is the run; with SMALL=1 it is a short one. The tests of this package are a run with few requests,
// which shows that it measures.
package bench
