package prove

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"converge/internal/mutants"
)

// calls are the crash points in the relay's code, by file.
var calls = []mutants.Fault{
	{File: "relay/session.go", Old: "\tcrash(crashReceived)\n\tif x.sent > 0 {\n\t\tcrash(crashTransaction)\n\t}\n"},
	{File: "relay/session.go", Old: "\tcrash(crashCommit)\n"},
	{File: "relay/publisher.go", Old: "\tcrash(crashProduced)\n"},
	{File: "relay/publisher.go", Old: "\t\tcrash(crashDeadLetter)\n"},
	{File: "relay/publisher.go", Old: "\tcrash(crashAcknowledged)\n"},
	{File: "relay/polling.go", Old: "\tcrash(crashMark)\n"},
	{File: "relay/polling.go", Old: "\tcrash(crashMarked)\n"},
	{File: "relay/backfill.go", Old: "\tcrash(crashBackfillMarked)\n"},
	{File: "relay/backfill.go", Old: "\tcrash(crashBackfilled)\n"},
	{File: "relay/checkpoint.go", Old: "\t\t\tcrash(crashCheckpoint)\n"},
	{File: "relay/transactional.go", Old: "\tcrash(crashTransactionEnd)\n"},
	{File: "relay/transactional.go", Old: "\tcrash(crashCheckpoint)\n"},
	{File: "relay/wire.go", Old: "\tcrash(crashStatus)\n\tcrashTorn(w)\n"},
	{File: "relay/wire.go", Old: "\tcrash(crashStatusSent)\n"},
}

// Without the tag the relay's machine code is the one of a relay whose sources have no crash points; with it, it
// is not.
func TestCrashPointsAreNotPlantedInTheProduct(t *testing.T) {
	t.Parallel()
	sizes := func(binary string) map[string]string {
		out, err := exec.CommandContext(t.Context(), "go", "tool", "nm", "-size", "-type", binary).Output()
		if err != nil {
			t.Fatal(err)
		}
		functions := map[string]string{}
		for line := range strings.Lines(string(out)) {
			// address, size, type, name
			f := strings.Fields(line)
			if len(f) == 4 && f[2] == "T" && strings.HasPrefix(f[3], "converge/relay.") && !strings.Contains(f[3], "planted") {
				functions[f[3]] = f[1]
			}
		}
		if len(functions) < 50 {
			t.Fatalf("%s has %d functions", binary, len(functions))
		}
		return functions
	}
	build := func(arguments ...string) string {
		archive := filepath.Join(t.TempDir(), "relay.a")
		out, err := exec.CommandContext(t.Context(), "go", append(append([]string{"build", "-o", archive}, arguments...), "converge/relay")...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return archive
	}
	bare := sizes(mutants.Build(t, calls, "build", "converge/relay"))
	product, armed := sizes(build()), sizes(build("-tags=crashpoints"))
	for name, size := range product {
		if strings.Contains(name, ".crash") {
			continue // empty functions that nobody calls
		}
		if bare[name] != size {
			t.Errorf("%s has %s bytes, without crash points %s", name, size, bare[name])
		}
	}
	settle := "converge/relay.(*publisher).settle"
	if armed[settle] == product[settle] || product[settle] == "" {
		t.Errorf("the crash points change nothing: %s and %s bytes", armed[settle], product[settle])
	}
}
