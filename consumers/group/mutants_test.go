package group_test

import (
	"testing"

	"converge/internal/mutants"
	"converge/internal/pgtest"
)

// plants are faults for the runtime, each behind a switch, so that one build holds them all.
var plants = []mutants.Fault{
	{"consumers/group/batch.go", "if !t.fresh[e.ID] {",
		`if !t.fresh[e.ID] && !planted("the inbox is not asked") {`},
	{"consumers/group/batch.go", "queries.Queue(fenceSQL, ",
		`fence := fenceSQL
	if planted("the fence lets everyone pass") {
		fence = "UPDATE consumer_offsets SET next_offset = $5 WHERE consumer = $1 AND topic = $2 AND partition = $3 AND $4::bigint >= 0"
	}
	queries.Queue(fence, `},
	{"consumers/group/batch.go", "stored, err := g.applyBatch(ctx, b)",
		`if planted("Kafka is told before the database") {
		g.hint(p, b.next)
		g.tellKafka(ctx)
	}
	stored, err := g.applyBatch(ctx, b)`},
	{"consumers/group/handle.go", "return class == event.ClassInfrastructure ||",
		`return class == event.ClassInfrastructure && !planted("an outage counts as an attempt") ||`},
	{"consumers/group/handle.go", "} else if held[g.ladder.KeyOf(e)] {",
		`} else if held[g.ladder.KeyOf(e)] && !planted("a later batch overtakes what is held") {`},
	{"consumers/group/handle.go", "held[key] = true\n\t\tr.heads = append(r.heads, failure)",
		`held[key] = !planted("the same batch overtakes what is held")
		r.heads = append(r.heads, failure)`},
	{"consumers/group/handle.go", "f.Blocks = g.cfg.Retry.HoldDead && !held[key]",
		`f.Blocks = g.cfg.Retry.HoldDead && !held[key] && !planted("a dead letter lets its followers go on")`},
	{"consumers/group/handle.go", "case forgotten[e.ID]:",
		`case forgotten[e.ID] && !planted("an old event is applied silently"):`},
	{"consumers/group/delay.go", "until.After(now) {\n\t\t\tif step", `until.After(now) && !planted("a delay is not kept") {
			if step`},
	{"consumers/group/guard.go", "if last != nil && len(g.failed) >= g.keys {",
		`if last != nil && len(g.failed) >= g.keys && !planted("a bad deploy is not noticed") {`},
	{"consumers/group/group.go", "fetches := g.client.PollFetches(polling)",
		`take := g.client.PollFetches
	if planted("a partition waits for another one's backlog") {
		take = func(ctx context.Context) kgo.Fetches { return g.client.PollRecords(ctx, g.cfg.MaxEvents) }
	}
	fetches := take(polling)`},
	{"consumers/group/wake.go", "if err := g.admit(len(result.Done), blamed...); err != nil {",
		`if err := g.admit(len(result.Done), blamed...); err != nil && !planted("a bad deploy buries what waits") {`},
}

// verdicts says which test must find each fault, and in what words.
var verdicts = map[string]mutants.Verdict{
	"the inbox is not asked":                      {"TestEachEventIsAppliedOnceHoweverOftenItIsDelivered", "applied 2 times: key-"},
	"the fence lets everyone pass":                {"TestAZombieThatWakesUpLateCommitsNothing", "applied 2 times: key-"},
	"Kafka is told before the database":           {"TestAnOutageThatTheHandlerMeetsPausesAndBlamesNoEvent", "Kafka was told 40 while the database has 0"},
	"a partition waits for another one's backlog": {"TestABacklogIsAppliedPartitionsSideBySide", "is alone at work"},
	"an outage counts as an attempt":              {"TestAnOutageThatTheHandlerMeetsPausesAndBlamesNoEvent", "rows blame an event"},
	"a later batch overtakes what is held":        {"TestLaterEventsWaitBehindAHeldKey", "out of order: key-0"},
	"an old event is applied silently":            {"TestAnEventOlderThanTheInboxRemembersIsForAPersonToDecide", "applied 2 times: key-0/0"},
	"a delay is not kept":                         {"TestADelayIsKeptAlsoByTheNextOwner", "applied too early"},
	"a bad deploy is not noticed":                 {"TestABadDeployStopsTheGroupAndBlamesNoEvent", "rows blame an event"},
	"a bad deploy buries what waits":              {"TestABadDeployDoesNotBuryWhatWaits", "dead: "},
	"a dead letter lets its followers go on":      {"TestADeadLetterMayHoldItsKey", "with a dead letter in front of it"},
	"the same batch overtakes what is held":       {"TestLaterEventsWaitBehindAHeldKey", "out of order: key-0"},
}

// The tests are worth what they catch: each planted fault must be found, for its reason.
func TestTestsFindPlantedFaults(t *testing.T) {
	t.Parallel()
	mutants.Find(t, "converge/consumers/group", plants, verdicts, "CONVERGE_TEST_DATABASE="+pgtest.URL(t))
}
