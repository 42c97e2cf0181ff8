package challenge

import (
	"context"
	"fmt"
	"net/http"

	"github.com/jackc/pgx/v5"

	"converge/lab/history"
)

// journals are the tables in which the consumers note what they did. The ids of other runs' users are
// filtered by prefix, with no pattern characters in it.
var journals = map[string]string{
	"billing": `
SELECT event_id::text, user_id, version, superseded, applied_at
FROM billing.account_changes
WHERE starts_with(user_id, $1)
ORDER BY applied_at`,
	"analytics": `
SELECT event_id::text, user_id, version, superseded, applied_at
FROM analytics.profile_changes
WHERE starts_with(user_id, $1)
ORDER BY applied_at`,
}

func readJournal(ctx context.Context, db *pgx.Conn, service, run string) ([]history.Effect, error) {
	rows, err := db.Query(ctx, journals[service], run)
	if err != nil {
		return nil, fmt.Errorf("reading the journal of %s: %w", service, err)
	}
	effects, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (history.Effect, error) {
		effect := history.Effect{Service: service}
		err := row.Scan(&effect.EventID, &effect.UserID, &effect.Version, &effect.Superseded, &effect.AppliedAt)
		return effect, err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the journal of %s: %w", service, err)
	}
	return effects, nil
}

// counts are how many changes each journal knows of.
var counts = map[string]string{
	"billing":   "SELECT count(DISTINCT (user_id, version)) FROM billing.account_changes WHERE starts_with(user_id, $1)",
	"analytics": "SELECT count(DISTINCT (user_id, version)) FROM analytics.profile_changes WHERE starts_with(user_id, $1)",
}

func countJournal(ctx context.Context, db *pgx.Conn, service, run string) (int, error) {
	var n int
	if err := db.QueryRow(ctx, counts[service], run).Scan(&n); err != nil {
		return 0, fmt.Errorf("counting the journal of %s: %w", service, err)
	}
	return n, nil
}

// views are where each service tells what it believes of a user.
var views = map[string]string{"identity": "/profiles/", "billing": "/billing/accounts/", "analytics": "/analytics/profiles/"}

// readViews asks the service for every user. Not knowing a user is an answer; not answering is an error.
func readViews(ctx context.Context, client *http.Client, base, service string, users []*user) ([]history.View, error) {
	var list []history.View
	for _, u := range users {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+views[service]+u.id, nil)
		if err != nil {
			return nil, fmt.Errorf("asking %s: %w", service, err)
		}
		var reply struct {
			Version     int64  `json:"version"`
			Email       string `json:"email"`
			DisplayName string `json:"display_name"`
		}
		status, _, err := fetch(client, req, &reply)
		switch {
		case err != nil:
			return nil, fmt.Errorf("asking %s for %s: %w", service, u.id, err)
		case status == http.StatusNotFound:
			list = append(list, history.View{Service: service, UserID: u.id})
		case status != http.StatusOK:
			return nil, fmt.Errorf("asking %s for %s: status %d", service, u.id, status)
		default:
			list = append(list, history.View{Service: service, UserID: u.id, Version: reply.Version, Content: reply.Email + " " + reply.DisplayName})
		}
	}
	return list, nil
}

// collect reads all that the judge needs. What cannot be read is noted as such, for the judge to weigh.
func (r *run) collect(ctx context.Context) {
	h := &r.history
	h.Records = r.broker.history()
	r.source(history.SourceTopic, len(h.Records), r.broker.failure(r.ends))
	for _, service := range consumers {
		effects, err := readJournal(ctx, r.db, service, r.id)
		h.Effects = append(h.Effects, effects...)
		r.source(history.SourceJournal(service), len(effects), err)
		letters, err := r.broker.deadLetters(ctx, r.engines.brokers, service)
		h.DeadLetters = append(h.DeadLetters, letters...)
		r.source(history.SourceDeadLetters(service), len(letters), err)
	}
	for _, service := range append([]string{h.Plan.Truth}, consumers...) {
		views, err := readViews(ctx, r.population.client, r.processes[service].base(), service, r.population.users)
		h.Views = append(h.Views, views...)
		r.source(history.SourceViews(service), len(views), err)
	}
}

func (r *run) source(name string, rows int, err error) {
	s := history.Source{Name: name, Rows: rows}
	if err != nil {
		s.Err = err.Error()
	}
	r.history.Sources = append(r.history.Sources, s)
}
