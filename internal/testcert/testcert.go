// Package testcert makes certificates for tests of TLS.
//
// The guarantee: each authority is known to nobody but those who are given its file or pool, and its
// certificates are for this machine's loopback and valid for the hour of the test. It fails the test when
// it cannot.
package testcert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority signs certificates. Make it with [New].
type Authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// New makes an authority.
func New(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{}
	a.key = newKey(t)
	template := newTemplate(t, "an authority of the tests")
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	a.certificate = sign(t, template, template, &a.key.PublicKey, a.key)
	return a
}

// Pool holds the authority alone.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	return pool
}

// File returns a PEM file with the authority's certificate.
func (a *Authority) File(t testing.TB) string {
	t.Helper()
	return write(t, "ca.pem", "CERTIFICATE", a.certificate.Raw)
}

// Server returns a certificate of 127.0.0.1 and localhost.
func (a *Authority) Server(t testing.TB) tls.Certificate {
	t.Helper()
	return a.issue(t, x509.ExtKeyUsageServerAuth)
}

// ServerFiles returns the same as PEM files, for servers that are programs.
func (a *Authority) ServerFiles(t testing.TB) (certificate, key string) {
	t.Helper()
	return files(t, a.Server(t))
}

// ClientFiles returns a client's certificate and key as PEM files.
func (a *Authority) ClientFiles(t testing.TB) (certificate, key string) {
	t.Helper()
	return files(t, a.issue(t, x509.ExtKeyUsageClientAuth))
}

func (a *Authority) issue(t testing.TB, use x509.ExtKeyUsage) tls.Certificate {
	t.Helper()
	key := newKey(t)
	template := newTemplate(t, "localhost")
	template.ExtKeyUsage = []x509.ExtKeyUsage{use}
	template.DNSNames, template.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	signed := sign(t, template, a.certificate, &key.PublicKey, a.key)
	return tls.Certificate{Certificate: [][]byte{signed.Raw}, PrivateKey: key, Leaf: signed}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newTemplate(t testing.TB, name string) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
}

func sign(t testing.TB, template, parent *x509.Certificate, public *ecdsa.PublicKey, by *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, public, by)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

func files(t testing.TB, pair tls.Certificate) (certificate, key string) {
	t.Helper()
	raw, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, "cert.pem", "CERTIFICATE", pair.Certificate[0]), write(t, "key.pem", "PRIVATE KEY", raw)
}

func write(t testing.TB, name, kind string, raw []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
