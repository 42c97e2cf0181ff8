-- +goose Up

-- What people decided about dead letters.
CREATE TABLE dead_letter_decisions (
    seq            bigint      NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer       text        NOT NULL,
    event_id       uuid        NOT NULL,
    decided_at     timestamptz NOT NULL DEFAULT now(),
    act            text        NOT NULL CHECK (act IN ('redriven', 'discarded', 'edited')),
    decided_by     text        NOT NULL,
    why            text        NOT NULL,
    payload_before bytea,
    payload_after  bytea,
    FOREIGN KEY (consumer, event_id) REFERENCES dead_letters
);
CREATE INDEX dead_letter_decisions_event ON dead_letter_decisions (consumer, event_id);

-- +goose Down
DROP TABLE dead_letter_decisions;
