-- +goose Up
CREATE SEQUENCE outbox_seq;

-- One row, one record on a topic. Rows are only ever inserted; the relay reads them from the WAL and
-- old days go by dropping partitions. published_at belongs to the polling publisher.
CREATE TABLE outbox (
    seq               bigint      NOT NULL DEFAULT nextval('outbox_seq'),
    event_id          uuid        NOT NULL,
    topic             text        NOT NULL,
    aggregate_type    text        NOT NULL,
    aggregate_id      text        NOT NULL,
    aggregate_version bigint      NOT NULL,
    event_type        text        NOT NULL,
    content_type      text        NOT NULL,
    payload           bytea,
    headers           jsonb       NOT NULL DEFAULT '{}',
    created_at        timestamptz NOT NULL DEFAULT now(),
    published_at      timestamptz
) PARTITION BY RANGE (created_at);

CREATE TABLE outbox_default PARTITION OF outbox DEFAULT;

-- +goose Down
DROP TABLE outbox;
DROP SEQUENCE outbox_seq;
