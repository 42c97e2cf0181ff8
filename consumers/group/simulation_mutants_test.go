//go:build synctests

package group

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"converge/internal/mutants"
)

// simPlants are faults of the runtime, and of what PostgreSQL does for it.
var simPlants = []mutants.Fault{
	{"consumers/group/memory_test.go", "!ok || stored != b.expected || b.next <= b.expected {",
		`!planted("the fence lets everyone pass") && (!ok || stored != b.expected || b.next <= b.expected) {`},
	{"consumers/group/memory_test.go", "\tif t.store.offsets[b.partition] != b.expected {",
		"\tif t.store.offsets[b.partition] != b.expected && !planted(\"the fence lets everyone pass\") {"},
	{"consumers/group/batch.go", "tx := took.tx",
		`tx := took.tx
	if planted("the position is committed before the effects") {
		if err := tx.Commit(ctx); err != nil {
			return err
		}
		if tx, err = g.store.begin(ctx); err != nil {
			return err
		}
	}`},
	{"consumers/group/batch.go", "delete(t.fresh, e.ID) // the batch may hold it twice",
		`delete(t.fresh, e.ID)
		for _, other := range events {
			if planted("duplicates are told by their key") && string(other.Key) == string(e.Key) {
				delete(t.fresh, other.ID)
			}
		}`},
	{"consumers/group/batch.go", "if !t.fresh[e.ID] {", `if !t.fresh[e.ID] && !planted("the inbox is not asked") {`},
	{"consumers/group/batch.go", "stored, err := g.applyBatch(ctx, b)",
		`if planted("Kafka is told before the database") {
		g.hint(p, b.next)
		g.tellKafka(ctx)
	}
	stored, err := g.applyBatch(ctx, b)`},
	{"consumers/group/handle.go", "return class == event.ClassInfrastructure ||",
		`return class == event.ClassInfrastructure && !planted("an outage counts as an attempt") ||`},
	{"consumers/group/handle.go", "} else if held[g.ladder.KeyOf(e)] {",
		`} else if held[g.ladder.KeyOf(e)] && !planted("a follower is applied past its head") {`},
	{"consumers/group/memory_held_test.go", "if h, there := m.held[k]; !there || h.token != w.Token {",
		`if h, there := m.held[k]; !there || h.token != w.Token && !planted("a stale token runs") {`},
	{"consumers/group/memory_held_test.go", "if h, there := m.held[k]; there && h.token == w.Token {",
		`if h, there := m.held[k]; there && (h.token == w.Token || planted("a stale token runs")) {`},
	{"consumers/group/wake.go", "repeated, err := g.store.sweep(ctx)",
		`if planted("nobody repeats lost wake-ups") {
		return nil
	}
	repeated, err := g.store.sweep(ctx)`},
	{"consumers/group/memory_held_test.go", "\t\tif len(m.waiting[k]) > 0 {\n\t\t\treturn sqlState",
		"\t\tif len(m.waiting[k]) > 0 && !planted(\"there is no foreign key\") {\n\t\t\treturn sqlState"},
	{"consumers/group/memory_held_test.go", "if _, ok := m.held[k]; !ok {\n\t\t\treturn sqlState",
		"if _, ok := m.held[k]; !ok && !planted(\"there is no foreign key\") {\n\t\t\treturn sqlState"},
}

// simVerdicts is what the judge must say of each.
var simVerdicts = map[string]string{
	"the fence lets everyone pass":                 " went from ",
	"the position is committed before the effects": "lost: ",
	"duplicates are told by their key":             "lost: ",
	"the inbox is not asked":                       "twice: ",
	"Kafka is told before the database":            "ahead: ",
	"an outage counts as an attempt":               "blamed: ",
	"a follower is applied past its head":          "overtaken: ",
	"a stale token runs":                           "early: ",
	"nobody repeats lost wake-ups":                 "held: ",
	"there is no foreign key":                      "overtaken: ",
}

// The simulations are worth what they catch: each planted fault must be found within 300 seeds, for its reason.
// Most are in the first two; a missing foreign key takes a race that one seed in about 70 runs into.
func TestSimulationsFindPlantedFaults(t *testing.T) {
	t.Setenv("GOFLAGS", strings.TrimSpace(os.Getenv("GOFLAGS")+" -tags=synctests"))
	binary := mutants.Build(t, simPlants, "test", "-c", "-vet=off", "converge/consumers/group")
	for fault, says := range simVerdicts {
		t.Run(fault, func(t *testing.T) {
			command := exec.CommandContext(t.Context(), binary, "-test.run", "^TestSimulatedGroupsKeepTheirPromises$", "-test.timeout", "15m", "-test.v", "-sim.runs", "300")
			command.Env = append(os.Environ(), "PLANTED="+fault)
			out, err := command.CombinedOutput()
			if err == nil {
				t.Fatal("the simulations found nothing wrong")
			}
			if !strings.Contains(string(out), says) {
				t.Errorf("the simulations found another reason than %q:\n%.3000s", says, out)
			}
			t.Logf("%.600s", out)
		})
	}
}
