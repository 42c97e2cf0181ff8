package group_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"converge/internal/pgtest"
)

// plants are faults for the runtime, each behind a switch, so that one build holds them all.
var plants = []struct{ file, old, new string }{
	{"batch.go", "if !isFresh[e.ID] {",
		`if !isFresh[e.ID] && !planted("the inbox is not asked") {`},
	{"batch.go", "queries.Queue(fenceSQL, ",
		`fence := fenceSQL
	if planted("the fence lets everyone pass") {
		fence = "UPDATE consumer_offsets SET next_offset = $5 WHERE consumer = $1 AND topic = $2 AND partition = $3 AND $4::bigint >= 0"
	}
	queries.Queue(fence, `},
	{"batch.go", "stored, err := g.applyBatch(ctx, b)",
		`if planted("Kafka is told before the database") {
		g.hint(p, b.next)
		g.tellKafka(ctx)
	}
	stored, err := g.applyBatch(ctx, b)`},
	{"handle.go", "return class == event.ClassInfrastructure ||",
		`return class == event.ClassInfrastructure && !planted("an outage counts as an attempt") ||`},
	{"handle.go", "case held[g.ladder.KeyOf(e)]:",
		`case held[g.ladder.KeyOf(e)] && !planted("a later batch overtakes what is held"):`},
	{"handle.go", "held[key] = true",
		`held[key] = !planted("the same batch overtakes what is held")`},
}

// verdicts says which test must find each fault, and in what words.
var verdicts = map[string]struct{ test, says string }{
	"the inbox is not asked":                {"TestEachEventIsAppliedOnceHoweverOftenItIsDelivered", "applied 2 times: key-"},
	"the fence lets everyone pass":          {"TestAZombieThatWakesUpLateCommitsNothing", "applied 2 times: key-"},
	"Kafka is told before the database":     {"TestAnOutageThatTheHandlerMeetsPausesAndBlamesNoEvent", "Kafka was told 40 while the database has 0"},
	"an outage counts as an attempt":        {"TestAnOutageThatTheHandlerMeetsPausesAndBlamesNoEvent", "rows blame an event"},
	"a later batch overtakes what is held":  {"TestLaterEventsWaitBehindAHeldKey", "out of order: key-0"},
	"the same batch overtakes what is held": {"TestLaterEventsWaitBehindAHeldKey", "out of order: key-0"},
}

// The tests are worth what they catch: each planted fault must be found, for its reason.
func TestTestsFindPlantedFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package anew")
	}
	t.Parallel()
	binary, server := buildWithPlants(t), pgtest.URL(t) // one server serves them all
	for fault, verdict := range verdicts {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), binary, "-test.run", "^"+verdict.test+"$")
			cmd.Env = append(os.Environ(), "PLANTED="+fault, "CONVERGE_TEST_DATABASE="+server)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("%s found nothing wrong", verdict.test)
			}
			if !strings.Contains(string(out), verdict.says) {
				t.Errorf("%s found another reason than %q:\n%.3000s", verdict.test, verdict.says, out)
			}
		})
	}
}

func buildWithPlants(t *testing.T) (binary string) {
	t.Helper()
	here, err := filepath.Abs(".")
	must(t, err)
	dir := t.TempDir()
	texts := map[string]string{"planted.go": "package group\n\nimport \"os\"\n\nfunc planted(fault string) bool { return os.Getenv(\"PLANTED\") == fault }\n"}
	for _, p := range plants {
		if texts[p.file] == "" {
			text, err := os.ReadFile(p.file)
			must(t, err)
			texts[p.file] = string(text)
		}
		if n := strings.Count(texts[p.file], p.old); n != 1 {
			t.Fatalf("%q stands %d times in %s", p.old, n, p.file)
		}
		texts[p.file] = strings.Replace(texts[p.file], p.old, p.new, 1)
	}
	replace := map[string]string{}
	for file, text := range texts {
		planted := filepath.Join(dir, fmt.Sprintf("%d.go", len(replace)))
		must(t, os.WriteFile(planted, []byte(text), 0o600))
		replace[filepath.Join(here, file)] = planted
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": replace})
	must(t, err)
	file := filepath.Join(dir, "overlay.json")
	must(t, os.WriteFile(file, overlay, 0o600))
	binary = filepath.Join(dir, "group.test")
	out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-overlay", file, "-o", binary, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("building with the faults: %v\n%s", err, out)
	}
	return binary
}
