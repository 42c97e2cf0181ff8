package console

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"

	"converge/schemas"
)

// maxGroups bounds what foreign consumers can make the console hold. The pipeline's own groups always
// fit.
const maxGroups = 100

// groupView is one group as Kafka describes it, in either of its two protocols.
type groupView struct {
	name    string
	state   string
	members int
	owners  map[partitionKey]string // partition (with no group) to its member
	readers map[string]string       // topic to a member that reads it, where the broker names no partitions
	commits kadm.OffsetResponses
	err     error // why there is nothing more than a name
}

// viewGroups asks for all groups, their members and their commits.
func viewGroups(ctx context.Context, admin *kadm.Client) ([]groupView, error) {
	described, err := admin.DescribeGroups(ctx)
	if err := whole(err); err != nil {
		return nil, fmt.Errorf("describing groups: %w", err)
	}
	// The protocol of KIP-848 has requests of its own. A broker too old to know them has no such group.
	next, err := admin.DescribeConsumerGroups(ctx)
	if err != nil {
		next = nil
	}
	names := chosenGroups(append(described.Names(), next.Names()...))
	if len(names) == 0 {
		return nil, nil
	}
	fetched := admin.FetchManyOffsets(ctx, names...)
	views := make([]groupView, len(names))
	for i, name := range names {
		views[i] = viewClassic(described[name])
		if g, ok := next[name]; ok && g.Err == nil {
			views[i] = viewNext(g)
		}
		v := &views[i]
		v.commits = fetched[name].Fetched
		v.err = cmp.Or(v.err, fetched[name].Err)
		v.claim()
	}
	return views, nil
}

// chosenGroups returns the groups to measure, each once: the pipeline's own first, then by name.
func chosenGroups(names []string) []string {
	known := schemas.Readers()
	slices.SortFunc(names, func(a, b string) int {
		if ka, kb := slices.Contains(known, a), slices.Contains(known, b); ka != kb {
			if ka {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	names = slices.Compact(names)
	return names[:min(len(names), maxGroups)]
}

func viewClassic(d kadm.DescribedGroup) groupView {
	v := groupView{name: d.Group, state: d.State, members: len(d.Members), err: d.Err, owners: map[partitionKey]string{}}
	for _, m := range d.Members {
		assigned, ok := m.Assigned.AsConsumer()
		if !ok {
			continue
		}
		for _, t := range assigned.Topics {
			for _, p := range t.Partitions {
				v.owners[partitionKey{topic: t.Topic, partition: p}] = cmp.Or(m.ClientID, m.MemberID)
			}
		}
	}
	return v
}

func viewNext(d kadm.DescribedConsumerGroup) groupView {
	v := groupView{name: d.Group, state: d.State, members: len(d.Members), owners: map[partitionKey]string{}, readers: map[string]string{}}
	for _, m := range d.Members {
		// The embedded broker answers with ids in place of names, which do not get here: what is left is
		// which topics the member subscribed to.
		if _, nameless := m.Assignment[""]; nameless {
			for _, topic := range m.SubscribedTopics {
				if _, ok := v.readers[topic]; !ok {
					v.readers[topic] = cmp.Or(m.ClientID, m.MemberID)
				}
			}
			continue
		}
		for topic, partitions := range m.Assignment {
			for p := range partitions {
				v.owners[partitionKey{topic: topic, partition: p}] = cmp.Or(m.ClientID, m.MemberID)
			}
		}
	}
	return v
}

// claim adds the partitions that are owned but were never committed to the commits, as such.
func (v *groupView) claim() {
	if v.commits == nil {
		v.commits = kadm.OffsetResponses{}
	}
	for owned := range v.owners {
		v.uncommitted(owned.topic, owned.partition)
	}
	for topic := range v.readers {
		v.uncommitted(topic, 0) // one partition stands for all: the others follow from the end offsets
	}
}

func (v *groupView) uncommitted(topic string, partition int32) {
	if _, ok := v.commits.Lookup(topic, partition); ok {
		return
	}
	none := kadm.Offset{Topic: topic, Partition: partition, At: -1, LeaderEpoch: -1}
	v.commits.Add(kadm.OffsetResponse{Offset: none})
}

// owner returns the member that the partition is assigned to.
func (v *groupView) owner(topic string, partition int32) (member string, owned bool) {
	if member, owned = v.owners[partitionKey{topic: topic, partition: partition}]; !owned {
		member, owned = v.readers[topic]
	}
	return member, owned
}

// lag is the distance from the commits to the ends on every partition of each topic that the group owns
// a part of or has committed to.
func (v *groupView) lag(starts, ends kadm.ListedOffsets) kadm.GroupLag {
	return kadm.CalculateGroupLagWithStartOffsets(kadm.DescribedGroup{Group: v.name}, v.commits, starts, ends)
}
