-- +goose Up

-- An e-mail address belongs to one profile of its tenant: what stands before the slash of the user's stored name.
ALTER TABLE profiles DROP CONSTRAINT profiles_email_key;
CREATE UNIQUE INDEX profiles_email_key ON profiles ((CASE WHEN user_id LIKE '%/%' THEN split_part(user_id, '/', 1) ELSE '' END), email);

-- Which members the last change gave another value: a retried patch can be told from another's change. Of the
-- versions before this column nobody knows, so it is all of them.
ALTER TABLE profiles ADD COLUMN last_changed text[] NOT NULL DEFAULT '{email,display_name,address,marketing_opt_in}';

-- +goose Down
ALTER TABLE profiles DROP COLUMN last_changed;
DROP INDEX profiles_email_key;
ALTER TABLE profiles ADD CONSTRAINT profiles_email_key UNIQUE (email);
