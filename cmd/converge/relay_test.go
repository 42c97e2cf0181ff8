package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kfake"

	"converge/internal/database"
	"converge/internal/kafkatest"
	"converge/internal/mutants"
	"converge/internal/pgtest"
	"converge/internal/process"
	"converge/internal/testcert"
)

// migratedDatabase returns a database with every service's schema.
func migratedDatabase(t *testing.T) string {
	t.Helper()
	return pgtest.Database(t, "all", func(ctx context.Context, url string) error {
		return database.Migrate(ctx, url, modules(services())...)
	})
}

func execute(t *testing.T, url, sql string, args ...any) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func embedded(t *testing.T) (brokers string) {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return strings.Join(cluster.ListenAddrs(), ",")
}

// TestRelayStatusAndDoctorTellTroubleByTheirExitCode: with the fix for people, and as JSON for scripts.
func TestRelayStatusAndDoctorTellTroubleByTheirExitCode(t *testing.T) {
	url, kafka := migratedDatabase(t), embedded(t)
	slot := fmt.Sprintf("status_%d", os.Getpid())
	at := []string{"--database", url, "--brokers", kafka, "--slot", slot}
	relay := func(which string, more ...string) (string, string, int) {
		return command(append(append([]string{"relay", which}, at...), more...)...)
	}

	out, errs, code := relay("doctor")
	if code != process.ExitFailed || errs != "" || !strings.Contains(out, "fail  publication") || !strings.Contains(out, "→ before the slot is made: CREATE PUBLICATION") ||
		!strings.Contains(out, "the relay cannot stream") {
		t.Errorf("doctor of nothing: code %d, %q\n%s", code, errs, out)
	}
	if out, errs, code := relay("doctor", "--on-missing-slot", "create"); code != process.ExitOK || !strings.Contains(out, "the relay can stream") {
		t.Errorf("doctor of a relay that creates: code %d, %q\n%s", code, errs, out)
	}
	if out, _, code := relay("status"); code != process.ExitFailed || !strings.Contains(out, "does not exist") {
		t.Errorf("status of nothing: code %d\n%s", code, out)
	}

	execute(t, url, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", slot)
	out, _, code = relay("status", "--json")
	var status struct {
		Healthy, Exists, Active bool
		Confirmed               string `json:"confirmed_flush_lsn"`
		Problems                []struct{ Check, Found, Fix string }
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil || code != process.ExitFailed {
		t.Fatalf("status of an idle slot: code %d, %v\n%s", code, err, out)
	}
	if status.Healthy || !status.Exists || status.Active || status.Confirmed == "" || len(status.Problems) != 1 || status.Problems[0].Fix == "" {
		t.Errorf("status of an idle slot: %+v", status)
	}
	out, _, _ = relay("doctor", "--json", "--on-missing-slot", "create")
	var doctor struct {
		Healthy  bool
		Findings []struct{ Check, Level, Found string }
	}
	if err := json.Unmarshal([]byte(out), &doctor); err != nil || !doctor.Healthy || len(doctor.Findings) < 15 {
		t.Errorf("doctor as JSON: %v\n%s", err, out)
	}
	if _, errs, code := command("relay", "status", "--brokers", kafka); code != process.ExitUsage || !strings.Contains(errs, "--database") {
		t.Errorf("status of no database: code %d, %s", code, errs)
	}
	if _, errs, code := command("relay", "status", "--brokers", kafka, "--database", "postgres://x@127.0.0.1:1/x"); code != process.ExitFailed || strings.Count(errs, "\n") != 1 {
		t.Errorf("status of a database that is away: code %d, %s", code, errs)
	}
}

// TestRelayStatusAsksTheRunningRelay for what the database does not know.
func TestRelayStatusAsksTheRunningRelay(t *testing.T) {
	ready, leader := http.StatusServiceUnavailable, 1
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/metrics":
			fmt.Fprintf(w, "# TYPE converge_relay_lag_seconds gauge\nconverge_relay_lag_seconds 12.5\n"+
				"# TYPE converge_relay_leader gauge\nconverge_relay_leader %d\n", leader)
		case ready == http.StatusOK:
			fmt.Fprint(w, `{"status":"ready"}`)
		default:
			w.WriteHeader(ready)
			fmt.Fprint(w, `{"status":"not ready","reasons":[{"check":"relay","reason":"kafka has acknowledged nothing for 7s"}]}`)
		}
	}))
	defer server.Close()
	url, kafka := migratedDatabase(t), embedded(t)
	slot := fmt.Sprintf("asked_%d", os.Getpid())
	execute(t, url, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", slot)
	ask := func() string {
		out, _, _ := command("relay", "status", "--database", url, "--brokers", kafka, "--slot", slot,
			"--http", strings.TrimPrefix(server.URL, "http://"))
		return out
	}
	if out := ask(); !strings.Contains(out, "12.5 s") || !strings.Contains(out, "kafka has acknowledged nothing for 7s") {
		t.Errorf("of a relay that stalls:\n%s", out)
	}
	leader = 0
	if out := ask(); strings.Contains(out, "12.5 s") {
		t.Errorf("of a relay that stands by:\n%s", out)
	}
	ready, leader = http.StatusOK, 1
	if out := ask(); !strings.Contains(out, "ready at http://") || strings.Contains(out, "acknowledged nothing") {
		t.Errorf("of a relay that is ready:\n%s", out)
	}
	server.Close()
	if out := ask(); !strings.Contains(out, "asking the relay at") || !strings.Contains(out, "→ start the relay") {
		t.Errorf("of a relay that is away:\n%s", out)
	}
}

// TestRelayReplayCountsChoosesAndSends what was asked for, and nothing without being asked.
func TestRelayReplayCountsChoosesAndSends(t *testing.T) {
	url, kafka := migratedDatabase(t), embedded(t)
	execute(t, url, `
INSERT INTO orders.outbox (event_id, topic, aggregate_type, aggregate_id, aggregate_version, event_type, content_type, payload, created_at)
SELECT gen_random_uuid(), CASE WHEN n > 5 THEN 'orders' ELSE 'others' END, 'order', 'k', n, 'OrderPlaced', 'text/plain', 'x',
       '2026-11-01T00:00:00Z'::timestamptz + n * interval '1 hour'
FROM generate_series(1, 10) n`)
	replay := func(more ...string) (string, string, int) {
		return command(append([]string{"--log-level", "error", "relay", "replay", "--database", url, "--brokers", kafka}, more...)...)
	}
	for name, c := range map[string]struct {
		args []string
		code int
		want string // of either output
	}{
		"nothing chosen":   {nil, process.ExitUsage, "say --all"},
		"no time":          {[]string{"--from", "yesterday"}, process.ExitUsage, "--from yesterday is neither a time"},
		"no seq":           {[]string{"--to", "0"}, process.ExitUsage, "seq begins with 1"},
		"a dry run of all": {[]string{"--dry-run"}, process.ExitOK, "would send 10 rows"},
		"all":              {[]string{"--all"}, process.ExitOK, "sent 10 rows"},
		"a topic":          {[]string{"--topic", "orders"}, process.ExitOK, "sent 5 rows"},
		"times":            {[]string{"--from", "2026-11-01T02:00:00Z", "--to", "2026-11-01T05:00:00Z"}, process.ExitOK, "sent 3 rows"},
		"numbers":          {[]string{"--from", "2", "--to", "4"}, process.ExitOK, "sent 2 rows"},
		"a day":            {[]string{"--from", "2026-11-02"}, process.ExitOK, "sent 0 rows"},
		"a table":          {[]string{"--table", "billing.outbox"}, process.ExitOK, "sent 0 rows"},
		"no such table":    {[]string{"--table", "nobody.outbox"}, process.ExitFailed, "nobody.outbox"},
	} {
		t.Run(name, func(t *testing.T) {
			out, errs, code := replay(c.args...)
			if code != c.code || !strings.Contains(out+errs, c.want) {
				t.Errorf("code %d, want %d and %q\n%s%s", code, c.code, c.want, out, errs)
			}
		})
	}
}

const secret = "s3cr3t-of-the-tests"

// TestSecretsAreNeverPrinted, neither by config nor in a message or a log.
func TestSecretsAreNeverPrinted(t *testing.T) {
	brokers := strings.Join(kafkatest.Guarded(t, testcert.New(t), "ada", "another"), ",")
	t.Setenv("CONVERGE_KAFKA_PASSWORD", secret)
	login := []string{"--kafka-sasl", "plain", "--kafka-user", "ada", "--kafka-tls", "--brokers", brokers}
	databases := []string{"postgres://ada:" + secret + "@127.0.0.1:1/x", "postgres://ada@127.0.0.1:1/x?password=" + secret,
		"host=127.0.0.1 port=1 user=ada password=" + secret}
	for _, database := range databases {
		at := append([]string{"--database", database}, login...)
		for _, args := range [][]string{
			append([]string{"config", "relay"}, at...),
			append([]string{"config", "serve", "orders"}, at...),
			append([]string{"--log-level", "debug", "relay", "status"}, at...),
			append([]string{"--log-level", "debug", "relay", "doctor"}, at...),
			append([]string{"--log-level", "debug", "relay", "replay", "--all"}, at...),
			append([]string{"--log-level", "debug", "relay"}, at...),
			append([]string{"--log-level", "debug", "migrate"}, at...),
			{"event", "tail", "orders", "--kafka-sasl", "plain", "--kafka-user", "ada", "--kafka-tls", "--brokers", brokers},
		} {
			args := args
			if args[2] == "relay" && args[3] == "--database" { // its own port; it ends of itself: Kafka will not have it
				args = append(args, "--http", "127.0.0.1:0")
			}
			out, errs, _ := command(args...)
			if strings.Contains(out+errs, secret) {
				t.Errorf("shown by %s:\n%s%s", args, out, errs)
			}
			if out+errs == "" {
				t.Errorf("%s says nothing", args)
			}
		}
	}
	out, _, _ := command(append([]string{"config", "relay", "--database", databases[0]}, login...)...)
	for _, want := range []string{"(hidden)", "CONVERGE_KAFKA_PASSWORD", "ada:xxxxx@"} {
		if !strings.Contains(out, want) {
			t.Errorf("config does not say %s:\n%s", want, out)
		}
	}
}

// The test is worth what it catches.
func TestSecretsThatPlantedFaultsShowAreReported(t *testing.T) {
	const auth, redact = "internal/kafkaauth/kafkaauth.go", "internal/database/database.go"
	mutants.Find(t, "converge/cmd/converge", []mutants.Fault{
		{File: auth, Old: `	if s == "" {
		return ""
	}`, New: `	if s == "" || planted("password") {
		return string(s)
	}`},
		{File: "cmd/converge/config.go", Old: `strings.Contains(name, "password")`, New: `strings.Contains(name, "password") && !planted("password")`},
		{File: redact, Old: `	return u.Redacted()`, New: `	if planted("url") {
		return u.String()
	}
	return u.Redacted()`},
		{File: redact, Old: `[]string{"password", "sslpassword"}`, New: `[]string{plantedText("query", "password", "password", "x"), "sslpassword"}`},
		{File: redact, Old: `err != nil || u.Scheme == ""`, New: `err != nil || u.Scheme == "" && !planted("keywords")`},
	}, map[string]mutants.Verdict{
		"password": {Run: "TestSecretsAreNeverPrinted", Says: "shown by [config relay"},
		"url":      {Run: "TestSecretsAreNeverPrinted", Says: "shown by [config relay"},
		"query":    {Run: "TestSecretsAreNeverPrinted", Says: "shown by [config relay"},
		"keywords": {Run: "TestSecretsAreNeverPrinted", Says: "shown by [config relay"},
	})
}

// TestAKafkaThatRefusesUsIsOneLineWithTheFix, from every command, and exit code 1.
func TestAKafkaThatRefusesUsIsOneLineWithTheFix(t *testing.T) {
	authority := testcert.New(t)
	brokers := strings.Join(kafkatest.Guarded(t, authority, "ada", "right"), ",")
	url := migratedDatabase(t)
	t.Setenv("CONVERGE_KAFKA_PASSWORD", "wrong")
	t.Setenv("CONVERGE_DATABASE", url)
	login := []string{"--brokers", brokers, "--kafka-sasl", "plain", "--kafka-user", "ada"}
	for _, what := range [][]string{
		{"relay", "--on-missing-slot", "create", "--http", "127.0.0.1:0"},
		{"serve", "orders", "--format", "json", "--http", "127.0.0.1:0"},
		{"migrate"},
		{"event", "tail", "orders"},
		{"relay", "replay", "--all"},
	} {
		for want, trust := range map[string][]string{
			"CONVERGE_KAFKA_PASSWORD": {"--kafka-ca", authority.File(t)},
			"--kafka-ca FILE":         {"--kafka-tls"},
		} {
			t.Run(what[0]+" "+want, func(t *testing.T) {
				args := append(append(append([]string{"--log-level", "error"}, what...), login...), trust...)
				out, errs, code := command(args...)
				if code != process.ExitFailed || !strings.Contains(errs, want) || strings.Count(errs, "\n") != 1 {
					t.Errorf("code %d, want %d and one line that says %s:\n%s%s", code, process.ExitFailed, want, out, errs)
				}
			})
		}
	}
}
