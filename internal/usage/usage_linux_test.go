package usage

import (
	"os"
	"os/exec"
	"testing"
)

// A child's time is its family's while it runs, and still after it has ended.
func TestFamilyCountsChildren(t *testing.T) {
	pid := os.Getpid()
	family := func() float64 {
		t.Helper()
		sum, err := Family(pid)
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	before := family()
	child := exec.Command("sh", "-c", "while :; do :; done")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	used := func() float64 { seconds, _ := CPU(child.Process.Pid); return seconds }
	for used() < 0.2 {
		alone, err := CPU(pid)
		if err != nil {
			t.Fatal(err)
		}
		if now := family(); now < alone+used()-0.05 { // they are read one after the other
			t.Fatalf("the family has used %.2f s, of which we have used %.2f and the child %.2f", now, alone, used())
		}
	}
	_ = child.Process.Kill()
	_ = child.Wait()
	alone, err := CPU(pid)
	if err != nil {
		t.Fatal(err)
	}
	if now := family(); now < before+0.2 || now < alone+0.2 {
		t.Errorf("the family has used %.2f s after its child, before it %.2f; without it %.2f", now, before, alone)
	}
}

func TestMemoryOfAProcess(t *testing.T) {
	resident, err := Resident(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	peak, err := Peak(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if resident < 1<<20 || peak < resident {
		t.Errorf("%d bytes resident, %d at most", resident, peak)
	}
}

func TestMeterTellsPartiesFromOthers(t *testing.T) {
	m := Start(map[string]func() (float64, error){"self": Self})
	for used := m.before["self"]; used < m.before["self"]+0.1; {
		var err error
		if used, err = Self(); err != nil {
			t.Fatal(err)
		}
	}
	r := m.Read()
	if r.Seconds["self"] < 0.09 || r.Stolen+r.Other+r.Idle > 100 {
		t.Errorf("%+v", r)
	}
}
