package challenge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// The stub is the smallest pipeline that meets the challenge: one transaction per record, a polling
// relay. The test binary plays it when it is called by stubName; what follows in the name is the mistake
// that it makes, so that the challenge itself can be graded.
const stubName = "stub-"

const (
	faultNone        = "none"
	faultNoInbox     = "no-inbox"
	faultCommitFirst = "commit-first"    // the offset, and only then the effect
	faultBlindUpsert = "blind-upsert"    // no inbox and no comparison of versions
	faultSharesFate  = "waits-for-other" // billing works only while analytics does
)

const stubSchema = `
CREATE SCHEMA identity;
CREATE TABLE identity.profiles (user_id text PRIMARY KEY, version bigint, email text, display_name text);
CREATE TABLE identity.outbox (id bigserial PRIMARY KEY, event_id text, user_id text, version bigint, value bytea, published bool DEFAULT false, created_at timestamptz DEFAULT now());
CREATE SCHEMA billing;
CREATE TABLE billing.inbox (event_id text PRIMARY KEY);
CREATE TABLE billing.profiles (user_id text PRIMARY KEY, version bigint, email text, display_name text);
CREATE TABLE billing.account_changes (event_id text, user_id text, version bigint, superseded bool, applied_at timestamptz DEFAULT now());
CREATE SCHEMA analytics;
CREATE TABLE analytics.inbox (event_id text PRIMARY KEY);
CREATE TABLE analytics.profiles (user_id text PRIMARY KEY, version bigint, email text, display_name text);
CREATE TABLE analytics.profile_changes (event_id text, user_id text, version bigint, superseded bool, applied_at timestamptz DEFAULT now());`

type stub struct {
	pool  *pgxpool.Pool
	kafka []string
	http  string
	fault string
}

// playStub plays `converge migrate|relay|serve NAME`.
func playStub(fault string, args []string) int {
	flags := map[string]string{}
	for i := 1; i+1 < len(args); i++ {
		if strings.HasPrefix(args[i], "--") {
			flags[args[i]] = args[i+1]
		}
	}
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, flags["--database"])
	if err == nil {
		s := &stub{pool: pool, kafka: strings.Split(flags["--brokers"], ","), http: flags["--http"], fault: fault}
		err = s.play(ctx, args[0], args[1])
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func (s *stub) play(ctx context.Context, command, name string) error {
	switch {
	case command == "migrate":
		client, err := kgo.NewClient(kgo.SeedBrokers(s.kafka...))
		if err != nil {
			return err
		}
		defer client.Close()
		if _, err := kadm.NewClient(client).CreateTopic(ctx, 4, 1, nil, topic); err != nil {
			return err
		}
		_, err = s.pool.Exec(ctx, stubSchema)
		return err
	case command == "relay":
		return s.serve(nil, func() error { return s.relay(ctx) })
	case name == "identity":
		return s.serve(http.HandlerFunc(s.identity), nil)
	default:
		path := map[string]string{"billing": "/billing/accounts/", "analytics": "/analytics/profiles/"}[name]
		view := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.view(w, r, name, strings.TrimPrefix(r.URL.Path, path)) })
		return s.serve(view, func() error { return s.consume(ctx, name) })
	}
}

func (s *stub) serve(handler http.Handler, work func() error) error {
	failed := make(chan error, 1)
	if work != nil {
		go func() { failed <- work() }()
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/readyz", func(http.ResponseWriter, *http.Request) {})
	if handler != nil {
		mux.Handle("/", handler)
	}
	go func() { failed <- http.ListenAndServe(s.http, mux) }()
	return <-failed
}

func (s *stub) view(w http.ResponseWriter, r *http.Request, schema, id string) {
	var version int64
	var p profile
	err := s.pool.QueryRow(r.Context(), "SELECT version, email, display_name FROM "+schema+".profiles WHERE user_id = $1", id).Scan(&version, &p.Email, &p.DisplayName)
	if errors.Is(err, pgx.ErrNoRows) {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("ETag", fmt.Sprintf(`"%d"`, version))
	fmt.Fprintf(w, `{"version":%d,"email":%q,"display_name":%q}`, version, p.Email, p.DisplayName)
}

func (s *stub) identity(w http.ResponseWriter, r *http.Request) {
	id := strings.TrimPrefix(r.URL.Path, "/profiles/")
	if r.Method == http.MethodGet {
		s.view(w, r, "identity", id)
		return
	}
	var p profile
	if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	expected, _ := strconv.ParseInt(strings.Trim(r.Header.Get("If-Match"), `"`), 10, 64)
	err := pgx.BeginFunc(r.Context(), s.pool, func(tx pgx.Tx) error {
		tag, err := tx.Exec(r.Context(), `
			INSERT INTO identity.profiles VALUES ($1, 1, $3, $4)
			ON CONFLICT (user_id) DO UPDATE SET version = $2 + 1, email = $3, display_name = $4 WHERE profiles.version = $2`,
			id, expected, p.Email, p.DisplayName)
		if err == nil && tag.RowsAffected() == 0 {
			err = pgx.ErrNoRows
		}
		if err != nil {
			return err
		}
		value, err := json.Marshal(p)
		if err != nil {
			return err
		}
		_, err = tx.Exec(r.Context(), "INSERT INTO identity.outbox (event_id, user_id, version, value) VALUES ($1, $2, $3, $4)", uuid.NewString(), id, expected+1, value)
		return err
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		w.WriteHeader(http.StatusPreconditionFailed)
	case err != nil:
		w.WriteHeader(http.StatusServiceUnavailable)
	default:
		w.Header().Set("ETag", fmt.Sprintf(`"%d"`, expected+1))
		fmt.Fprintf(w, `{"version":%d}`, expected+1)
	}
}

// relay publishes and then marks, so a kill in between sends a batch twice.
func (s *stub) relay(ctx context.Context) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(s.kafka...))
	if err != nil {
		return err
	}
	for range time.Tick(20 * time.Millisecond) {
		rows, err := s.pool.Query(ctx, "SELECT id, event_id, user_id, version, value, created_at FROM identity.outbox WHERE NOT published ORDER BY id LIMIT 200")
		if err != nil {
			return err
		}
		var ids []int64
		var records []*kgo.Record
		var row struct {
			id, version   int64
			eventID, user string
			value         []byte
			created       time.Time
		}
		_, err = pgx.ForEachRow(rows, []any{&row.id, &row.eventID, &row.user, &row.version, &row.value, &row.created}, func() error {
			ids = append(ids, row.id)
			records = append(records, &kgo.Record{Topic: topic, Key: []byte(row.user), Value: append([]byte(nil), row.value...), Headers: []kgo.RecordHeader{
				{Key: "event_id", Value: []byte(row.eventID)},
				{Key: "aggregate_version", Value: fmt.Append(nil, row.version)},
				{Key: "committed_at", Value: []byte(row.created.Format(time.RFC3339Nano))},
			}})
			return nil
		})
		if err == nil {
			err = client.ProduceSync(ctx, records...).FirstErr()
		}
		if err == nil {
			_, err = s.pool.Exec(ctx, "UPDATE identity.outbox SET published = true WHERE id = ANY ($1)", ids)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *stub) consume(ctx context.Context, service string) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(s.kafka...), kgo.ConsumerGroup(service), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.SessionTimeout(6*time.Second), kgo.HeartbeatInterval(500*time.Millisecond))
	if err != nil {
		return err
	}
	for {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return err
		}
		records := fetches.Records()
		if s.fault == faultCommitFirst {
			if err := client.CommitRecords(ctx, records...); err != nil {
				return err
			}
			<-time.After(50 * time.Millisecond)
		}
		for _, r := range records {
			if err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error { return s.apply(ctx, tx, service, r) }); err != nil {
				return err
			}
		}
		if err := client.CommitRecords(ctx, records...); err != nil {
			return err
		}
	}
}

func (s *stub) apply(ctx context.Context, tx pgx.Tx, service string, r *kgo.Record) error {
	if s.fault == faultSharesFate && service == "billing" {
		// It waits until analytics has seen the event: no effect while that is down.
		for n := 0; n == 0; {
			if err := s.pool.QueryRow(ctx, "SELECT count(*) FROM analytics.inbox WHERE event_id = $1", header(r, "event_id")).Scan(&n); err != nil {
				return err
			}
			<-time.After(2 * time.Millisecond)
		}
	}
	journal := map[string]string{"billing": "billing.account_changes", "analytics": "analytics.profile_changes"}[service]
	if s.fault != faultNoInbox && s.fault != faultBlindUpsert {
		tag, err := tx.Exec(ctx, "INSERT INTO "+service+".inbox VALUES ($1) ON CONFLICT DO NOTHING", header(r, "event_id"))
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
	}
	var p profile
	if err := json.Unmarshal(r.Value, &p); err != nil {
		return err
	}
	newer := " WHERE profiles.version < $2"
	if s.fault == faultBlindUpsert {
		newer = ""
	}
	version, err := strconv.ParseInt(header(r, "aggregate_version"), 10, 64)
	if err != nil {
		return err
	}
	tag, err := tx.Exec(ctx, "INSERT INTO "+service+".profiles VALUES ($1, $2, $3, $4) ON CONFLICT (user_id) DO UPDATE SET version = $2, email = $3, display_name = $4"+newer,
		string(r.Key), version, p.Email, p.DisplayName)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "INSERT INTO "+journal+" VALUES ($1, $2, $3, $4)", header(r, "event_id"), string(r.Key), version, tag.RowsAffected() == 0)
	return err
}
