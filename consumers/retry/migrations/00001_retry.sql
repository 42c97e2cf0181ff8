-- +goose Up

-- A token names the one wake-up that may run a held key.
CREATE SEQUENCE wake_token;

-- A key whose first waiting event failed. Rows are inserted under the fence only.
CREATE TABLE held_keys (
    consumer  text        NOT NULL,
    topic     text        NOT NULL,
    key       text        NOT NULL,
    token     bigint      NOT NULL,
    attempt   int         NOT NULL,
    state     text        NOT NULL CHECK (state IN ('waiting', 'blocked')),
    due_at    timestamptz NOT NULL,
    nudged_at timestamptz NOT NULL DEFAULT now(),
    nudges    int         NOT NULL DEFAULT 0,
    failed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, topic, key)
);
CREATE INDEX held_keys_waiting ON held_keys (due_at) WHERE state = 'waiting';

-- What waits: the head is the row of a key with the lowest seq, the others follow it.
CREATE TABLE held_events (
    seq         bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    consumer    text        NOT NULL,
    topic       text        NOT NULL,
    key         text        NOT NULL,
    event_id    uuid        NOT NULL,
    partition   int         NOT NULL,
    "offset"    bigint      NOT NULL,
    recorded_at timestamptz NOT NULL,
    redriven    boolean     NOT NULL DEFAULT false,
    record_key  bytea,
    headers     jsonb       NOT NULL,
    payload     bytea,
    PRIMARY KEY (consumer, topic, key, seq),
    CONSTRAINT held_events_key_fkey FOREIGN KEY (consumer, topic, key) REFERENCES held_keys
);

-- What died, and what became of it.
CREATE TABLE dead_letters (
    seq             bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    consumer        text        NOT NULL,
    event_id        uuid        NOT NULL,
    event_type      text        NOT NULL,
    topic           text        NOT NULL,
    key             text        NOT NULL,
    partition       int         NOT NULL,
    "offset"        bigint      NOT NULL,
    recorded_at     timestamptz NOT NULL,
    record_key      bytea,
    headers         jsonb       NOT NULL,
    payload         bytea,
    error_class     text        NOT NULL,
    error           text        NOT NULL,
    state           text        NOT NULL CHECK (state IN ('dead', 'redriving', 'resolved', 'discarded')),
    attempts        int         NOT NULL,
    deaths          int         NOT NULL DEFAULT 1,
    first_failed_at timestamptz NOT NULL,
    last_failed_at  timestamptz NOT NULL,
    PRIMARY KEY (consumer, event_id)
);
CREATE INDEX dead_letters_unresolved ON dead_letters (consumer, topic, key, seq) WHERE state IN ('dead', 'redriving');

-- +goose Down
DROP TABLE dead_letters;
DROP TABLE held_events;
DROP TABLE held_keys;
DROP SEQUENCE wake_token;
