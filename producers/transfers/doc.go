// Package transfers takes transfers of money and follows each one's saga, and it opens the accounts: the
// Ledger, which it hears and never commands, moves the money.
//
// The guarantee: every transfer ends COMPLETED, with the money on the payee's account, or FAILED, with the
// money where it was, never both; once it has ended it never moves again, and the balances that are shown
// have it. It fails to hold while the Ledger is away: the transfer then waits, later STUCK, until it is heard.
//
//	          TransferDebited          TransferCompleted
//	POST ─▶ PENDING ──────────▶ DEBITED ────────────────▶ COMPLETED
//	          │ │              (pivot) │
//	          │ │ deadline             │ TransferFailed: the payee refused
//	          │ └────▶ COMPENSATING ◀──┘ and the money is back already
//	          │             │ │ answer overdue (from DEBITED too)
//	          │             │ └────▶ STUCK ─▶ the Ledger's last word: COMPLETED or FAILED
//	          │ TransferFailed
//	          └──▶ FAILED ◀─┘
//
// Debit and deadline race. Whichever comes here first decides: TransferConfirmed is said, and the transfer
// does not time out any more, or TransferTimedOut, and the Ledger gives the money back or never takes it.
// The table of all cells is docs/transfers.md, written by a test.
//
// An account is opened here, so that a transfer in another currency is refused at once and an id is taken
// once; its money is the Ledger's, whose every word carries the balance that it led to.
//
// The clock is the database's: deadlines are compared with now() where they were written.
package transfers
