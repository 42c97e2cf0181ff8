-- +goose Up

-- A key that is taken is an error that PostgreSQL logs with the row's key: what clients send has no place there.
UPDATE idempotency_keys
SET key = encode(sha256(convert_to(key, 'UTF8')), 'hex');

COMMENT ON COLUMN idempotency_keys.key IS 'SHA-256 of the Idempotency-Key, in hex';

-- +goose Down

-- +goose StatementBegin
DO $$
BEGIN
    RAISE EXCEPTION 'digests do not turn back into keys, and keys that nobody knows would be free again';
END
$$;
-- +goose StatementEnd
