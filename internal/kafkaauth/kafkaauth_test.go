package kafkaauth_test

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"converge/internal/kafkaauth"
	"converge/internal/kafkatest"
	"converge/internal/testcert"
)

const password = "correct horse"

func guarded(t *testing.T) (brokers []string, authority *testcert.Authority) {
	t.Helper()
	authority = testcert.New(t)
	return kafkatest.Guarded(t, authority, "ada", password), authority
}

func ping(t *testing.T, brokers []string, flags kafkaauth.Flags) error {
	t.Helper()
	options, err := flags.Options()
	if err != nil {
		t.Fatal(err)
	}
	client, err := kgo.NewClient(append(options, kgo.SeedBrokers(brokers...), kgo.RetryTimeout(5*time.Second))...)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	return client.Ping(t.Context())
}

func TestEveryWayToLogInWorksOverTLS(t *testing.T) {
	brokers, authority := guarded(t)
	for _, way := range []string{"plain", "scram-sha-256", "scram-sha-512"} {
		t.Run(way, func(t *testing.T) {
			err := ping(t, brokers, kafkaauth.Flags{KafkaCA: authority.File(t), KafkaSASL: way, KafkaUser: "ada", KafkaPassword: password})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestARefusalNamesItsFix(t *testing.T) {
	brokers, authority := guarded(t)
	good := kafkaauth.Flags{KafkaCA: authority.File(t), KafkaSASL: "plain", KafkaUser: "ada", KafkaPassword: password}
	for name, c := range map[string]struct {
		change func(*kafkaauth.Flags)
		want   string
	}{
		"password":  {change: func(f *kafkaauth.Flags) { f.KafkaPassword = "wrong" }, want: "CONVERGE_KAFKA_PASSWORD"},
		"user":      {change: func(f *kafkaauth.Flags) { f.KafkaUser = "eve" }, want: "--kafka-user"},
		"authority": {change: func(f *kafkaauth.Flags) { f.KafkaCA, f.KafkaTLS = "", true }, want: "--kafka-ca"},
	} {
		t.Run(name, func(t *testing.T) {
			flags := good
			c.change(&flags)
			err := ping(t, brokers, flags)
			if err == nil || !strings.Contains(kafkaauth.Fix(err), c.want) {
				t.Errorf("the fix of %v is %q, want one that says %s", err, kafkaauth.Fix(err), c.want)
			}
			if err != nil && strings.Contains(err.Error(), password) {
				t.Errorf("%v shows the password", err)
			}
		})
	}
}

func TestAClientCertificateIsShown(t *testing.T) {
	clients := testcert.New(t)
	authority := testcert.New(t)
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.TLS(&tls.Config{
		Certificates: []tls.Certificate{authority.Server(t)}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients.Pool()}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	flags := kafkaauth.Flags{KafkaCA: authority.File(t)}
	if err := ping(t, cluster.ListenAddrs(), flags); err == nil || !strings.Contains(kafkaauth.Fix(err), "--kafka-cert") {
		t.Errorf("without a certificate: %v", err)
	}
	flags.KafkaCert, flags.KafkaKey = clients.ClientFiles(t)
	if err := ping(t, cluster.ListenAddrs(), flags); err != nil {
		t.Error(err)
	}
}

func TestABrokerThatIsAwayIsNoRefusal(t *testing.T) {
	if fix := kafkaauth.Fix(ping(t, []string{"127.0.0.1:1"}, kafkaauth.Flags{})); fix != "" {
		t.Errorf("the fix is %q, want none", fix)
	}
}

func TestFlagsThatSayHalfAreRefused(t *testing.T) {
	noPEM := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(noPEM, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, flags := range map[string]kafkaauth.Flags{
		"--kafka-user":            {KafkaSASL: "plain", KafkaPassword: "x"},
		"CONVERGE_KAFKA_PASSWORD": {KafkaSASL: "plain", KafkaUser: "ada"},
		"--kafka-sasl":            {KafkaUser: "ada"},
		"give both":               {KafkaCert: noPEM},
		"reading --kafka-ca":      {KafkaCA: noPEM + ".not"},
		"no certificate":          {KafkaCA: noPEM},
		"--kafka-sasl gssapi":     {KafkaSASL: "gssapi", KafkaUser: "ada", KafkaPassword: "x"},
	} {
		if _, err := flags.Options(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want an error that says %s", flags, err, want)
		}
	}
}

func TestASecretDoesNotShowItself(t *testing.T) {
	flags := kafkaauth.Flags{KafkaSASL: "plain", KafkaUser: "ada", KafkaPassword: password}
	var logged strings.Builder
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("with", "flags", flags, "password", flags.KafkaPassword)
	slog.New(slog.NewTextHandler(&logged, nil)).Info("with", "flags", flags, "password", flags.KafkaPassword)
	for _, text := range []string{flags.Summary(), fmt.Sprint(flags), fmt.Sprintf("%+v", flags), fmt.Sprintf("%#v", flags), fmt.Sprintf("%q", flags.KafkaPassword), logged.String()} {
		if strings.Contains(text, password) {
			t.Errorf("%s shows the password", text)
		}
	}
}
