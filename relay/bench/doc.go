// Command bench measures, side by side in one run on one machine, what takes outbox rows out of PostgreSQL's
// write-ahead log: converge relay, pg_recvlogical into /dev/null as the yardstick of what the server's decoding
// allows, and Debezium on Kafka Connect. make bench-relay runs it.
//
// The guarantee: all contenders read the same rows from copies of one slot and, but for pg_recvlogical, write them
// to the same topic of the same broker with acks=all; a measurement counts only after an independent consumer has
// found every row there once, under its id, with its payload, in the order of its key. It fails to hold that a
// number means something by itself: machines differ, and others use them. Rounds are interleaved, ratios are formed
// within a round, and each measurement carries the share of processor time that the hypervisor stole and that
// others used, so that a reader can judge.
//
// Nothing is left behind: servers and contenders die with the program, and its directory is removed.
package main
