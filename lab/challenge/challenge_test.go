package challenge

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"converge/internal/pgtest"
	"converge/lab/history"
)

// try runs a short challenge against the binary.
func try(t *testing.T, binary string) (history.Report, string) {
	t.Helper()
	dir := t.TempDir()
	var out bytes.Buffer
	report, err := Run(t.Context(), Config{Binary: binary, Report: dir, Out: &out, Outage: 5 * time.Second, Backlog: 700, Users: usersAtLeast, Seed: 1})
	t.Log(out.String())
	if err != nil {
		t.Fatalf("no verdict: %v", err)
	}
	loaded, err := history.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if again := history.Check(loaded); again.Verdict != report.Verdict {
		t.Errorf("the history in the report directory is judged %s, the run was %s", again.Verdict, report.Verdict)
	}
	_, kept, _ := strings.Cut(out.String(), "are kept in ")
	kept, _, _ = strings.Cut(kept, "\n")
	if failed := report.Verdict == history.FAIL; failed != (kept != "") {
		t.Errorf("verdict %s, kept %q", report.Verdict, kept)
	} else if failed {
		if _, err := os.Stat(filepath.Join(kept, "postgres")); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(kept); err != nil {
			t.Error(err)
		}
	}
	return report, dir
}

func stubWith(t *testing.T, fault string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), stubName+fault)
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	return link
}

// nothingLeft fails when the tests so far left a private directory.
func nothingLeft(t *testing.T) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "converge-challenge-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, error %v", left, err)
	}
}

func TestAPipelineThatConvergesPasses(t *testing.T) {
	report, dir := try(t, stubWith(t, faultNone))
	if report.Verdict != history.PASS {
		t.Errorf("verdict %s", report.Verdict)
	}
	n := report.Numbers
	if n.Acked < 900 || n.DeliveredAgain < 50 || len(n.CatchUps) != 1 || n.CatchUps[0].Backlog < 500 || n.CatchUps[0].Took <= 0 {
		t.Errorf("numbers are %+v", n)
	}
	for _, name := range []string{"report.json", "report.txt", "timeline.jsonl", "relay.log", "analytics.log"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	nothingLeft(t)
}

// The grader is graded: each mistake is found by the property that it breaks.
func TestMistakesOfConsumersFail(t *testing.T) {
	t.Run("each", func(t *testing.T) {
		for fault, property := range map[string]string{
			faultNoInbox:     history.PropertyDuplicate,
			faultCommitFirst: history.PropertyLoss,
			faultBlindUpsert: history.PropertyOrder,
			faultSharesFate:  history.PropertyUnaffected,
		} {
			t.Run(fault, func(t *testing.T) {
				t.Parallel()
				report, _ := try(t, stubWith(t, fault))
				if got := report.Result(property); report.Verdict != history.FAIL || got.Verdict != history.FAIL {
					t.Errorf("verdict %s, %q %s", report.Verdict, property, got.Verdict)
				}
			})
		}
	})
	nothingLeft(t)
}

func TestInterruptedItLeavesNothing(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	out := &stopper{at: "SIGKILL analytics", stop: stop}
	_, err := Run(ctx, Config{Binary: stubWith(t, faultNone), Report: t.TempDir(), Out: out, Seed: 1})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	nothingLeft(t)
}

// stopper stops the run when it prints something.
type stopper struct {
	at   string
	stop func()
}

func (s *stopper) Write(p []byte) (int, error) {
	if strings.Contains(string(p), s.at) {
		s.stop()
	}
	return len(p), nil
}

func TestEnginesThatAreGivenAreUsedAndLeftRunning(t *testing.T) {
	seeds, database := kafka(t), pgtest.URL(t)
	var out bytes.Buffer
	report, err := Run(t.Context(), Config{Binary: stubWith(t, faultNone), Report: t.TempDir(), Out: &out,
		Outage: 4 * time.Second, Backlog: 300, Users: usersAtLeast, Seed: 2, Brokers: seeds, Database: database})
	t.Log(out.String())
	if err != nil || report.Verdict != history.PASS {
		t.Fatalf("verdict %q, error %v", report.Verdict, err)
	}
	db, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(t.Context())
	var rows int
	if err := db.QueryRow(t.Context(), "SELECT count(*) FROM billing.account_changes").Scan(&rows); err != nil || rows < 300 {
		t.Errorf("the given database has %d rows of the journal, error %v", rows, err)
	}
}
