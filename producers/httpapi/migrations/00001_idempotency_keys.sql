-- +goose Up

-- A row is the memory of a request: it commits with the request's effect and holds the answer.
CREATE TABLE idempotency_keys (
    tenant      text        NOT NULL DEFAULT '',
    operation   text        NOT NULL,
    key         text        NOT NULL,
    fingerprint bytea       NOT NULL,
    status      int,
    headers     jsonb,
    body        bytea,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, operation, key)
);

-- +goose Down
DROP TABLE idempotency_keys;
