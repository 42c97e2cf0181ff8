// Package kafkatest gives a test a real Apache Kafka broker of its own, so that what was proved on the
// embedded one is proved on the real one too.
//
// The guarantee: when Start returns, the broker answers on loopback; what it acknowledged is there again
// after Kill and Restart; and it is gone when the test ends, however the test process ends (on Linux; on
// other systems a killed test process leaves it behind). It fails to hold for the cluster that
// KAFKA_BROKERS names: that one is shared, and nobody but the topics and groups that a test made there is
// removed.
//
// The broker's jars come from Maven once and are kept in the user's cache directory. CONVERGE_TEST_KAFKA=real
// asks for it (make test-kafka); without that, Start skips the test.
package kafkatest
