package prove

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
)

var ids = func() (ids [8]uuid.UUID) {
	for i := range ids {
		ids[i] = uuid.UUID{15: byte(i + 1)}
	}
	return ids
}()

// story is a history with nothing wrong: a key with an event applied at once, one after two tries, one that died
// and was redriven, one that died for good, and another one.
func story() *History {
	fact := func(n int, key string, seq, fails int, how How) Fact {
		return Fact{ID: ids[n], Key: key, Offset: int64(n), Task: Task{Seq: seq, Value: int64(n + 1), Fails: fails, How: how}}
	}
	effect := func(n int, key string, seq, attempt int) Effect {
		return Effect{ID: ids[n], Key: key, Seq: seq, Attempt: attempt}
	}
	h := &History{
		MaxAttempts: 5,
		Facts: []Fact{fact(0, "a", 0, 0, ""), fact(1, "a", 1, 2, InSQL), fact(2, "a", 2, Forever, Plainly), fact(3, "a", 3, 0, Unreadable),
			fact(4, "a", 4, 0, ""), fact(5, "b", 0, 0, "")},
		Effects:     []Effect{effect(0, "a", 0, 0), effect(1, "a", 1, 2), effect(5, "b", 0, 0), effect(4, "a", 4, 0), effect(2, "a", 2, 0)},
		Letters:     []Letter{{ids[2], "resolved", 10, 2}, {ids[3], "discarded", 1, 1}},
		DeadRecords: map[uuid.UUID]int{ids[2]: 2, ids[3]: 1},
		Folds:       map[string]Fold{"a": Fold{}.Add(1).Add(2).Add(5).Add(3), "b": Fold{}.Add(6)},
		Samples:     []Sample{{0, -1, 0}, {0, 3, 5}, {0, 6, 6}},
	}
	for i, e := range h.Effects {
		h.Echoes = append(h.Echoes, Echo{uuid.UUID{0: 1, 15: byte(i)}, e.ID}, Echo{uuid.UUID{0: 1, 15: byte(i)}, e.ID})
	}
	return h
}

func TestCheckFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(h *History)
		want   []Property
	}{
		"nothing":                        {func(*History) {}, nil},
		"an effect is missing":           {func(h *History) { h.Effects = slices.Delete(h.Effects, 2, 3); h.Echoes = slices.Delete(h.Echoes, 4, 6) }, []Property{Lost}},
		"a redriven event has no effect": {func(h *History) { h.Effects, h.Echoes = h.Effects[:4], h.Echoes[:8] }, []Property{Lost}},
		"an effect came twice":           {func(h *History) { h.Effects = append(h.Effects, h.Effects[0]) }, []Property{Twice}},
		"an effect of nothing":           {func(h *History) { h.Effects = append(h.Effects, Effect{ID: ids[7], Key: "a", Seq: 9}) }, []Property{Forged}},
		"an effect of another key":       {func(h *History) { h.Effects[0].Key = "b" }, []Property{Forged, Lost}},
		"an effect of a dead letter":     {func(h *History) { h.Letters[0].State = "dead" }, []Property{Disorder, Forged, Folded}},
		"a follower came first":          {func(h *History) { h.Effects[0], h.Effects[1] = h.Effects[1], h.Effects[0] }, []Property{Disorder}},
		"an outage counted":              {func(h *History) { h.Effects[0].Attempt = 1 }, []Property{Blamed}},
		"a try was left out":             {func(h *History) { h.Effects[1].Attempt = 1 }, []Property{Blamed}},
		"it died too soon":               {func(h *History) { h.Letters[0].Attempts = 9 }, []Property{Blamed}},
		"it died though it would not": {func(h *History) {
			h.Effects, h.Echoes = slices.Delete(h.Effects, 2, 3), slices.Delete(h.Echoes, 4, 6)
			h.Letters = append(h.Letters, Letter{ids[5], "dead", 5, 1})
			h.DeadRecords[ids[5]] = 1
		}, []Property{Blamed}},
		"an offset went back":           {func(h *History) { h.Samples[2].Database, h.Samples[2].Kafka = 4, 4 }, []Property{Regressed}},
		"Kafka is ahead":                {func(h *History) { h.Samples[1].Kafka = 6 }, []Property{Ahead}},
		"an echo is missing":            {func(h *History) { h.Echoes = h.Echoes[2:] }, []Property{Echoed}},
		"it emitted twice":              {func(h *History) { h.Echoes[0].ID = ids[7] }, []Property{Echoed}},
		"a refused try emitted":         {func(h *History) { h.Echoes[0].Cause = ids[3] }, []Property{Forged}},
		"the state is another order's":  {func(h *History) { h.Folds["a"] = Fold{}.Add(2).Add(1).Add(5).Add(3) }, []Property{Folded}},
		"a state is missing":            {func(h *History) { delete(h.Folds, "b") }, []Property{Folded}},
		"a state of nothing":            {func(h *History) { h.Folds["c"] = Fold{}.Add(1) }, []Property{Folded}},
		"the topic lacks a dead letter": {func(h *History) { delete(h.DeadRecords, ids[3]) }, []Property{Divided}},
		"the table lacks a dead letter": {func(h *History) { h.DeadRecords[ids[0]] = 1 }, []Property{Divided}},
		"a dead letter held its key": {func(h *History) {
			h.HoldDead = true
			h.Effects[3], h.Effects[4] = h.Effects[4], h.Effects[3]
			h.Folds["a"] = Fold{}.Add(1).Add(2).Add(3).Add(5)
		}, nil},
		"a dead letter did not hold its key": {func(h *History) { h.HoldDead = true }, []Property{Disorder, Folded}},
		"a key is held":                      {func(h *History) { h.Held = 2 }, []Property{Held}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := story()
			c.change(h)
			v := Check(h)
			want := map[Property]int{}
			for _, p := range c.want {
				want[p] = max(1, want[p])
			}
			got := maps.Clone(v.Counts)
			for p := range got {
				got[p] = 1
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got)\n%s%v", diff, v.Examples)
			}
		})
	}
	if v := Check(story()); v.Retried != 1 || v.Redriven != 1 || v.Effects != 5 || v.Facts != 6 {
		t.Errorf("it counts %+v", v)
	}
}
