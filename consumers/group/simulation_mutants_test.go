//go:build synctests

package group

import (
	"fmt"
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
	{"consumers/group/memory_held_test.go", "!there || h.token != w.Token || h.blocked {",
		`!there || h.token != w.Token && !planted("a stale token runs") || h.blocked && !planted("a blocked key is called for") {`},
	{"consumers/group/memory_held_test.go", "there && h.token == w.Token && !h.blocked {",
		`there && (h.token == w.Token || planted("a stale token runs")) && (!h.blocked || planted("a blocked key is called for")) {`},
	{"consumers/group/memory_held_test.go", "if h.blocked || !late.", `if h.blocked && !planted("a blocked key is called for") || !late.`},
	{"consumers/group/handle.go", "f.Blocks = g.cfg.Retry.HoldDead && !held[key]",
		`f.Blocks = g.cfg.Retry.HoldDead && !held[key] && !planted("a dead letter lets its followers go on")`},
	{"consumers/group/wake.go", "if g.cfg.Retry.HoldDead {", `if g.cfg.Retry.HoldDead && !planted("a dead letter lets its followers go on") {`},
	{"consumers/group/handle.go", "return each(ctx, tx, first)",
		`if planted("what is emitted names no cause") {
			ctx = outbox.WithCause(ctx, outbox.Cause{})
		}
		return each(ctx, tx, first)`},
	{"consumers/group/memory_test.go", "t.write(func(db *memoryDB) { db.outbox = append(db.outbox, o) })",
		`if planted("what is emitted does not wait for its transaction") {
			t.store.outbox = append(t.store.outbox, o)
			continue
		}
		t.write(func(db *memoryDB) { db.outbox = append(db.outbox, o) })`},
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
	"the fence lets everyone pass":                      " went from ",
	"the position is committed before the effects":      "lost: ",
	"duplicates are told by their key":                  "lost: ",
	"the inbox is not asked":                            "twice: ",
	"Kafka is told before the database":                 "ahead: ",
	"an outage counts as an attempt":                    "blamed: ",
	"a follower is applied past its head":               "overtaken: ",
	"a stale token runs":                                "early: ",
	"nobody repeats lost wake-ups":                      "held: ",
	"there is no foreign key":                           "orphaned: ",
	"a dead letter lets its followers go on":            "overtaken: ",
	"a blocked key is called for":                       "undecided: ",
	"what is emitted names no cause":                    "forged: an echo of ",
	"what is emitted does not wait for its transaction": "echoed: ",
}

// mutantSeeds is how many seeds a fault may take. A missing foreign key once took 30.
const mutantSeeds = 100

// The simulations are worth what they catch: each planted fault must be found, for its reason.
func TestSimulationsFindPlantedFaults(t *testing.T) {
	binary := mutants.Build(t, simPlants, "test", "-c", "-vet=off", "-tags=synctests", "converge/consumers/group")
	first := firstSeed()
	for fault, says := range simVerdicts {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			command := exec.CommandContext(t.Context(), binary, "-test.run", "^TestSimulatedGroupsKeepTheirPromises$", "-test.timeout", "15m", "-test.v",
				"-sim.seed", fmt.Sprint(first), "-sim.runs", fmt.Sprint(mutantSeeds))
			command.Env = append(os.Environ(), "PLANTED="+fault)
			out, err := command.CombinedOutput()
			if err == nil {
				t.Fatalf("%d simulations from seed %d on found nothing wrong", mutantSeeds, first)
			}
			if !strings.Contains(string(out), says) {
				t.Errorf("the simulations found another reason than %q:\n%.3000s", says, out)
			}
			t.Logf("%.600s", out)
		})
	}
}
