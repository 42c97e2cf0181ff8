-- +goose Up

-- reserved includes what completed orders bought. Each order moves pieces from one column to the other
-- or back; only PUT /stock changes their sum. put_from is the version that the latest PUT was made from.
CREATE TABLE stock (
    sku       text   PRIMARY KEY,
    available bigint NOT NULL CHECK (available >= 0),
    reserved  bigint NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    version   bigint NOT NULL DEFAULT 1,
    put_from  bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

INSERT INTO stock (sku, available)
VALUES ('BOOK-1', 100000000),
       ('LAMP-1', 100000000),
       ('MUG-1', 100000000),
       ('RARE-1', 1);

-- One row per order, made by whichever event came first. It is the lock that serialises them.
CREATE TABLE reservations (
    order_id   text        PRIMARY KEY,
    state      text        NOT NULL DEFAULT 'UNTOUCHED'
               CHECK (state IN ('UNTOUCHED', 'RESERVED', 'REJECTED', 'RELEASED')),
    lines      jsonb       NOT NULL DEFAULT '[]',
    version    bigint      NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70);

-- +goose Down
DROP TABLE reservations;
DROP TABLE stock;
