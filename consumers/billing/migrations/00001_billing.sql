-- +goose Up

-- What Billing believes of a user: the newest version of the profile that it has heard of.
CREATE TABLE accounts (
    user_id          text        PRIMARY KEY,
    version          bigint      NOT NULL CHECK (version > 0),
    email            text        NOT NULL,
    display_name     text        NOT NULL,
    address          text        NOT NULL,
    marketing_opt_in boolean     NOT NULL,
    updated_at       timestamptz NOT NULL
);

-- One row per event that was applied, in the transaction that applied it. There is deliberately no unique
-- constraint on event_id: an event that is applied twice must show here, to whoever checks from outside
-- that it never is. What keeps it from happening is the inbox.
CREATE TABLE account_changes (
    seq        bigint      NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id   uuid        NOT NULL,
    user_id    text        NOT NULL,
    version    bigint      NOT NULL,
    superseded boolean     NOT NULL, -- this version or a newer one was there already: nothing was changed
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

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
DROP TABLE account_changes;
DROP TABLE accounts;
