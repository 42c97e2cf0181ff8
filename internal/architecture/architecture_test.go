// Package architecture holds no code: its tests keep the rules on who may import whom, and that every
// package says what it promises. A rule that is broken names the reason it exists.
package architecture

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "converge"

// pkg is what `go list -deps -json` says of a package.
type pkg struct {
	ImportPath string
	Dir        string
	Standard   bool
	GoFiles    []string
	Imports    []string
	Deps       []string
}

func (p pkg) ours() bool {
	return p.ImportPath == module || strings.HasPrefix(p.ImportPath, module+"/")
}

// rule bans dependencies, direct or not.
type rule struct {
	packages []string // import path prefixes below the module
	banned   []string // import path prefixes
	direct   bool     // only the package's own imports count
	because  string
}

var services = []string{
	"producers/orders", "producers/payments", "producers/transfers", "producers/identity",
	"consumers/inventory", "consumers/shipping", "consumers/ledger", "consumers/billing",
	"consumers/analytics", "consumers/orderviews",
}

var rules = []rule{
	{
		packages: append([]string{"producers/outbox", "producers/httpapi", "consumers/event", "consumers/inbox"}, services...),
		banned:   []string{"github.com/twmb/franz-go"},
		because:  "a service that can publish can dual-write: events leave only through producers/outbox",
	},
	{
		packages: services,
		banned:   []string{module + "/consumers/group", module + "/consumers/retry", module + "/relay", module + "/lab", module + "/console", module + "/internal/sandbox"},
		because:  "a service knows events and transactions, not the machinery that brings them",
	},
	{
		packages: []string{"relay"},
		banned:   []string{module + "/producers", module + "/consumers", module + "/schemas", module + "/lab", module + "/console"},
		because:  "the relay moves rows of any outbox: it knows no service",
	},
	{
		packages: []string{"relay/pgoutput"},
		banned:   []string{"github.com/", module + "/relay"},
		because:  "decoding is pure",
	},
	{
		packages: []string{"consumers/event"},
		banned:   []string{module + "/"},
		because:  "what a handler sees must not drag anything else along",
	},
	{
		packages: []string{"producers/outbox", "consumers/inbox"},
		banned: []string{module + "/producers/httpapi", module + "/consumers/group", module + "/consumers/retry", module + "/relay",
			module + "/internal/database", module + "/internal/opshttp", module + "/internal/process", module + "/internal/sandbox"},
		because: "they are libraries for any service",
	},
	{
		packages: []string{"consumers/group", "consumers/retry"},
		banned:   []string{module + "/relay", module + "/lab", module + "/console", module + "/schemas", module + "/producers/httpapi"},
		because:  "the consumer runtime is a library: it knows no service and no schema",
	},
	{
		packages: []string{"lab/history"},
		banned:   []string{module + "/producers", module + "/consumers", module + "/relay", module + "/schemas"},
		because:  "the checker is independent of the code it judges",
	},
	{
		packages: []string{"producers", "consumers", "relay", "schemas"},
		banned:   []string{module + "/lab", module + "/console", module + "/cmd"},
		because:  "imports point down only",
	},
}

// filesRule bans an import everywhere but in the files named.
type filesRule struct {
	banned  string
	allowed []string
	because string
}

var filesRules = []filesRule{
	{"github.com/hamba/avro/v2", []string{"schemas/codec.go"}, "its upstream is archived: one file to replace"},
}

func TestImportsPointDownOnly(t *testing.T) {
	for _, violation := range check(list(t, "")) {
		t.Error(violation)
	}
}

// The rules are worth what they catch: each planted import must be reported, for its reason.
func TestPlantedViolationsAreReported(t *testing.T) {
	plants := []struct{ dir, file, source, wanted string }{
		{"producers/orders", "planted.go", "package orders\n\nimport _ \"github.com/twmb/franz-go/pkg/kgo\"\n", "can dual-write"},
		{"consumers/billing", "planted.go", "package billing\n\nimport _ \"converge/consumers/group\"\n", "can dual-write"},
		{"relay", "planted.go", "package relay\n\nimport _ \"converge/producers/outbox\"\n", "knows no service"},
		{"lab/history", "planted.go", "package history\n\nimport _ \"converge/consumers/inbox\"\n", "independent of the code it judges"},
		{"schemas", "planted.go", "package schemas\n\nimport _ \"github.com/hamba/avro/v2\"\n", "one file to replace"},
		{"producers/orders", "rules.go", "package orders\n\nimport _ \"github.com/jackc/pgx/v5\"\n", "rules are pure"},
	}
	for _, plant := range plants {
		t.Run(plant.dir+" "+plant.wanted, func(t *testing.T) {
			root := moduleRoot(t)
			dir := t.TempDir()
			planted := filepath.Join(dir, plant.file)
			if err := os.WriteFile(planted, []byte(plant.source), 0o644); err != nil {
				t.Fatal(err)
			}
			overlay, err := json.Marshal(map[string]map[string]string{
				"Replace": {filepath.Join(root, plant.dir, plant.file): planted},
			})
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir, "overlay.json")
			if err := os.WriteFile(file, overlay, 0o644); err != nil {
				t.Fatal(err)
			}
			violations := checkWith(list(t, file), map[string]string{filepath.Join(root, plant.dir, plant.file): planted})
			if !slices.ContainsFunc(violations, func(v string) bool {
				return strings.Contains(v, plant.wanted) && strings.Contains(v, plant.dir)
			}) {
				t.Errorf("the planted import in %s was not reported; got %q", plant.dir, violations)
			}
		})
	}
}

func TestEveryPackageSaysWhatItPromises(t *testing.T) {
	for _, p := range list(t, "") {
		if !p.ours() || len(p.GoFiles) == 0 {
			continue
		}
		if words := len(strings.Fields(packageComment(t, p))); words < 12 {
			t.Errorf("%s: the package comment has %d words: state the guarantee, then how it fails", p.ImportPath, words)
		}
	}
}

func packageComment(t *testing.T, p pkg) string {
	t.Helper()
	var text strings.Builder
	for _, name := range p.GoFiles {
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		text.WriteString(file.Doc.Text())
	}
	return text.String()
}

func check(packages []pkg) []string { return checkWith(packages, nil) }

func checkWith(packages []pkg, replaced map[string]string) []string {
	var violations []string
	for _, p := range packages {
		if !p.ours() {
			continue
		}
		path := strings.TrimPrefix(p.ImportPath, module+"/")
		for _, r := range rules {
			if !slices.ContainsFunc(r.packages, func(prefix string) bool { return below(path, prefix) }) {
				continue
			}
			deps := p.Deps
			if r.direct {
				deps = p.Imports
			}
			for _, dep := range deps {
				if slices.ContainsFunc(r.banned, func(prefix string) bool { return strings.HasPrefix(dep, prefix) }) {
					violations = append(violations, fmt.Sprintf("%s depends on %s: %s", path, dep, r.because))
				}
			}
		}
		violations = append(violations, checkFiles(p, path, replaced)...)
	}
	return violations
}

func below(path, prefix string) bool { return path == prefix || strings.HasPrefix(path, prefix+"/") }

func checkFiles(p pkg, path string, replaced map[string]string) []string {
	var violations []string
	for _, name := range p.GoFiles {
		full := filepath.Join(p.Dir, name)
		if r, ok := replaced[full]; ok {
			full = r
		}
		file, err := parser.ParseFile(token.NewFileSet(), full, nil, parser.ImportsOnly)
		if err != nil {
			violations = append(violations, err.Error())
			continue
		}
		for _, spec := range file.Imports {
			imported := strings.Trim(spec.Path.Value, `"`)
			for _, r := range filesRules {
				if imported == r.banned && !slices.Contains(r.allowed, path+"/"+name) {
					violations = append(violations, fmt.Sprintf("%s/%s imports %s: %s", path, name, imported, r.because))
				}
			}
			if name == "rules.go" && (strings.HasPrefix(imported, "github.com/jackc/pgx") || strings.HasPrefix(imported, "github.com/twmb/") || imported == "net/http") {
				violations = append(violations, fmt.Sprintf("%s/%s imports %s: rules are pure", path, name, imported))
			}
		}
	}
	return violations
}

func moduleRoot(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func list(t *testing.T, overlay string) []pkg {
	t.Helper()
	args := []string{"list", "-deps", "-json=ImportPath,Dir,Standard,GoFiles,Imports,Deps"}
	if overlay != "" {
		args = append(args, "-overlay="+overlay)
	}
	cmd := exec.Command("go", append(args, "./...")...)
	cmd.Dir = moduleRoot(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("listing packages: %v\n%s", err, stderr.String())
	}
	var packages []pkg
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		if !p.Standard {
			packages = append(packages, p)
		}
	}
}
