package challenge

import (
	"testing"

	"converge/internal/mutants"
	"converge/lab/history"
)

func TestConvergeItselfPasses(t *testing.T) {
	t.Parallel()
	if report, _ := try(t, mutants.Build(t, nil, "build", "converge/cmd/converge")); report.Verdict != history.PASS {
		t.Errorf("verdict %s", report.Verdict)
	}
}

// With an inbox that calls every event fresh, records that are delivered twice take effect twice. The
// comparison of versions hides that from the views; the journals show it.
func TestTheMutantWithoutAnInboxFails(t *testing.T) {
	t.Parallel()
	inbox := mutants.Fault{File: "consumers/inbox/inbox.go", Old: "\t\tscan(fresh, forgotten)\n", New: "\t\t_ = fresh\n\t\tscan(ids, forgotten)\n"}
	report, _ := try(t, mutants.Build(t, []mutants.Fault{inbox}, "build", "converge/cmd/converge"))
	if got := report.Result(history.PropertyDuplicate); report.Verdict != history.FAIL || got.Verdict != history.FAIL {
		t.Errorf("verdict %s, %q %s", report.Verdict, history.PropertyDuplicate, got.Verdict)
	}
	for _, property := range []string{history.PropertyLoss, history.PropertyUnaffected} {
		if got := report.Result(property); got.Verdict != history.PASS {
			t.Errorf("%q is %s, and the mutant doesn't touch it", property, got.Verdict)
		}
	}
}
