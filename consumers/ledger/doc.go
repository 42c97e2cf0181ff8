// Package ledger keeps the accounts' money in double entry: it debits the payer of a transfer when it hears
// of it, credits the payee when the transfer is confirmed, and gives the money back when the payee cannot
// take it or the transfer timed out.
//
// The guarantee: an entry takes from one account exactly what it gives to another, so the balances of a
// currency always sum to zero; no account is ever overdrawn but the equity, which opening balances come
// from; a transfer is debited at most once, and after that credited or refunded, never both, whatever came
// first and however often. It fails to hold if somebody changes the tables by hand.
//
//	            TransferRequested         TransferConfirmed
//	UNTOUCHED ───────────────────▶ DEBITED ─────────────────▶ CREDITED
//	    │  │ the payer refuses        │ the payee refuses,
//	    │  └─────────▶ REFUSED        │ TransferTimedOut
//	    │ TransferTimedOut            └──────────▶ REFUNDED
//	    └─────────────▶ WITHDRAWN
//
// Between debit and credit the money is on a clearing account of its currency: each step is a transaction of
// its own, and what is on its way can be seen. WITHDRAWN is the tombstone of a transfer whose time was up
// before the Ledger heard of it.
package ledger
