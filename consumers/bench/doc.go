// Package bench measures the consumer runtime beside the loop that everybody writes first, in one run, each as a
// process of its own against the same PostgreSQL and Kafka: the ratios compare, the figures are the machine's.
//
// make bench-consumers is the run with a real Kafka; with SMALL=1 Kafka is the embedded one. The tests of this
// package are a run with few events, which shows that it measures.
package bench
