package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestEndToEndTheWorkedExamplesComeOutAsTheySay(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is not installed")
	}
	args := upArgs(t, filepath.Join(t.TempDir(), "state"))
	up := start(t, freeAddr(t), args...).ready()
	examples := func() string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), filepath.Join("..", "..", "docs", "examples.sh"))
		cmd.Env = append(os.Environ(), "API="+up.base, "CONVERGE="+binary(t), "BROKERS="+args[4], "REGISTRY=http://"+args[6])
		cmd.WaitDelay = 5 * time.Second
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("docs/examples.sh: %v\n%s", err, tail(string(out), 40))
		}
		return string(out)
	}
	if first := examples(); !strings.Contains(first, "HTTP/1.1 201 Created") {
		t.Errorf("nothing was created:\n%s", tail(first, 40))
	}
	examples() // what it did once it does not do again
	if payments, ok := up.get("/payments?order_id=42").json(t)["items"].([]any); !ok || len(payments) != 1 {
		t.Errorf("order 42 has the payments %v, want one", payments)
	}
}
