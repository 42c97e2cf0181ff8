package schemas

import (
	"fmt"
	"slices"
	"strings"
)

// Mermaid draws the choreography as a Mermaid flowchart: services are boxes, an arrow carries the events
// that its head reads from its tail. Read models hang below the services that build them. The text is
// the same for the same [Routes].
func Mermaid() string {
	type pair struct{ from, to string }
	var order []pair
	events := map[pair][]string{}
	for _, r := range Routes() {
		for _, reader := range r.Readers {
			p := pair{r.Emitter, reader}
			if _, ok := events[p]; !ok {
				order = append(order, p)
			}
			events[p] = append(events[p], r.Type)
		}
	}
	var b strings.Builder
	b.WriteString("flowchart LR\n")
	for _, p := range order {
		fmt.Fprintf(&b, "  %s -- \"%s\" --> %s\n", p.from, strings.Join(events[p], "<br/>"), p.to)
	}
	models := ReadModels()
	for _, reader := range Readers() {
		if model, ok := models[reader]; ok {
			fmt.Fprintf(&b, "  %s -.-> %s[(%s)]\n", reader, model, model)
		}
	}
	return b.String()
}

// TopologyDocument is docs/topology.md: the diagram, and who emits and reads what.
func TopologyDocument() string {
	var b strings.Builder
	b.WriteString("# Who tells whom\n\n")
	b.WriteString("Written by `go test ./schemas -run Document -update` from `schemas/topology.go`; do not edit it here.\n\n")
	b.WriteString("There is no orchestrator: a service reacts to what others say. An arrow carries events from who emits\nthem to who reads them; every emitter has one topic, named after it.\n\n")
	b.WriteString("```mermaid\n" + Mermaid() + "```\n\n")
	b.WriteString("| event | topic | emitted by | read by |\n|---|---|---|---|\n")
	for _, r := range Routes() {
		readers := slices.Clone(r.Readers)
		slices.Sort(readers)
		fmt.Fprintf(&b, "| [`%s`](../schemas/%s.avsc) | `%s` | %s | %s |\n", r.Type, r.Type, r.Topic, r.Emitter, strings.Join(readers, ", "))
	}
	return b.String()
}
