package usage

import "os"

// Meter tells what named parties use from [Start] on. It belongs to one goroutine at a time.
type Meter struct {
	parties map[string]func() (float64, error)
	before  map[string]float64
	machine Processors
}

// Reading is what a stretch of time took. What cannot be told, as on systems that are not Linux, is 0.
type Reading struct {
	Seconds map[string]float64 `json:"cpu_seconds"`     // of each party
	Total   float64            `json:"machine_seconds"` // of all processors, idle or not
	Stolen  float64            `json:"stolen_percent"`  // of the machine's processor time, by the hypervisor
	Other   float64            `json:"others_percent"`  // by everybody else on the machine
	Idle    float64            `json:"idle_percent"`    // by nobody
}

// Self is this process as a party.
func Self() (float64, error) { return CPU(os.Getpid()) }

// Start begins to count. A party's function returns the processor time, in seconds, that it has used so far.
func Start(parties map[string]func() (float64, error)) *Meter {
	m := &Meter{parties: parties, before: map[string]float64{}}
	for name, used := range parties {
		m.before[name], _ = used()
	}
	m.machine, _ = ReadProcessors()
	return m
}

// Read returns what was used since the start. A party that has ended has used nothing.
func (m *Meter) Read() Reading {
	r := Reading{Seconds: map[string]float64{}}
	known := 0.0
	for name, used := range m.parties {
		if now, err := used(); err == nil {
			r.Seconds[name] = now - m.before[name]
			known += r.Seconds[name]
		}
	}
	now, err := ReadProcessors()
	if err != nil {
		return r
	}
	passed := now.Since(m.machine)
	share := func(seconds float64) float64 { return 100 * max(0, seconds) / max(passed.Total, 0.01) }
	r.Total = passed.Total
	r.Stolen, r.Idle, r.Other = share(passed.Stolen), share(passed.Idle), share(passed.Total-passed.Idle-passed.Stolen-known)
	return r
}
