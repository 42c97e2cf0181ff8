package main

import (
	"errors"
	"testing"
	"time"

	"converge/internal/database"
	"converge/internal/pgtest"
)

func TestTimesOfReadModelsThatMakeNoSenseAreRefused(t *testing.T) {
	for r, ok := range map[reading]bool{
		{2 * time.Second, 0}:                true,
		{30 * time.Second, 3 * time.Second}: true,
		{0, 0}:                              false,
		{-time.Second, 0}:                   false,
		{31 * time.Second, 0}:               false,
		{time.Second, -time.Second}:         false,
	} {
		var usage usageError
		if err := r.check(); (err == nil) != ok || err != nil && !errors.As(err, &usage) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

// A database from before there was a key for consistency tokens says what to do; then every service has the key.
func TestADatabaseWithoutATokenKeyIsToBeMigrated(t *testing.T) {
	url := pgtest.URL(t)
	if err := database.Migrate(t.Context(), url, modules(services())...); err != nil {
		t.Fatal(err)
	}
	if _, err := readTokenKey(t.Context(), url, "orders"); !errors.Is(err, database.ErrNoSecrets) {
		t.Errorf("before: %v", err)
	}
	if err := migrateAll(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{}
	for _, name := range serviceNames() {
		key, err := readTokenKey(t.Context(), url, name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		keys[string(key)] = true
	}
	if len(keys) != 1 {
		t.Errorf("%d keys", len(keys))
	}
}
