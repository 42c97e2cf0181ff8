package console

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"converge/schemas"
)

var ladder = []time.Duration{time.Second, 10 * time.Second, time.Minute, 10 * time.Minute}

// tangles returns what would be hard to read: boxes that overlap or leave the picture, pipes that do not
// end at boxes or run outside the gaps between columns, a reader without a line per topic.
func tangles(d *diagram, routes []schemas.Route) []string {
	var wrong []string
	for i, a := range d.Boxes {
		if a.X < 0 || a.Y < drawTop || a.X+a.W > d.Width || a.Y+a.H > d.Height {
			wrong = append(wrong, fmt.Sprintf("%s leaves the picture: %+v in %dx%d", a.ID, a, d.Width, d.Height))
		}
		for _, b := range d.Boxes[i+1:] {
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				wrong = append(wrong, fmt.Sprintf("%s overlaps %s", a.ID, b.ID))
			}
			if a.ID == b.ID {
				wrong = append(wrong, a.ID+" is drawn twice")
			}
		}
	}
	gaps := [][2]int{{emitterX + emitterW, relayX}, {relayX + relayW, topicX}, {topicX + topicW, groupX}, {groupX + groupW, afterX}}
	for _, p := range d.Pipes {
		var x1, y1, x2, y2 int
		if _, err := fmt.Sscanf(p.Path, "M%d %dH%d", &x1, &y1, &x2); err != nil {
			var b [4]int
			if _, err := fmt.Sscanf(p.Path, "M%d %dC%d %d %d %d %d %d", &x1, &y1, &b[0], &b[1], &b[2], &b[3], &x2, &y2); err != nil {
				wrong = append(wrong, fmt.Sprintf("%s has a path of another kind: %s", p.ID, p.Path))
				continue
			}
		} else {
			y2 = y1
		}
		if !slices.Contains(gaps, [2]int{x1, x2}) {
			wrong = append(wrong, fmt.Sprintf("%s runs from %d to %d, which is no gap", p.ID, x1, x2))
		}
		if !touches(d, x1, y1, true) || !touches(d, x2, y2, false) {
			wrong = append(wrong, fmt.Sprintf("%s ends in the air: %s", p.ID, p.Path))
		}
	}
	for _, r := range routes {
		for _, reader := range r.Readers {
			if !slices.ContainsFunc(d.Pipes, func(p pipe) bool { return p.ID == "pipe:read:"+reader+":"+r.Topic }) {
				wrong = append(wrong, reader+" has no pipe from "+r.Topic)
			}
		}
	}
	return wrong
}

// touches reports whether a box's right (or left) side is at the point.
func touches(d *diagram, x, y int, right bool) bool {
	return slices.ContainsFunc(d.Boxes, func(b box) bool {
		side := b.X
		if right {
			side += b.W
		}
		return side == x && b.Y <= y && y <= b.Y+b.H
	})
}

func TestTheTopologyIsDrawnWithoutTangles(t *testing.T) {
	d := draw(schemas.Routes(), schemas.ReadModels(), ladder)
	for _, wrong := range tangles(d, schemas.Routes()) {
		t.Error(wrong)
	}
	// At 1280 by 800 the page has some 570 pixels of height left for 1206 of width.
	if d.Height > 660 {
		t.Errorf("%d high: letters would be below 10 pixels on a small window", d.Height)
	}
}

func TestAnyTopologyIsDrawnWithoutTangles(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	rapid.Check(t, func(t *rapid.T) {
		var routes []schemas.Route
		for i := range rapid.IntRange(1, 20).Draw(t, "routes") {
			emitter := rapid.SampledFrom(names[:5]).Draw(t, "emitter")
			routes = append(routes, schemas.Route{
				Type: fmt.Sprint("T", i), Topic: "topic-" + emitter, Emitter: emitter,
				Readers: rapid.SliceOfNDistinct(rapid.SampledFrom(names), 1, 4, rapid.ID).Draw(t, "readers"),
			})
		}
		if wrong := tangles(draw(routes, map[string]string{"a": "model_a", "c": "model_c"}, ladder), routes); len(wrong) > 0 {
			t.Fatal(strings.Join(wrong, "\n"))
		}
	})
}

func TestDelaysAreWrittenAsTopicsNameThem(t *testing.T) {
	for d, want := range map[time.Duration]string{
		time.Second: "1s", 10 * time.Second: "10s", time.Minute: "1m", 10 * time.Minute: "10m", time.Hour: "1h",
		90 * time.Second: "90s", 1500 * time.Millisecond: "1.5s",
	} {
		if got := delayName(d); got != want {
			t.Errorf("%v is written %q, want %q", d, got, want)
		}
	}
}
