-- +goose Up
CREATE TABLE profiles (
    user_id          text        PRIMARY KEY,
    email            text        NOT NULL,
    display_name     text        NOT NULL,
    address          text        NOT NULL DEFAULT '',
    marketing_opt_in boolean     NOT NULL DEFAULT false,
    version          bigint      NOT NULL CHECK (version > 0),
    updated_at       timestamptz NOT NULL,
    CONSTRAINT profiles_email_key UNIQUE (email)
);

-- +goose Down
DROP TABLE profiles;
