-- +goose Up

-- Which answers are kept, the oldest first. A purged row, whose fingerprint is empty, stands in no entry, and the
-- statement that stores an answer changes none.
CREATE INDEX idempotency_keys_kept ON idempotency_keys (created_at) WHERE fingerprint <> '';

-- +goose Down
DROP INDEX idempotency_keys_kept;
