-- +goose Up

-- An account as it was opened, and what the Ledger last said of its balance. version orders what it says: it
-- counts the Ledger's entries, from 1.
CREATE TABLE accounts (
    id              text        PRIMARY KEY,
    currency        text        NOT NULL,
    opening_balance bigint      NOT NULL CHECK (opening_balance >= 0),
    balance         bigint      NOT NULL CHECK (balance >= 0),
    version         bigint      NOT NULL DEFAULT 1,
    created_at      timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70);

-- A test value: the Ledger knows it too, and refuses its debits and credits.
INSERT INTO accounts (id, currency, opening_balance, balance)
VALUES ('closed', 'USD', 0, 0);

-- A transfer with its saga. due_at is the deadline: of the debit, then of the Ledger's answer; infinity once
-- that is overdue; NULL when the saga has ended. The index over it holds open sagas only, and changes that
-- leave due_at alone touch no index.
CREATE TABLE transfers (
    id             uuid        PRIMARY KEY,
    from_account   text        NOT NULL,
    to_account     text        NOT NULL,
    amount         bigint      NOT NULL CHECK (amount > 0),
    currency       text        NOT NULL,
    state          text        NOT NULL DEFAULT 'PENDING'
                   CHECK (state IN ('PENDING', 'DEBITED', 'COMPENSATING', 'STUCK', 'COMPLETED', 'FAILED')),
    reason         text        NOT NULL DEFAULT ''
                   CHECK (reason IN ('', 'insufficient_funds', 'account_not_found', 'account_closed', 'timed_out')),
    version        bigint      NOT NULL DEFAULT 1,
    history        jsonb       NOT NULL,
    correlation_id text        NOT NULL,
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL,
    due_at         timestamptz,
    CHECK (from_account <> to_account),
    CHECK ((due_at IS NULL) = (state IN ('COMPLETED', 'FAILED'))),
    CHECK (reason = '' OR state IN ('COMPENSATING', 'STUCK', 'FAILED')),
    CHECK (reason <> '' OR state NOT IN ('COMPENSATING', 'FAILED'))
) WITH (fillfactor = 60);

CREATE INDEX transfers_due ON transfers (due_at) WHERE due_at IS NOT NULL;

-- +goose Down
DROP TABLE transfers;
DROP TABLE accounts;
