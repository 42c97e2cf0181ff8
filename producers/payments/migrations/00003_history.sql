-- +goose Up

-- The states that a payment entered, oldest first; of one that was there before, the state that it has.
ALTER TABLE payments ADD COLUMN history jsonb NOT NULL DEFAULT '[]';

UPDATE payments
SET history = jsonb_build_array(jsonb_build_object('state', state, 'at', updated_at))
WHERE version > 0;

-- +goose Down
ALTER TABLE payments DROP COLUMN history;
