-- +goose Up

-- How far back a consumer's inbox remembers: days before the oldest were dropped with rows of its own. A
-- consumer without a row has forgotten nothing.
CREATE TABLE inbox_horizons (
    consumer text NOT NULL PRIMARY KEY,
    oldest   date NOT NULL
);

-- Events that tell no time are remembered for ever. They have a partition of their own, so that the default
-- one holds next to nothing: it is read whole, under a lock, whenever a day is made.
ALTER TABLE inbox DETACH PARTITION inbox_default;
CREATE TABLE inbox_undated PARTITION OF inbox FOR VALUES FROM ('1970-01-01') TO ('1970-01-02');
INSERT INTO inbox_undated SELECT consumer, event_id, day FROM inbox_default WHERE day = '1970-01-01';
DELETE FROM inbox_default WHERE day = '1970-01-01';
ALTER TABLE inbox ATTACH PARTITION inbox_default DEFAULT;

-- +goose Down
ALTER TABLE inbox DETACH PARTITION inbox_undated;
INSERT INTO inbox SELECT consumer, event_id, day FROM inbox_undated;
DROP TABLE inbox_undated;
DROP TABLE inbox_horizons;
