package console

import (
	"slices"
	"strings"
	"time"

	"converge/schemas"
)

// Kinds of topic.
const (
	kindEvent = "event"
	kindRetry = "retry"
	kindDLQ   = "dlq"
	kindOther = "other"
)

// topicName is what a topic's name says.
type topicName struct {
	kind  string
	of    string // the event topic that a retry or DLQ topic serves
	group string
	delay time.Duration // how long a retry topic keeps a record waiting
}

// parseTopic reads TOPIC, TOPIC.GROUP.retry.DELAY and TOPIC.GROUP.dlq.
func parseTopic(name string) topicName {
	if slices.Contains(schemas.Topics(), name) {
		return topicName{kind: kindEvent}
	}
	if owner, ok := strings.CutSuffix(name, ".dlq"); ok {
		if of, group, ok := parseOwner(owner); ok {
			return topicName{kind: kindDLQ, of: of, group: group}
		}
	}
	if i := strings.LastIndex(name, ".retry."); i > 0 {
		delay, err := time.ParseDuration(name[i+len(".retry."):])
		if of, group, ok := parseOwner(name[:i]); ok && err == nil {
			return topicName{kind: kindRetry, of: of, group: group, delay: delay}
		}
	}
	return topicName{kind: kindOther}
}

// parseOwner splits TOPIC.GROUP. Either may hold dots, so a known topic is preferred as the first part.
func parseOwner(owner string) (topic, group string, ok bool) {
	for _, known := range schemas.Topics() {
		if group, ok := strings.CutPrefix(owner, known+"."); ok && group != "" {
			return known, group, true
		}
	}
	i := strings.LastIndexByte(owner, '.')
	if i <= 0 || i == len(owner)-1 {
		return "", "", false
	}
	return owner[:i], owner[i+1:], true
}
