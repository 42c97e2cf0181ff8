package schemas_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"converge/schemas"
)

var update = flag.Bool("update", false, "write docs/topology.md instead of comparing it")

// holes returns what is missing in a choreography, in words.
func holes(routes []schemas.Route) []string {
	var missing []string
	for _, r := range routes {
		if r.Emitter == "" {
			missing = append(missing, r.Type+" has no emitter")
		}
		if len(r.Readers) == 0 {
			missing = append(missing, r.Type+" has no reader")
		}
		if r.Topic != r.Emitter {
			missing = append(missing, fmt.Sprintf("%s is on topic %s: a service emits on the topic of its name", r.Type, r.Topic))
		}
		seen := map[string]bool{}
		for _, reader := range r.Readers {
			if reader == "" || seen[reader] || reader == r.Emitter {
				missing = append(missing, fmt.Sprintf("%s names the reader %q twice, or it is its own emitter or nobody", r.Type, reader))
			}
			seen[reader] = true
		}
	}
	return missing
}

func TestEveryEventHasAnEmitterAndAReader(t *testing.T) {
	for _, hole := range holes(schemas.Routes()) {
		t.Error(hole)
	}
}

func TestPlantedHolesAreReported(t *testing.T) {
	for wanted, route := range map[string]schemas.Route{
		"no reader":  {Type: "E", Topic: "a", Emitter: "a"},
		"no emitter": {Type: "E", Readers: []string{"b"}},
		"twice":      {Type: "E", Topic: "a", Emitter: "a", Readers: []string{"b", "b"}},
		"on topic":   {Type: "E", Topic: "x", Emitter: "a", Readers: []string{"b"}},
	} {
		got := holes([]schemas.Route{route})
		if !slices.ContainsFunc(got, func(h string) bool { return strings.Contains(h, wanted) }) {
			t.Errorf("got %q, want a report of %q", got, wanted)
		}
	}
}

func TestReadModelsBelongToReaders(t *testing.T) {
	for reader := range schemas.ReadModels() {
		if !slices.Contains(schemas.Readers(), reader) {
			t.Errorf("%s builds a read model and reads nothing", reader)
		}
	}
}

func TestSubscriptionsFollowFromTheRoutes(t *testing.T) {
	for _, reader := range schemas.Readers() {
		topics, types := schemas.ReadBy(reader)
		for _, r := range schemas.Routes() {
			reads := slices.Contains(r.Readers, reader)
			if reads != slices.Contains(types, r.Type) {
				t.Errorf("%s, %s: the route says %t", reader, r.Type, reads)
			}
			if reads && !slices.Contains(topics, r.Topic) {
				t.Errorf("%s reads %s and not its topic %s", reader, r.Type, r.Topic)
			}
		}
	}
}

func TestTheDocumentIsCurrent(t *testing.T) {
	path := filepath.Join("..", "docs", "topology.md")
	want := schemas.TopologyDocument()
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what schemas/topology.go says: run go test ./schemas -run Document -update", path)
	}
}
