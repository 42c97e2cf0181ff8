-- +goose Up

-- balance is what the entries add up to. version counts the entries, from 1. The ledger's own accounts have
-- names with brackets, which no id has: the equity, where opening balances come from, and the clearing
-- account, which holds what is between debit and credit; both by currency.
CREATE TABLE accounts (
    id       text    PRIMARY KEY,
    currency text    NOT NULL,
    balance  bigint  NOT NULL DEFAULT 0,
    closed   boolean NOT NULL DEFAULT false,
    version  bigint  NOT NULL DEFAULT 1,
    CONSTRAINT not_overdrawn CHECK (balance >= 0 OR id LIKE '(equity) %')
) WITH (fillfactor = 50);

-- A test value: it refuses debits and credits.
INSERT INTO accounts (id, currency, closed)
VALUES ('closed', 'USD', true);

-- Double entry: a row takes from one account what it gives to another, so it cannot be lopsided. reference is
-- the transfer, or the account that was opened; of each there is one entry of a kind.
CREATE TABLE entries (
    reference    text        NOT NULL,
    kind         text        NOT NULL CHECK (kind IN ('opening', 'debit', 'credit', 'refund')),
    from_account text        NOT NULL REFERENCES accounts,
    to_account   text        NOT NULL REFERENCES accounts,
    amount       bigint      NOT NULL CHECK (amount > 0),
    made_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (reference, kind),
    CHECK (from_account <> to_account)
);

CREATE UNIQUE INDEX entries_credited_or_refunded ON entries (reference) WHERE kind IN ('credit', 'refund');

-- The same by account, as accountants read it: every reference and kind sums to zero, and so does everything.
CREATE VIEW postings AS
SELECT reference, kind, to_account AS account_id, amount, made_at
FROM entries
UNION ALL
SELECT reference, kind, from_account, -amount, made_at
FROM entries;

-- One row per transfer, made by whichever event came first. It is the lock that serialises them.
CREATE TABLE transfers (
    transfer_id  text        PRIMARY KEY,
    state        text        NOT NULL DEFAULT 'UNTOUCHED'
                 CHECK (state IN ('UNTOUCHED', 'DEBITED', 'CREDITED', 'REFUSED', 'REFUNDED', 'WITHDRAWN')),
    from_account text        NOT NULL DEFAULT '',
    to_account   text        NOT NULL DEFAULT '',
    amount       bigint      NOT NULL DEFAULT 0,
    currency     text        NOT NULL DEFAULT '',
    version      bigint      NOT NULL DEFAULT 0,
    updated_at   timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70);

-- +goose Down
DROP TABLE transfers;
DROP VIEW postings;
DROP TABLE entries;
DROP TABLE accounts;
