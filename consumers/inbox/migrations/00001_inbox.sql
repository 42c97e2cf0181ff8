-- +goose Up

-- A row says that the consumer has taken responsibility for the event: applied, held or dead.
-- The day comes from the event itself, so that duplicates meet in one partition.
CREATE TABLE inbox (
    consumer text NOT NULL,
    event_id uuid NOT NULL,
    day      date NOT NULL,
    PRIMARY KEY (consumer, event_id, day)
) PARTITION BY RANGE (day);

CREATE TABLE inbox_default PARTITION OF inbox DEFAULT;

-- The fence: the offset of the next record, moved in the transaction that holds the effects.
CREATE TABLE consumer_offsets (
    consumer    text   NOT NULL,
    topic       text   NOT NULL,
    partition   int    NOT NULL,
    next_offset bigint NOT NULL,
    PRIMARY KEY (consumer, topic, partition)
);

-- +goose Down
DROP TABLE consumer_offsets;
DROP TABLE inbox;
