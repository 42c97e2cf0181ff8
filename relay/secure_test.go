package relay_test

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/internal/database"
	"converge/internal/kafkaauth"
	"converge/internal/kafkatest"
	"converge/internal/sandbox"
	"converge/internal/testcert"
	"converge/producers/outbox"
	"converge/relay"
)

const kafkaPassword, databasePassword = "kafka's secret", "postgres's secret"

// guardedDatabase is a PostgreSQL that wants TLS and a password, of its own because both are a server's
// settings. It returns the URL of a role ada that owns an outbox, without sslmode and password.
func guardedDatabase(t *testing.T, authority *testcert.Authority) *url.URL {
	t.Helper()
	dir, err := os.MkdirTemp("", "converge-secure-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	server, err := sandbox.StartPostgres(t.Context(), sandbox.PostgresConfig{Dir: dir, Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := database.Migrate(t.Context(), server.URL(), database.Module{Service: service,
		Sets: []database.Set{{Name: "outbox", FS: outbox.Migrations}}}); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, server.URL())
	data := ask[string](t, conn, "SHOW data_directory")
	owner, err := os.Stat(data)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key := authority.ServerFiles(t)
	give(t, certificate, filepath.Join(data, "server.crt"), owner)
	give(t, key, filepath.Join(data, "server.key"), owner)
	hba := filepath.Join(t.TempDir(), "hba")
	if err := os.WriteFile(hba, []byte("host all converge 127.0.0.1/32 trust\nhostssl all ada 127.0.0.1/32 scram-sha-256\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	give(t, hba, filepath.Join(data, "pg_hba.conf"), owner)
	execute(t, conn, "CREATE ROLE ada LOGIN REPLICATION IN ROLE "+database.Role(service)+" PASSWORD '"+strings.ReplaceAll(databasePassword, "'", "''")+"'")
	execute(t, conn, "GRANT CREATE ON DATABASE "+pgx.Identifier{conn.Config().Database}.Sanitize()+" TO ada")
	execute(t, conn, "ALTER SYSTEM SET ssl = on")
	execute(t, conn, "SELECT pg_reload_conf()")
	u, err := url.Parse(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.User, u.RawQuery = url.UserPassword("ada", databasePassword), ""
	return u
}

// give copies a file to where a server reads it, as the server's own.
func give(t *testing.T, from, to string, owner os.FileInfo) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if s, ok := owner.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		if err := os.Chown(to, int(s.Uid), int(s.Gid)); err != nil {
			t.Fatal(err)
		}
	}
}

func with(u *url.URL, parameters url.Values) string {
	changed := *u
	changed.RawQuery = parameters.Encode()
	return changed.String()
}

// TestRelayStreamsOverTLSOnBothLegs, and refuses to on either when it cannot trust who answers, or is not
// trusted: at once, with the fix, and without showing a secret.
func TestRelayStreamsOverTLSOnBothLegs(t *testing.T) {
	t.Parallel()
	authority, stranger := testcert.New(t), testcert.New(t)
	brokers := kafkatest.Guarded(t, authority, "ada", kafkaPassword)
	address := guardedDatabase(t, authority)
	trusting := url.Values{"sslmode": {"verify-full"}, "sslrootcert": {authority.File(t)}}
	flags := kafkaauth.Flags{KafkaCA: authority.File(t), KafkaSASL: "plain", KafkaUser: "ada", KafkaPassword: kafkaPassword}

	good := relay.Config{DatabaseURL: with(address, trusting), Brokers: brokers, Slot: "secure", Tables: []string{outboxTable},
		OnMissingSlot: relay.CreateMissingSlot}
	secured := func(f kafkaauth.Flags) []kgo.Opt {
		options, err := f.Options()
		if err != nil {
			t.Fatal(err)
		}
		return options
	}
	good.KafkaOptions = secured(flags)
	for name, c := range map[string]struct {
		change func(*relay.Config)
		want   string
	}{
		"Kafka's authority is unknown": {func(c *relay.Config) {
			f := flags
			f.KafkaCA = stranger.File(t)
			c.KafkaOptions = secured(f)
		}, "--kafka-ca"},
		"Kafka's password is wrong": {func(c *relay.Config) {
			f := flags
			f.KafkaPassword = "wrong"
			c.KafkaOptions = secured(f)
		}, "CONVERGE_KAFKA_PASSWORD"},
		"PostgreSQL's authority is unknown": {func(c *relay.Config) {
			c.DatabaseURL = with(address, url.Values{"sslmode": {"verify-full"}, "sslrootcert": {stranger.File(t)}})
		}, "sslrootcert=FILE"},
		"PostgreSQL's password is wrong": {func(c *relay.Config) {
			other := *address
			other.User = url.UserPassword("ada", "wrong")
			c.DatabaseURL = with(&other, trusting)
		}, "give the right password in the database URL"},
		"PostgreSQL wants TLS": {func(c *relay.Config) {
			c.DatabaseURL = with(address, url.Values{"sslmode": {"disable"}})
		}, "pg_hba.conf admits"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := good
			c.change(&bad)
			subject := start(t, bad)
			select {
			case <-subject.done:
			case <-time.After(patience):
				t.Fatalf("Run goes on; ready is %v", subject.Ready())
			}
			if subject.err == nil || !strings.Contains(subject.err.Error(), c.want) {
				t.Errorf("Run returned %v, want an error that says %s", subject.err, c.want)
			}
			for _, secret := range []string{kafkaPassword, databasePassword} {
				if subject.err != nil && strings.Contains(subject.err.Error(), secret) {
					t.Errorf("%v shows a secret", subject.err)
				}
			}
		})
	}

	found := diagnosis(t, good)
	if f := found["database"]; !strings.Contains(f.Found, "TLSv1.3") {
		t.Errorf("of the database is found %+v, want TLS", f)
	}
	if f := found["kafka security"]; f.Found != "TLS, PLAIN" {
		t.Errorf("of Kafka's security is found %+v, want TLS, PLAIN", f)
	}
	startReady(t, good)
	insertRow(t, connect(t, good.DatabaseURL), "orders", "k", "over TLS")
	client, err := kgo.NewClient(append(good.KafkaOptions, kgo.SeedBrokers(brokers...), kgo.ConsumeTopics("orders"),
		kgo.MetadataMinAge(50*time.Millisecond), kgo.MetadataMaxAge(250*time.Millisecond))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	reader := &topicReader{client: client}
	if got := reader.value(t); got != "over TLS" {
		t.Errorf("the record is %q", got)
	}
}
