package relay

// The points at which the proof kills the relay, by the name that it is told, see package prove. Without the
// build tag crashpoints the calls are empty and inlined: the product holds nothing of them.
const (
	crashReceived       = "received"        // a row is read and no record is made of it
	crashTransaction    = "transaction"     // as received, behind other rows of the same transaction
	crashCommit         = "commit"          // a transaction's end is read and not noted
	crashProduced       = "produced"        // a record is with the Kafka client, which has no answer
	crashAcknowledged   = "acknowledged"    // Kafka has the record, the server does not know
	crashDeadLetter     = "dead-letter"     // a dead letter is acknowledged and not counted
	crashBackfillMarked = "backfill-marked" // a backfill is pending, there is no slot
	crashBackfilled     = "backfilled"      // all older rows are acknowledged, the backfill is still pending
	crashTransactionEnd = "transaction-end" // a Kafka transaction is flushed and not committed
	crashCheckpoint     = "checkpoint"      // a checkpoint is acknowledged, its position is not confirmed
	crashStatus         = "status"          // a position is about to be confirmed
	crashStatusTorn     = "status-torn"     // half of a confirmation is written
	crashStatusSent     = "status-sent"     // all of it is
	crashMark           = "mark"            // rows of a page are acknowledged and not marked
	crashMarked         = "marked"          // they are marked
)
