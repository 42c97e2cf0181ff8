package console

import (
	"testing"

	"converge/internal/mutants"
)

var faults = []mutants.Fault{
	{"console/http.go", "httpapi.Routed(mux), c.cfg.AllowRemote)", `httpapi.Routed(mux), c.cfg.AllowRemote || planted("any name is answered"))`},
	{"console/http.go", "guarded(httpapi.Local(", `guarded(func(next http.Handler, allowRemote bool) http.Handler {
		if planted("nothing is asked") {
			return next
		}
		return httpapi.Local(next, allowRemote)
	}(`},
}

var verdicts = map[string]mutants.Verdict{
	"any name is answered": {"TestOnlyNamesOfThisMachineAreAnswered", "closed: GET / of evil.example: 200"},
	"nothing is asked":     {"TestOnlyNamesOfThisMachineAreAnswered", "open: POST /lag of localhost:8080: 405"},
}

// The tests are worth what they catch: each planted fault must be found, for its reason.
func TestTheTestsFindPlantedFaults(t *testing.T) {
	mutants.Find(t, "converge/console", faults, verdicts)
}
