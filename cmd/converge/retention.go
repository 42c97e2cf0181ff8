package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"converge/consumers/retry"
	"converge/internal/partitions"
	"converge/schemas"
)

// retention says how long rows are kept that nobody needs any more.
type retention struct {
	OutboxRetention time.Duration `default:"168h" help:"Drop outbox rows that are published and whose day ended so long ago; 0 keeps them. Replays reach back no further."`
	InboxRetention  time.Duration `default:"384h" help:"Forget applied events whose day ended so long ago; 0 never does. Longer than outbox, topics and retries keep an event, together."`
}

// check refuses retentions with which an event could come again after the inbox has forgotten it.
func (r retention) check() error {
	for flag, d := range map[string]time.Duration{"--outbox-retention": r.OutboxRetention, "--inbox-retention": r.InboxRetention} {
		if d != 0 && d < partitions.Day {
			return usageError{fmt.Errorf("%s %v: rows go by whole days, so keep them for 24h at least, or for ever with 0", flag, d)}
		}
	}
	return r.checkTopic("the topics", schemas.TopicRetention)
}

// forever is the retention of topics that keep every record, or each key's last.
const forever = time.Duration(-1)

// checkTopic refuses an inbox that forgets events which can still come from the topic: out of an outbox row
// that is sent again at its last moment, read at the record's last moment, at the end of its retries. Rows
// go by whole days, so the outbox's may be a day older than they say.
func (r retention) checkTopic(topic string, keeps time.Duration) error {
	if r.InboxRetention == 0 {
		return nil
	}
	const fix = "let the inbox remember for ever with --inbox-retention 0"
	if r.OutboxRetention == 0 {
		return usageError{fmt.Errorf("--outbox-retention 0 keeps rows for ever, and a replay can send each again after --inbox-retention %v has forgotten it: %s", r.InboxRetention, fix)}
	}
	if keeps == forever {
		return usageError{fmt.Errorf("%s keeps records for ever, and --inbox-retention %v would forget them: %s", topic, r.InboxRetention, fix)}
	}
	ladder := retry.Policy{}.Age()
	if need := r.OutboxRetention + partitions.Day + keeps + ladder; r.InboxRetention < need {
		return usageError{fmt.Errorf("--inbox-retention %v is too short: an event can come again after %v (outbox %v and its day 24h, %s %v, retries %v): raise it, or %s",
			r.InboxRetention, need, r.OutboxRetention, topic, keeps, ladder, fix)}
	}
	return nil
}

// The settings of a topic that say how long it keeps records.
const (
	retentionKey = "retention.ms"
	cleanupKey   = "cleanup.policy"
)

// topicRetentions returns how long the topics keep records, by the brokers' word. Topics whose settings we
// may not see are taken to be as converge makes them.
func topicRetentions(ctx context.Context, at connection, topics []string) (map[string]time.Duration, error) {
	if len(topics) == 0 {
		return nil, nil
	}
	client, err := at.client()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	resources, err := kadm.NewClient(client).DescribeTopicConfigs(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("asking how long topics keep records: %w", err)
	}
	found := map[string]time.Duration{}
	for _, resource := range resources {
		if errors.Is(resource.Err, kerr.TopicAuthorizationFailed) {
			found[resource.Name] = schemas.TopicRetention
			continue
		}
		if resource.Err != nil {
			return nil, fmt.Errorf("asking how long topic %s keeps records: %w", resource.Name, resource.Err)
		}
		keeps, compacted := schemas.TopicRetention, false
		for _, setting := range resource.Configs {
			switch setting.Key {
			case retentionKey:
				ms, err := strconv.ParseInt(setting.MaybeValue(), 10, 64)
				if err != nil {
					return nil, fmt.Errorf("reading how long topic %s keeps records: %w", resource.Name, err)
				}
				if keeps = forever; ms >= 0 && ms < int64(1<<63-1)/int64(time.Millisecond) {
					keeps = time.Duration(ms) * time.Millisecond
				}
			case cleanupKey:
				policies := strings.Split(setting.MaybeValue(), ",")
				compacted = slices.Contains(policies, "compact") && !slices.Contains(policies, "delete")
			}
		}
		if compacted {
			keeps = forever
		}
		found[resource.Name] = keeps
	}
	return found, nil
}

// checkTopics refuses an inbox that forgets events which the topics that the services read still hold.
func (r retention) checkTopics(keeps map[string]time.Duration) error {
	for topic, d := range keeps {
		if err := r.checkTopic("topic "+topic, d); err != nil {
			return err
		}
	}
	return nil
}
