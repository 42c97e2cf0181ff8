package kafkatest

import (
	"bytes"
	"crypto/tls"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"converge/internal/testcert"
)

// Guarded starts an embedded Kafka that speaks TLS alone, by a certificate of the authority, and lets in one
// user by PLAIN or SCRAM. Everybody else is refused with the answer that Apache Kafka gives (KIP-152), where
// kfake itself would hang up; SCRAM's second step is left to kfake.
func Guarded(t testing.TB, authority *testcert.Authority, user, password string) (brokers []string) {
	t.Helper()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DefaultNumPartitions(3), kfake.EnableSASL(),
		kfake.Superuser("PLAIN", user, password),
		kfake.Superuser("SCRAM-SHA-256", user, password),
		kfake.Superuser("SCRAM-SHA-512", user, password),
		kfake.TLS(&tls.Config{Certificates: []tls.Certificate{authority.Server(t)}}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	welcome := []byte("\x00" + user + "\x00" + password)
	cluster.ControlKey(kmsg.SASLAuthenticate.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		request := r.(*kmsg.SASLAuthenticateRequest)
		if !bytes.HasPrefix(request.SASLAuthBytes, []byte{0}) || bytes.Equal(request.SASLAuthBytes, welcome) {
			return nil, nil, false
		}
		response := request.ResponseKind().(*kmsg.SASLAuthenticateResponse)
		response.ErrorCode = kerr.SaslAuthenticationFailed.Code
		return response, nil, true
	})
	return cluster.ListenAddrs()
}
