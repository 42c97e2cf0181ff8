package challenge

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"converge/lab/history"
)

// buildConverge builds the real binary. Each replacement, of a file below the module's root, must match
// exactly once: a mutant that changes nothing would prove nothing.
func buildConverge(t *testing.T, file, old, replacement string) string {
	t.Helper()
	dir := t.TempDir()
	binary := filepath.Join(dir, "converge")
	args := []string{"build", "-o", binary}
	if file != "" {
		path, err := filepath.Abs(filepath.Join("..", "..", file))
		if err != nil {
			t.Fatal(err)
		}
		source, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(source), old); n != 1 {
			t.Fatalf("%q is in %s %d times: the mutant no longer fits the code", old, file, n)
		}
		mutant := filepath.Join(dir, "mutant.go")
		overlay, err := json.Marshal(map[string]map[string]string{"Replace": {path: mutant}})
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{mutant: strings.Replace(string(source), old, replacement, 1), filepath.Join(dir, "overlay.json"): string(overlay)} {
			if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		args = append(args, "-overlay", filepath.Join(dir, "overlay.json"))
	}
	if out, err := exec.CommandContext(t.Context(), "go", append(args, "converge/cmd/converge")...).CombinedOutput(); err != nil {
		t.Fatalf("building converge: %v\n%s", err, out)
	}
	return binary
}

func TestConvergeItselfPasses(t *testing.T) {
	if report, _ := try(t, buildConverge(t, "", "", "")); report.Verdict != history.PASS {
		t.Errorf("verdict %s", report.Verdict)
	}
}

// With an inbox that calls every event fresh, records that are delivered twice take effect twice. The
// comparison of versions hides that from the views; the journals show it.
func TestConvergeWithoutItsInboxFails(t *testing.T) {
	mutant := buildConverge(t, "consumers/inbox/inbox.go", "\t\tscan(fresh)\n", "\t\t_ = fresh\n\t\tscan(ids)\n")
	report, _ := try(t, mutant)
	if got := report.Result(history.PropertyDuplicate); report.Verdict != history.FAIL || got.Verdict != history.FAIL {
		t.Errorf("verdict %s, %q %s", report.Verdict, history.PropertyDuplicate, got.Verdict)
	}
	for _, property := range []string{history.PropertyLoss, history.PropertyUnaffected} {
		if got := report.Result(property); got.Verdict != history.PASS {
			t.Errorf("%q is %s, and the mutant doesn't touch it", property, got.Verdict)
		}
	}
}
