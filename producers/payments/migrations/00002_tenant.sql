-- +goose Up

-- Whose the payment is: of a saga, as the order's customer tells; otherwise whoever posted it. '' is the tenant of
-- a server that asks for no tokens, as of all payments before.
ALTER TABLE payments ADD COLUMN tenant text NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE payments DROP COLUMN tenant;
