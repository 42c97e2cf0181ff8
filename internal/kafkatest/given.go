package kafkatest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// borrow returns the cluster that was given. The topics and groups that are new when the test ends were the
// test's, and go.
func borrow(t testing.TB, brokers string) *Broker {
	t.Helper()
	topics, groups, err := inventory(brokers)
	if err != nil {
		t.Fatalf("KAFKA_BROKERS=%s: %v", brokers, err)
	}
	t.Cleanup(func() {
		laterTopics, laterGroups, err := inventory(brokers)
		if err == nil {
			err = remove(brokers, without(laterTopics, topics), without(laterGroups, groups))
		}
		if err != nil {
			t.Errorf("removing what the test made in the cluster of KAFKA_BROKERS: %v", err)
		}
	})
	return &Broker{t: t, brokers: brokers}
}

const adminTime = 30 * time.Second

// inventory returns the names of the cluster's topics, without its internal ones, and of its groups. It
// asks with a client of its own: clients remember topics for a while.
func inventory(brokers string) (topics, groups []string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), adminTime)
	defer cancel()
	admin, err := kadm.NewOptClient(kgo.SeedBrokers(strings.Split(brokers, ",")...))
	if err != nil {
		return nil, nil, fmt.Errorf("reading the broker addresses: %w", err)
	}
	defer admin.Close()
	details, err := admin.ListTopics(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("listing topics: %w", err)
	}
	listed, err := admin.ListGroups(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("listing groups: %w", err)
	}
	return slices.Sorted(maps.Keys(details)), listed.Groups(), nil
}

func remove(brokers string, topics, groups []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), adminTime)
	defer cancel()
	admin, err := kadm.NewOptClient(kgo.SeedBrokers(strings.Split(brokers, ",")...))
	if err != nil {
		return fmt.Errorf("reading the broker addresses: %w", err)
	}
	defer admin.Close()
	removedTopics, err := admin.DeleteTopics(ctx, topics...)
	if err == nil {
		err = removedTopics.Error()
	}
	removedGroups, groupsErr := admin.DeleteGroups(ctx, groups...)
	if groupsErr == nil {
		groupsErr = removedGroups.Error()
	}
	return errors.Join(err, groupsErr)
}

func without(all, some []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(name string) bool { return slices.Contains(some, name) })
}
