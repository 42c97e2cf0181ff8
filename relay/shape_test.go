package relay

import (
	"strings"
	"testing"

	"converge/relay/pgoutput"
)

// A template that is taken names, of any row, what its text says with the braces filled in.
func FuzzTemplate(f *testing.F) {
	for _, text := range []string{"{topic}", "outbox.event.{aggregate_type}", "{a", "a}", "{}", "{{topic}}", "{topic}{event_type}", ""} {
		f.Add(text, "orders", "Placed")
	}
	f.Fuzz(func(t *testing.T, text, topic, eventType string) {
		s := shape{columns: &convergeColumns}
		parsed, err := s.template(text)
		if err != nil {
			return
		}
		l := &layout{shape: &s}
		for i := range l.index {
			l.index[i] = i
		}
		tuple := make(pgoutput.Tuple, fields)
		tuple[fieldTopic].Data, tuple[fieldEventType].Data = []byte(topic), []byte(eventType)
		var scratch []byte
		want := strings.NewReplacer("{topic}", topic, "{event_type}", eventType, "{aggregate_type}", "", "{aggregate_id}", "", "{content_type}", "").Replace(text)
		for range 2 { // the scratch is used again
			if got := string(parsed.name(&scratch, l, tuple)); got != want {
				t.Fatalf("%q names %q, want %q", text, got, want)
			}
		}
	})
}

func TestRowsOfSomeoneElsesMakingNameTheirTopic(t *testing.T) {
	cfg := Config{Topic: "events.{aggregate_type}"}
	s, err := cfg.withShape()
	if err != nil {
		t.Fatal(err)
	}
	l := &layout{shape: &s}
	for i := range l.index {
		l.index[i] = i
	}
	tuple := make(pgoutput.Tuple, fields)
	tuple[fieldTopic].Data, tuple[fieldAggregateType].Data = []byte("own"), []byte("order")
	var scratch []byte
	for eventType, want := range map[string]string{"": "own", "Placed": "events.order"} {
		tuple[fieldEventType].Data = []byte(eventType)
		if got := string(l.topicOf(&scratch, tuple)); got != want {
			t.Errorf("a row of type %q goes to %s, want %s", eventType, got, want)
		}
	}
}
