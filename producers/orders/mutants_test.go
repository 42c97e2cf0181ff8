package orders_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// plants are faults for the rules, each behind a switch, so that one build holds them all.
var plants = []struct{ file, old, new string }{
	{"consumers/inventory/rules.go", "if s == Released {",
		`if s == Untouched && planted("inventory leaves no tombstone") {
			return s, SaidReleased
		}
		if s == Released && !planted("inventory acknowledges every compensation") {`},
	{"consumers/inventory/rules.go", "if s == Reserved {",
		`if s == Reserved || s == Rejected && planted("inventory releases what it never reserved") {`},
	{"consumers/inventory/rules.go", "if shelf[sku].Available < quantity {",
		`if shelf[sku].Available < quantity && !(sku == "RARE-1" && planted("inventory reserves what is not there")) {`},
	{"producers/payments/rules.go", "if s == Voided {",
		`if s == Untouched && planted("payments leaves no tombstone") {
			return s, SaidVoided
		}
		if s == Voided || s == Declined && planted("payments does not acknowledge what it declined") {`},
	{"producers/payments/rules.go", "if s != Waiting {",
		`if s != Waiting && !(s == Voided && planted("a slow card answers after the payment was voided")) {`},
	{"consumers/shipping/rules.go", "if s == Cancelled {",
		`if s == Untouched && planted("shipping leaves no tombstone") {
			return s, SaidCancelled
		}
		if s == Cancelled {`},
	{"consumers/shipping/rules.go", "if s != Untouched {",
		`if s != Untouched && !(s == Cancelled && planted("shipping ships after a cancellation")) {`},
	{"producers/orders/rules.go", "next.Facts |= facts(in)",
		`if s.Outcome != Undecided || !facts(in).any(acknowledgements) || !planted("orders forgets an acknowledgement that comes early") {
			next.Facts |= facts(in)
		}`},
	{"producers/orders/rules.go", "case TimedOut, WasCancelled:\n\t\treturn acknowledgements",
		`case TimedOut, WasCancelled:
			if planted("orders waits for stock alone") {
				return saidReleased
			}
			return acknowledgements`},
	{"producers/orders/rules.go", "if next.Outcome == Undecided {",
		`if next.Outcome == Undecided ||
			in == ShipmentArranged && planted("the pivot overrules a cancellation") ||
			in == Cancel && planted("a cancellation overrules what was decided") {`},
	{"producers/orders/rules.go", "case s.Facts.all(s.Outcome.awaits()):",
		`case s.Facts.all(s.Outcome.awaits()) && !(s.Overdue && planted("orders stays stuck")):`},
}

// verdicts is what the model must say of each fault.
var verdicts = map[string]string{
	"inventory leaves no tombstone":                      "FAILED, but RESERVED",
	"inventory acknowledges every compensation":          "StockReleased was said twice",
	"inventory releases what it never reserved":          "BOOK-1: {Available:7 Reserved:-2}",
	"inventory reserves what is not there":               "RARE-1: {Available:-1 Reserved:1}",
	"payments leaves no tombstone":                       "FAILED, but RELEASED, AUTHORIZED",
	"payments does not acknowledge what it declined":     "everything is delivered and the order waits in COMPENSATING",
	"a slow card answers after the payment was voided":   "FAILED, but RELEASED, AUTHORIZED",
	"shipping leaves no tombstone":                       "FAILED, but RELEASED, VOIDED, ARRANGED",
	"shipping ships after a cancellation":                "FAILED, but RELEASED, VOIDED, ARRANGED",
	"orders forgets an acknowledgement that comes early": "everything is delivered and the order waits in COMPENSATING",
	"orders waits for stock alone":                       "FAILED, but",
	"the pivot overrules a cancellation":                 "the outcome cancelled became completed by ShipmentArranged",
	"a cancellation overrules what was decided":          "became cancelled by cancel",
	"orders stays stuck":                                 "everything is delivered and the order waits in STUCK",
}

// The model is worth what it catches: each planted fault must be found, for its reason.
func TestModelFindsPlantedFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package anew")
	}
	binary := buildWithPlants(t)
	run := func(fault string) (string, error) {
		cmd := exec.CommandContext(t.Context(), binary, "-test.run", "^TestEverySagaEndsCompletedOrFullyCompensated$")
		cmd.Env = append(os.Environ(), "PLANTED="+fault)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run("none"); err != nil {
		t.Fatalf("the model fails without a fault: %v\n%s", err, out)
	}
	for fault, verdict := range verdicts {
		t.Run(fault, func(t *testing.T) {
			out, err := run(fault)
			if err == nil {
				t.Fatal("the model found nothing wrong")
			}
			if !strings.Contains(out, verdict) {
				t.Errorf("the model found another reason than %q:\n%.3000s", verdict, out)
			}
		})
	}
}

func buildWithPlants(t *testing.T) (binary string) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	replace, texts := map[string]string{}, map[string]string{}
	for _, p := range plants {
		original := filepath.Join(root, p.file)
		if texts[original] == "" {
			text, err := os.ReadFile(original)
			if err != nil {
				t.Fatal(err)
			}
			texts[original] = string(text)
			pkg := filepath.Dir(original)
			texts[filepath.Join(pkg, "planted.go")] = "package " + filepath.Base(pkg) +
				"\n\nimport \"os\"\n\nfunc planted(fault string) bool { return os.Getenv(\"PLANTED\") == fault }\n"
		}
		if n := strings.Count(texts[original], p.old); n != 1 {
			t.Fatalf("%q stands %d times in %s", p.old, n, p.file)
		}
		texts[original] = strings.Replace(texts[original], p.old, p.new, 1)
	}
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
	binary = filepath.Join(dir, "model.test")
	out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-overlay", file, "-o", binary, "converge/producers/orders").CombinedOutput()
	if err != nil {
		t.Fatalf("building with the faults: %v\n%s", err, out)
	}
	return binary
}
