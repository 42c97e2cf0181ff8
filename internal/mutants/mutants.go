// Package mutants builds code with faults in it, to show that the tests find them.
//
// The guarantee: one build holds every fault, each behind a switch that is off unless its fault is meant
// to be there always, and the sources on disk stay as they are; a fault whose place in the code has moved
// fails the build rather than testing nothing. It cannot tell a fault that is found from a test that fails
// for another reason: compare what the tests say with what they should.
package mutants

import (
	"encoding/json"
	"fmt"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Fault replaces Old, which stands once in File, by New. New may switch itself on by planted("its name"),
// or by plantedText("its name", text, old, new), which returns text with old replaced by new; then it is
// there while the environment has PLANTED=its name.
type Fault = struct {
	File     string // from the module's root
	Old, New string
}

const switches = `package %s

import (
	"os"
	"strings"
)

func planted(fault string) bool { return os.Getenv("PLANTED") == fault }

func plantedText(fault, text, old, new string) string {
	if strings.Count(text, old) != 1 {
		panic(old)
	}
	if planted(fault) {
		return strings.Replace(text, old, new, 1)
	}
	return text
}

var _ = plantedText
`

// Verdict is what the tests must say of a fault.
type Verdict = struct {
	Run  string // the test, as -test.run takes it
	Says string // part of what it prints
}

// Find builds the tests of pkg, an import path, with the faults, and runs for each fault that verdicts
// names its test: it must fail with the verdict, and without a fault pass. environment is added to that of
// the tests.
func Find(t *testing.T, pkg string, faults []Fault, verdicts map[string]Verdict, environment ...string) {
	t.Helper()
	binary := Build(t, faults, "test", "-c", "-vet=off", pkg)
	run := func(test, fault string) (string, error) {
		cmd := exec.CommandContext(t.Context(), binary, "-test.run", "^"+test+"$", "-test.timeout", "120s")
		cmd.Env = append(append(os.Environ(), environment...), "PLANTED="+fault)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	tests := map[string]bool{}
	for _, verdict := range verdicts {
		tests[verdict.Run] = true
	}
	for _, test := range slices.Sorted(maps.Keys(tests)) {
		if out, err := run(test, "none"); err != nil || strings.Contains(out, "no tests to run") {
			t.Fatalf("%s does not pass without a fault: %v\n%s", test, err, out)
		}
	}
	for fault, verdict := range verdicts {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			out, err := run(verdict.Run, fault)
			if err == nil {
				t.Fatal("the test found nothing wrong")
			}
			if !strings.Contains(out, verdict.Says) {
				t.Errorf("the test found another reason than %q:\n%.3000s", verdict.Says, out)
			}
		})
	}
}

// runs is what make test-mutants runs.
var runs = regexp.MustCompile("Planted|Mutant")

// Build runs go with the arguments, a build or a test -c, on the sources with the faults, and returns the
// binary. In short mode a test with faults is skipped; its name must be one that make test-mutants runs.
func Build(t *testing.T, faults []Fault, arguments ...string) (binary string) {
	t.Helper()
	if len(faults) > 0 && !runs.MatchString(t.Name()) {
		t.Fatalf("make test-mutants does not run it: its name does not match %s", runs)
	}
	if testing.Short() && len(faults) > 0 {
		t.Skip("faults are planted by make test-mutants")
	}
	root := moduleRoot(t)
	texts := map[string]string{}
	for _, f := range faults {
		original := filepath.Join(root, f.File)
		if texts[original] == "" {
			text, err := os.ReadFile(original)
			if err != nil {
				t.Fatal(err)
			}
			texts[original] = string(text)
			file, err := parser.ParseFile(token.NewFileSet(), original, text, parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			texts[filepath.Join(filepath.Dir(original), "planted.go")] = fmt.Sprintf(switches, file.Name.Name)
		}
		if n := strings.Count(texts[original], f.Old); n != 1 {
			t.Fatalf("%q stands %d times in %s: the fault has to be planted anew", f.Old, n, f.File)
		}
		texts[original] = strings.Replace(texts[original], f.Old, f.New, 1)
	}
	dir := t.TempDir()
	replace := map[string]string{}
	for original, text := range texts {
		file := filepath.Join(dir, fmt.Sprintf("%d.go", len(replace)))
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		replace[original] = file
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, overlay, 0o644); err != nil {
		t.Fatal(err)
	}
	binary = filepath.Join(dir, "planted")
	last := len(arguments) - 1
	flags := append(slices.Clone(arguments[:last]), "-ldflags=-s -w", "-overlay", file, "-o", binary, arguments[last])
	if out, err := exec.CommandContext(t.Context(), "go", flags...).CombinedOutput(); err != nil {
		t.Fatalf("building with the faults: %v\n%s", err, out)
	}
	return binary
}

// moduleRoot returns the directory that holds go.mod.
func moduleRoot(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("there is no go.mod above the test")
		}
	}
}
