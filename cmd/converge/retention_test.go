package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"

	"converge/internal/database"
	"converge/internal/pgtest"
	"converge/internal/process"
)

const day = 24 * time.Hour

func TestAnInboxThatForgetsTooEarlyIsRefused(t *testing.T) {
	for _, c := range []struct {
		retention
		topics time.Duration // of a topic that is read; 0: only what converge makes
		says   string        // "" when it is accepted
	}{
		{retention{7 * day, 16 * day}, 0, ""},
		{retention{7 * day, 16 * day}, 7 * day, ""},
		{retention{7 * day, 0}, 0, ""},
		{retention{0, 0}, forever, ""},
		{retention{day, 10 * day}, day, ""},
		{retention{7 * day, 16*day - 1}, 0, "an event can come again after 384h0m0s"},
		{retention{7 * day, 16 * day}, 7*day + 1, "topic orders 168h0m0.000000001s"},
		{retention{7 * day, 16 * day}, forever, "topic orders keeps records for ever"},
		{retention{8 * day, 16 * day}, 0, "let the inbox remember for ever with --inbox-retention 0"},
		{retention{0, 16 * day}, 0, "--outbox-retention 0 keeps rows for ever"},
		{retention{time.Hour, 0}, 0, "--outbox-retention 1h0m0s: rows go by whole days"},
		{retention{7 * day, time.Hour}, 0, "--inbox-retention 1h0m0s: rows go by whole days"},
		{retention{-day, 0}, 0, "--outbox-retention -24h0m0s"},
	} {
		err := c.check()
		if err == nil && c.topics != 0 {
			err = c.checkTopics(map[string]time.Duration{"orders": c.topics})
		}
		var usage usageError
		switch {
		case c.says == "" && err != nil:
			t.Errorf("%+v, topics %v: refused: %v", c.retention, c.topics, err)
		case c.says != "" && (!errors.As(err, &usage) || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%+v, topics %v: got %v, want a usage error with %q", c.retention, c.topics, err, c.says)
		}
	}
}

func TestTheRetentionsThatDefaultsSayGoTogether(t *testing.T) {
	var out, errs strings.Builder
	if code := run([]string{"config", "up"}, &out, &errs); code != process.ExitOK {
		t.Fatal(errs.String())
	}
	r := retention{7 * day, 16 * day}
	for _, line := range []string{"--outbox-retention 168h0m0s default", "--inbox-retention 384h0m0s default"} {
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), line) {
			t.Errorf("config up lacks %q:\n%s", line, out.String())
		}
	}
	if err := r.check(); err != nil {
		t.Error(err)
	}
}

func TestWhatTopicsKeepIsReadFromTheBrokers(t *testing.T) {
	kafka, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer kafka.Close()
	at := connection{Brokers: kafka.ListenAddrs()}
	if err := createTopics(t.Context(), at, []string{"orders"}); err != nil {
		t.Fatal(err)
	}
	client, err := at.client()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	for topic, configs := range map[string]map[string]*string{
		"theirs":    {},
		"long":      {retentionKey: kadm.StringPtr("2592000000")},
		"endless":   {retentionKey: kadm.StringPtr("-1")},
		"unbounded": {retentionKey: kadm.StringPtr("9223372036854775807")},
		"compacted": {cleanupKey: kadm.StringPtr("compact")},
		"both":      {cleanupKey: kadm.StringPtr("compact,delete"), retentionKey: kadm.StringPtr("86400000")},
	} {
		if _, err := admin.CreateTopic(t.Context(), 1, 1, configs, topic); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]time.Duration{"orders": 7 * day, "theirs": 7 * day, "long": 30 * day, "endless": forever,
		"unbounded": forever, "compacted": forever, "both": day}
	var topics []string
	for topic := range want {
		topics = append(topics, topic)
	}
	got, err := topicRetentions(t.Context(), at, topics)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("error %v, retentions (-want +got):\n%s", err, diff)
	}
	if got, err := topicRetentions(t.Context(), at, nil); err != nil || len(got) != 0 {
		t.Errorf("of no topics: %v, %v", got, err)
	}
	if _, err := topicRetentions(t.Context(), at, []string{"nowhere"}); err == nil {
		t.Error("a topic that is not there keeps its records for some time")
	}
}

func TestServeRefusesTopicsThatOutliveTheInbox(t *testing.T) {
	kafka, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer kafka.Close()
	at := connection{Brokers: kafka.ListenAddrs()}
	client, err := at.client()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := kadm.NewClient(client).CreateTopic(t.Context(), 1, 1, map[string]*string{retentionKey: kadm.StringPtr("-1")}, "orders"); err != nil {
		t.Fatal(err)
	}
	url := pgtest.URL(t)
	views, err := choose([]string{"orderviews"})
	if err != nil {
		t.Fatal(err)
	}
	if err := database.Migrate(t.Context(), url, modules(views)...); err != nil {
		t.Fatal(err)
	}
	var out, errs strings.Builder
	code := run([]string{"serve", "orderviews", "--database", url, "--brokers", at.Brokers[0], "--format", "json", "--http", "127.0.0.1:0"}, &out, &errs)
	if want := "topic orders keeps records for ever, and --inbox-retention 384h0m0s would forget them"; code != process.ExitUsage || !strings.Contains(errs.String(), want) {
		t.Errorf("code %d, want %d and %q\n%s", code, process.ExitUsage, want, errs.String())
	}
}
