package console

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"converge/schemas"
)

// diagram is the flow as drawn: boxes in columns from left to right (services, relay, topics, groups, and
// what follows a group), and pipes only in the gaps between columns, so that no pipe runs under a label.
// A service that emits and reads has a box on either side. Numbers and colours come later, by script.
type diagram struct {
	Width, Height int
	Columns       []caption
	Boxes         []box
	Pipes         []pipe
}

// caption is a column's heading.
type caption struct {
	X    int
	Text string
}

// box is something to select. ID is kind:name, as in topic:orders.
type box struct {
	ID, Kind, Title string
	Label           string // what it is, for those who do not see the picture
	X, Y, W, H      int
	Ports           []port // a group's topics
}

// Middle is half the height.
func (b box) Middle() int { return b.H / 2 }

// port is a line of a group's box: one topic that it reads.
type port struct {
	Topic string
	Y     int // from the box's top to the line's middle
}

// pipe carries events. Topic and Group are "" where a pipe belongs to no one topic or group.
type pipe struct {
	ID, Topic, Group string
	Path             string
}

// Geometry, in units of the drawing: one is a pixel on a window 1280 wide.
const (
	drawWidth  = 1240
	drawTop    = 24 // below the captions
	emitterX   = 0
	emitterW   = 156
	relayX     = 200
	relayW     = 58
	topicX     = 302
	topicW     = 156
	sideH      = 58 // a service's or topic's box
	groupX     = 600
	groupW     = 262
	groupHead  = 24
	groupLine  = 17
	groupFoot  = 4
	afterX     = 896
	afterW     = drawWidth - afterX
	modelH     = 25
	ladderH    = 26
	afterGap   = 4
	groupGap   = 8
	dlqW       = 92
	chipGap    = 5
	portSpread = 40 // of a topic's right side that pipes leave from
)

// draw lays the topology out.
func draw(routes []schemas.Route, readModels map[string]string, rungs []time.Duration) *diagram {
	emitters, topics, readers := members(routes)
	d := &diagram{Width: drawWidth, Columns: []caption{
		{emitterX, "Services"}, {relayX, "Relay"}, {topicX, "Topics"}, {groupX, "Consumer groups"},
		{afterX, "Read models, retries, dead letters"},
	}}
	d.groups(readers, readModels, rungs)
	d.Height = max(d.bottom(), drawTop+len(topics)*(sideH+groupGap))
	d.sources(emitters, topics)
	d.reads(topics, readers)
	return d
}

// members returns the emitters with their topics in the topology's order, and the readers from top to
// bottom: each near the middle of the topics that it reads, which keeps pipes from crossing much.
func members(routes []schemas.Route) (emitters [][2]string, topics []string, readers []reader) {
	by := map[string][]string{}
	for _, r := range routes {
		if !slices.Contains(topics, r.Topic) {
			topics = append(topics, r.Topic)
		}
		if pair := [2]string{r.Emitter, r.Topic}; !slices.Contains(emitters, pair) {
			emitters = append(emitters, pair)
		}
		for _, name := range r.Readers {
			if !slices.Contains(by[name], r.Topic) {
				by[name] = append(by[name], r.Topic)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(by)) {
		r := reader{name: name, topics: by[name]}
		slices.SortFunc(r.topics, func(a, b string) int { return cmp.Compare(slices.Index(topics, a), slices.Index(topics, b)) })
		for _, t := range r.topics {
			r.middle += float64(slices.Index(topics, t)) / float64(len(r.topics))
		}
		readers = append(readers, r)
	}
	slices.SortStableFunc(readers, func(a, b reader) int { return cmp.Compare(a.middle, b.middle) })
	return emitters, topics, readers
}

type reader struct {
	name   string
	topics []string
	middle float64
}

// groups stacks the readers, and to the right of each its read model and its ladder.
func (d *diagram) groups(readers []reader, readModels map[string]string, rungs []time.Duration) {
	y := drawTop
	for _, r := range readers {
		card := groupHead + groupLine*len(r.topics) + groupFoot
		model, builds := readModels[r.name]
		after := ladderH
		if builds {
			after += modelH + afterGap
		}
		height := max(card, after)
		b := box{
			ID: "group:" + r.name, Kind: "group", Title: r.name, X: groupX, Y: y + (height-card)/2, W: groupW, H: card,
			Label: "Consumer group",
		}
		for i, t := range r.topics {
			b.Ports = append(b.Ports, port{t, groupHead + groupLine*i + groupLine/2})
		}
		d.Boxes = append(d.Boxes, b)
		at := y + (height-after)/2
		if builds {
			d.Boxes = append(d.Boxes, box{
				ID: "model:" + r.name, Kind: "model", Title: model, X: afterX, Y: at, W: afterW, H: modelH,
				Label: "Read model",
			})
			d.short("pipe:model:"+r.name, r.name, at+modelH/2)
			at += modelH + afterGap
		}
		d.short("pipe:retry:"+r.name, r.name, at+ladderH/2)
		d.ladder(r.name, at, rungs)
		y += height + groupGap
	}
}

// short draws the pipe from a group's box to what stands beside it.
func (d *diagram) short(id, group string, y int) {
	d.Pipes = append(d.Pipes, pipe{ID: id, Group: group, Path: fmt.Sprintf("M%d %dH%d", groupX+groupW, y, afterX)})
}

func (d *diagram) ladder(group string, y int, rungs []time.Duration) {
	if len(rungs) > 0 {
		width := (afterW - dlqW - chipGap*len(rungs)) / len(rungs)
		for i, rung := range rungs {
			name := delayName(rung)
			d.Boxes = append(d.Boxes, box{
				ID: "retry:" + group + ":" + name, Kind: "retry", Title: name,
				X: afterX + i*(width+chipGap), Y: y, W: width, H: ladderH,
				Label: "Retries of " + group + " after",
			})
		}
	}
	d.Boxes = append(d.Boxes, box{
		ID: "dlq:" + group, Kind: "dlq", Title: "DLQ", X: drawWidth - dlqW, Y: y, W: dlqW, H: ladderH,
		Label: "Dead letters of " + group,
	})
}

func (d *diagram) bottom() int {
	bottom := 0
	for _, b := range d.Boxes {
		bottom = max(bottom, b.Y+b.H)
	}
	return bottom + 2
}

// sources spreads services and topics over the height, each service in line with its topic, and the relay
// between them.
func (d *diagram) sources(emitters [][2]string, topics []string) {
	y := map[string]int{}
	pitch := (d.Height - drawTop) / max(1, len(topics))
	for i, t := range topics {
		y[t] = drawTop + pitch*i + (pitch-sideH)/2
		d.Boxes = append(d.Boxes, box{
			ID: "topic:" + t, Kind: "topic", Title: t, X: topicX, Y: y[t], W: topicW, H: sideH, Label: "Topic",
		})
	}
	for _, e := range emitters {
		emitter, topic := e[0], e[1]
		middle := y[topic] + sideH/2
		d.Boxes = append(d.Boxes, box{
			ID: "service:" + emitter, Kind: "service", Title: emitter, X: emitterX, Y: y[topic], W: emitterW, H: sideH,
			Label: "Service",
		})
		d.Pipes = append(d.Pipes,
			pipe{ID: "pipe:outbox:" + emitter, Topic: topic, Path: fmt.Sprintf("M%d %dH%d", emitterX+emitterW, middle, relayX)},
			pipe{ID: "pipe:publish:" + topic, Topic: topic, Path: fmt.Sprintf("M%d %dH%d", relayX+relayW, middle, topicX)})
	}
	d.Boxes = append(d.Boxes, box{
		ID: "relay:slot", Kind: "relay", Title: "relay", X: relayX, Y: drawTop, W: relayW, H: d.Height - drawTop - 2,
		Label: "Relay",
	})
}

// reads draws the pipes from topics to the groups' lines. They leave a topic in the order of their ends.
func (d *diagram) reads(topics []string, readers []reader) {
	find := func(id string) box {
		return d.Boxes[slices.IndexFunc(d.Boxes, func(b box) bool { return b.ID == id })]
	}
	for _, t := range topics {
		from := find("topic:" + t)
		type end struct {
			group string
			y     int
		}
		var ends []end
		for _, r := range readers {
			to := find("group:" + r.name)
			for _, p := range to.Ports {
				if p.Topic == t {
					ends = append(ends, end{r.name, to.Y + p.Y})
				}
			}
		}
		for i, e := range ends {
			x1, x2 := from.X+from.W, groupX
			y1 := from.Y + from.H/2 + (2*i-len(ends)+1)*portSpread/(2*max(1, len(ends)))
			bend := (x2 - x1) / 2
			d.Pipes = append(d.Pipes, pipe{
				ID: "pipe:read:" + e.group + ":" + t, Topic: t, Group: e.group,
				Path: fmt.Sprintf("M%d %dC%d %d %d %d %d %d", x1, y1, x1+bend, y1, x2-bend, e.y, x2, e.y),
			})
		}
	}
}

// delayName writes a delay as topics do: 1s, 10s, 1m, 10m, 1h.
func delayName(d time.Duration) string {
	switch {
	case d >= time.Hour && d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= time.Minute && d%time.Minute == 0:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d%time.Second == 0:
		return fmt.Sprintf("%ds", d/time.Second)
	default:
		return d.String()
	}
}
