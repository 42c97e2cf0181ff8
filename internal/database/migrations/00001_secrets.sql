-- +goose Up

-- What all processes share and nobody else may know. Services read the rows that a policy names, and no other.
CREATE TABLE secrets (
    name   text  PRIMARY KEY,
    secret bytea NOT NULL CHECK (length(secret) >= 32)
);

ALTER TABLE secrets ENABLE ROW LEVEL SECURITY;
CREATE POLICY services ON secrets FOR SELECT USING (name = 'consistency-tokens');

-- +goose Down
DROP TABLE secrets;
