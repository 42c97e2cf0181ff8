// Package kafkaauth is how a command says what its Kafka wants of it: TLS, a certificate, a password.
//
// The guarantee: what is half said is refused before anything connects, and a password is never part of
// a message, a log line or a printed configuration. It fails to hold for a password given as a flag, which
// everyone on the machine can read in the list of processes: give it as an environment variable.
package kafkaauth

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// Flags are the command line's part, as kong reads it; they are embedded in every command that talks to
// Kafka. The zero value is a Kafka that wants neither TLS nor a password.
type Flags struct {
	KafkaTLS      bool   `name:"kafka-tls" help:"Speak TLS with Kafka; its certificate is checked against the system's authorities."`
	KafkaCA       string `name:"kafka-ca" placeholder:"FILE" help:"Check Kafka's certificate against the authorities in this PEM file instead; means --kafka-tls."`
	KafkaCert     string `name:"kafka-cert" placeholder:"FILE" help:"Show Kafka this certificate (PEM); means --kafka-tls, needs --kafka-key."`
	KafkaKey      string `name:"kafka-key" placeholder:"FILE" help:"The key of --kafka-cert (PEM)."`
	KafkaSASL     string `name:"kafka-sasl" enum:"plain,scram-sha-256,scram-sha-512," default:"" placeholder:"HOW" help:"Log in to Kafka by plain, scram-sha-256 or scram-sha-512."`
	KafkaUser     string `placeholder:"NAME" help:"User of --kafka-sasl."`
	KafkaPassword Secret `placeholder:"SECRET" help:"Password of --kafka-sasl. Prefer the variable: other users can read flags."`
}

// Secret is a text that does not show itself: whatever prints it prints "(hidden)".
type Secret string

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "(hidden)"
}

// GoString and MarshalText are for what does not ask for String.
func (s Secret) GoString() string             { return s.String() }
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Options returns the options of a Kafka client, or what is wrong with the flags.
func (f Flags) Options() ([]kgo.Opt, error) {
	var options []kgo.Opt
	if f.encrypted() {
		config, err := f.tls()
		if err != nil {
			return nil, err
		}
		options = append(options, kgo.DialTLSConfig(config))
	}
	mechanism, err := f.mechanism()
	if err != nil {
		return nil, err
	}
	if mechanism != nil {
		options = append(options, kgo.SASL(mechanism))
	}
	return options, nil
}

func (f Flags) encrypted() bool {
	return f.KafkaTLS || f.KafkaCA != "" || f.KafkaCert != "" || f.KafkaKey != ""
}

// Environment returns the flags as the variables of a process that is started for the same Kafka: a
// password must not be among its arguments.
func (f Flags) Environment() []string {
	var pairs []string
	for name, value := range map[string]string{
		"CA": f.KafkaCA, "CERT": f.KafkaCert, "KEY": f.KafkaKey,
		"SASL": f.KafkaSASL, "USER": f.KafkaUser, "PASSWORD": string(f.KafkaPassword),
	} {
		if value != "" {
			pairs = append(pairs, "CONVERGE_KAFKA_"+name+"="+value)
		}
	}
	if f.KafkaTLS {
		pairs = append(pairs, "CONVERGE_KAFKA_TLS=true")
	}
	return pairs
}

// Summary says in a few words what is in use, for people.
func (f Flags) Summary() string {
	text := "no TLS"
	if f.encrypted() {
		text = "TLS"
	}
	if f.KafkaCert != "" {
		text += " with a client certificate"
	}
	if f.KafkaSASL == "" {
		return text + ", no login"
	}
	return text + ", " + f.KafkaSASL + " as " + f.KafkaUser
}

func (f Flags) tls() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.KafkaCA != "" {
		text, err := os.ReadFile(f.KafkaCA)
		if err != nil {
			return nil, fmt.Errorf("reading --kafka-ca: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("--kafka-ca %s holds no certificate in PEM form", f.KafkaCA)
		}
	}
	if f.KafkaCert == "" && f.KafkaKey == "" {
		return config, nil
	}
	if f.KafkaCert == "" || f.KafkaKey == "" {
		return nil, errors.New("--kafka-cert and --kafka-key go together: give both")
	}
	pair, err := tls.LoadX509KeyPair(f.KafkaCert, f.KafkaKey)
	if err != nil {
		return nil, fmt.Errorf("reading --kafka-cert and --kafka-key: %w", err)
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}

func (f Flags) mechanism() (sasl.Mechanism, error) {
	user, password := f.KafkaUser, string(f.KafkaPassword)
	switch {
	case f.KafkaSASL == "" && (user != "" || password != ""):
		return nil, errors.New("a Kafka user or password without a way to log in: say --kafka-sasl, as the brokers offer it")
	case f.KafkaSASL == "":
		return nil, nil
	case user == "":
		return nil, errors.New("--kafka-sasl without a user: give --kafka-user")
	case password == "":
		return nil, errors.New("--kafka-sasl without a password: set CONVERGE_KAFKA_PASSWORD")
	}
	login := scram.Auth{User: user, Pass: password}
	switch f.KafkaSASL {
	case "plain":
		return plain.Auth{User: user, Pass: password}.AsMechanism(), nil
	case "scram-sha-256":
		return login.AsSha256Mechanism(), nil
	case "scram-sha-512":
		return login.AsSha512Mechanism(), nil
	}
	return nil, fmt.Errorf("--kafka-sasl %s is not plain, scram-sha-256 or scram-sha-512", f.KafkaSASL)
}

// tlsAlert is the operation of an error that package crypto/tls makes of the other side's alert.
const tlsAlert = "remote error"

// Fix returns what to do about an error of a Kafka client that no waiting mends: a certificate or a
// password that is not accepted. It returns "" for all others, a broker that is away among them.
func Fix(err error) string {
	var (
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
		network  *net.OpError
	)
	switch {
	case errors.As(err, &unknown):
		return "give the certificate of the authority that signed the brokers' certificates: --kafka-ca FILE"
	case errors.As(err, &hostname):
		return "reach the brokers by a name that their certificates hold, in --brokers and in the brokers' advertised.listeners"
	case errors.As(err, &invalid):
		return "renew the brokers' certificates"
	case errors.As(err, &network) && network.Op == tlsAlert:
		return "the brokers do not accept the client's certificate: give one they trust, --kafka-cert FILE --kafka-key FILE"
	case errors.Is(err, kerr.SaslAuthenticationFailed):
		return "give the user and password that Kafka knows: --kafka-user, and the variable CONVERGE_KAFKA_PASSWORD"
	case errors.Is(err, kerr.UnsupportedSaslMechanism), errors.Is(err, kerr.IllegalSaslState):
		return "log in by what the brokers offer: --kafka-sasl plain, scram-sha-256 or scram-sha-512"
	}
	return ""
}

// WithFix returns err with its fix in the message, or err itself when there is none.
func WithFix(err error) error {
	if fix := Fix(err); fix != "" {
		return fmt.Errorf("%w: %s", err, fix)
	}
	return err
}
