-- +goose Up

-- A payment. An order of a saga has one row, made by whichever event came first: it is the lock that
-- serialises them, and amount stays NULL when the compensation came first and nothing was ever asked
-- for. Payments that were posted are rows with saga = false.
CREATE TABLE payments (
    id             uuid        PRIMARY KEY,
    order_id       text        NOT NULL,
    saga           boolean     NOT NULL,
    state          text        NOT NULL DEFAULT 'UNTOUCHED'
                   CHECK (state IN ('UNTOUCHED', 'PENDING', 'AUTHORIZED', 'DECLINED', 'VOIDED')),
    amount         bigint      CHECK (amount >= 0),
    currency       text        NOT NULL DEFAULT '',
    payment_method text        NOT NULL DEFAULT '',
    ship_country   text        NOT NULL DEFAULT '',
    version        bigint      NOT NULL DEFAULT 0,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    due_at         timestamptz, -- when a slow card's provider answers
    correlation_id text        NOT NULL DEFAULT '',
    causation_id   text        NOT NULL DEFAULT '',
    CHECK (amount IS NOT NULL OR state IN ('UNTOUCHED', 'VOIDED')),
    CHECK ((state = 'PENDING') = (due_at IS NOT NULL))
) WITH (fillfactor = 70);

CREATE UNIQUE INDEX payments_one_per_saga ON payments (order_id) WHERE saga;
CREATE INDEX payments_by_order ON payments (order_id, created_at);
CREATE INDEX payments_due ON payments (due_at) WHERE due_at IS NOT NULL;

-- +goose Down
DROP TABLE payments;
