package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"converge/consumers/retry"
	"converge/schemas"
)

// topicsOf returns every topic that the services read or write: the event topics, and for each reader
// its retry and dead-letter topics.
func topicsOf(services []string) []string {
	names := map[string]bool{}
	for _, route := range schemas.Routes() {
		if slices.Contains(services, route.Emitter) {
			names[route.Topic] = true
		}
	}
	for _, service := range services {
		read, _ := schemas.ReadBy(service)
		for _, topic := range read {
			names[topic] = true
			for _, name := range retry.Topics(topic, service, retry.Policy{}) {
				names[name] = true
			}
		}
	}
	sorted := make([]string, 0, len(names))
	for name := range names {
		sorted = append(sorted, name)
	}
	slices.Sort(sorted)
	return sorted
}

// readBy returns the event topics that the services read.
func readBy(services []string) []string {
	var names []string
	for _, service := range services {
		read, _ := schemas.ReadBy(service)
		names = append(names, read...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// createTopics creates the topics that are missing and leaves those that exist as they are.
func createTopics(ctx context.Context, at connection, topics []string) error {
	client, err := at.client()
	if err != nil {
		return err
	}
	defer client.Close()
	keep := strconv.FormatInt(schemas.TopicRetention.Milliseconds(), 10)
	responses, err := kadm.NewClient(client).CreateTopics(ctx, schemas.Partitions, -1, map[string]*string{retentionKey: &keep}, topics...)
	if err != nil {
		return fmt.Errorf("creating topics: %w", err)
	}
	for _, response := range responses.Sorted() {
		if response.Err != nil && !errors.Is(response.Err, kerr.TopicAlreadyExists) {
			return fmt.Errorf("creating topic %s: %w", response.Topic, response.Err)
		}
	}
	return nil
}
