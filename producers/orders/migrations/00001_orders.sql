-- +goose Up

-- An order with its saga. facts and outcome decide (rules.go); state is what follows from them, kept for
-- whoever counts. due_at is the deadline: of the pivot, then of the acknowledgements; infinity once these
-- are overdue; NULL when the saga has ended. The index over it holds open sagas only, and changes that
-- leave due_at alone touch no index.
CREATE TABLE orders (
    id             uuid        PRIMARY KEY,
    customer_id    text        NOT NULL,
    items          jsonb       NOT NULL,
    total_amount   bigint      NOT NULL CHECK (total_amount >= 0),
    currency       text        NOT NULL,
    payment_method text        NOT NULL,
    ship_country   text        NOT NULL,
    facts          int         NOT NULL DEFAULT 0,
    outcome        text        NOT NULL DEFAULT ''
                   CHECK (outcome IN ('', 'completed', 'insufficient_inventory', 'payment_declined',
                                      'shipment_refused', 'timed_out', 'cancelled')),
    overdue        boolean     NOT NULL DEFAULT false,
    state          text        NOT NULL DEFAULT 'PENDING'
                   CHECK (state IN ('PENDING', 'RESERVED', 'PAID', 'COMPENSATING', 'STUCK', 'COMPLETED', 'FAILED')),
    version        bigint      NOT NULL DEFAULT 1,
    history        jsonb       NOT NULL,
    correlation_id text        NOT NULL,
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL,
    due_at         timestamptz,
    CHECK ((due_at IS NULL) = (state IN ('COMPLETED', 'FAILED'))),
    CHECK ((outcome = '') = (state IN ('PENDING', 'RESERVED', 'PAID')))
) WITH (fillfactor = 60);

CREATE INDEX orders_due ON orders (due_at) WHERE due_at IS NOT NULL;

-- +goose Down
DROP TABLE orders;
