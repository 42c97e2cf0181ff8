-- +goose Up

-- What there is to show of an order. placed_at and id never change, so that a list ordered by them stands
-- still under whoever reads it page by page.
CREATE TABLE order_views (
    id           text        PRIMARY KEY,
    customer_id  text        NOT NULL,
    state        text        NOT NULL,
    total_amount bigint      NOT NULL,
    currency     text        NOT NULL,
    version      bigint      NOT NULL CHECK (version > 0),
    placed_at    timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL
) WITH (fillfactor = 80); -- an order changes about six times: room for that beside the row

CREATE INDEX order_views_newest ON order_views (placed_at, id);
CREATE INDEX order_views_of_customer ON order_views (customer_id, placed_at, id);

CREATE TABLE read_model_progress (
    topic        text        NOT NULL,
    partition    int         NOT NULL,
    changes      bigint      NOT NULL,
    committed_at timestamptz NOT NULL,
    applied_at   timestamptz NOT NULL,
    PRIMARY KEY (topic, partition)
);

-- +goose Down
DROP TABLE read_model_progress;
DROP TABLE order_views;
