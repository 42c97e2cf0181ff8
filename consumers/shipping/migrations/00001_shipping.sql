-- +goose Up

-- One row per order, made by whichever event came first. It is the lock that serialises them.
-- shipment_id is set when a carrier was found.
CREATE TABLE shipments (
    order_id    text        PRIMARY KEY,
    state       text        NOT NULL DEFAULT 'UNTOUCHED'
                CHECK (state IN ('UNTOUCHED', 'ARRANGED', 'REFUSED', 'CANCELLED')),
    shipment_id uuid,
    country     text        NOT NULL DEFAULT '',
    version     bigint      NOT NULL DEFAULT 0,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    CHECK (state <> 'ARRANGED' OR shipment_id IS NOT NULL)
) WITH (fillfactor = 70);

-- +goose Down
DROP TABLE shipments;
