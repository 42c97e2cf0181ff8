package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"converge/consumers/event"
	"converge/consumers/retry"
	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/internal/process"
)

// command runs the program in this process, and returns what it printed and its code.
func command(args ...string) (stdout, stderr string, code int) {
	var out, err bytes.Buffer
	code = run(args, &out, &err)
	return out.String(), err.String(), code
}

// A dead letter is listed, counted, shown, mended, redriven and discarded by hand; what was decided stays.
func TestDeadLettersAreDecidedByHand(t *testing.T) {
	url := pgtest.Database(t, "all", func(ctx context.Context, url string) error {
		return database.Migrate(ctx, url, modules(services())...)
	})
	pool, err := database.Open(t.Context(), url, "billing", 2)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	bury := func(key string, err error) uuid.UUID {
		t.Helper()
		e := &event.Event{Topic: "identity", Key: []byte(key), Value: []byte(`{"user_id":`), RecordedAt: time.Now(), Headers: []event.Header{
			{Key: "event_type", Value: []byte("ProfileUpdated")}, {Key: "event_id", Value: []byte(uuid.NewString())}}}
		e.Identify()
		if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			return retry.Ladder{Consumer: "billing"}.Bury(t.Context(), tx, []retry.Failure{{Event: e, Err: err, Attempts: 1, FirstAt: time.Now()}})
		}); err != nil {
			t.Fatal(err)
		}
		return e.ID
	}
	first, second, third := bury("u-1", event.Permanentf("no JSON")), bury("u-2", event.Permanentf("no JSON")), bury("u-3", errors.New("no room"))
	fixed := filepath.Join(t.TempDir(), "fixed.json")
	if err := os.WriteFile(fixed, []byte(`{"user_id":"u-1"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	dlq := func(args ...string) []string {
		return append(append([]string{"dlq"}, args...), "--database", url)
	}
	for _, step := range []struct {
		args []string
		code int
		says []string
	}{
		{dlq("list"), process.ExitOK, []string{first.String(), second.String(), third.String(), "no JSON", "u-3"}},
		{dlq("list", "--cause", "room"), process.ExitOK, []string{third.String()}},
		{dlq("list", "--since", "1h", "--key", "u-2"), process.ExitOK, []string{second.String()}},
		{dlq("list", "--until", "1h"), process.ExitOK, []string{"no dead letters"}},
		{dlq("list", "--since", "soon"), process.ExitUsage, []string{`"soon" is neither a duration`}},
		{dlq("list", "--group", "nobody"), process.ExitUsage, []string{`there is no consumer group "nobody"`}},
		{dlq("stats"), process.ExitOK, []string{"2        2     billing  identity  ProfileUpdated  permanent", "no room"}},
		{dlq("edit", first.String(), "--value", fixed), process.ExitUsage, []string{"say --why"}},
		{dlq("edit", "42", "--value", fixed, "--why", "cut"), process.ExitUsage, []string{`"42" is not an event id`}},
		{dlq("edit", uuid.NewString(), "--value", fixed, "--why", "cut"), process.ExitFailed, []string{"there is no such dead letter"}},
		{dlq("edit", first.String(), "--value", fixed, "--why", "it was cut", "--by", "ada"), process.ExitOK, []string{"edited: " + first.String() + " of billing"}},
		{dlq("redrive"), process.ExitUsage, []string{"say --all"}},
		{dlq("redrive", "--key", "u-1", "--dry-run"), process.ExitOK, []string{"would redrive the dead letters of 1 keys (1 chosen)"}},
		{dlq("redrive", "--key", "u-1", "--wait", "0s"), process.ExitOK, []string{"1 events of 1 keys; 0 applied, 0 dead again, 1 waiting"}},
		{dlq("show", first.String()), process.ExitOK, []string{"redriving", `value    {"user_id":"u-1"}`, "by ada it was cut", `before {"user_id":` + "\n", "redriven"}},
		{dlq("discard", "--class", "permanent", "--why", "old", "--dry-run"), process.ExitOK, []string{"would discard: 1 dead letters"}},
		{dlq("discard"), process.ExitUsage, []string{"say --why"}},
		{dlq("discard", "--why", "old"), process.ExitUsage, []string{"say --all"}},
		{dlq("discard", second.String(), "--why", "old"), process.ExitOK, []string{"discarded: 1 dead letters"}},
		{dlq("discard", second.String(), "--why", "old"), process.ExitFailed, []string{"there is no such dead letter"}},
		{dlq("list", "--state", "discarded"), process.ExitOK, []string{second.String()}},
	} {
		stdout, stderr, code := command(step.args...)
		if code != step.code {
			t.Errorf("%s: code %d\n%s%s", step.args[1:], code, stdout, stderr)
		}
		for _, text := range step.says {
			if !strings.Contains(stdout+stderr, text) {
				t.Errorf("%s lacks %q:\n%s%s", step.args[1:], text, stdout, stderr)
			}
		}
	}
	stdout, stderr, code := command(dlq("show", first.String(), "--json")...)
	var shown []struct {
		State     string
		Decisions []struct{ Act, By, Why, Before, After string }
	}
	if err := json.Unmarshal([]byte(stdout), &shown); err != nil || code != 0 || len(shown) != 1 || len(shown[0].Decisions) != 2 || shown[0].Decisions[0].After != `{"user_id":"u-1"}` {
		t.Errorf("%v %d %s%s", err, code, stdout, stderr)
	}
}
