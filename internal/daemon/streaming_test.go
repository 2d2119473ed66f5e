package daemon

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cri-engine/cri-engine/internal/config"
)

// writePair writes a certificate with a name and its key, last changed at a time.
func writePair(t testing.TB, c config.Streaming, name string, changed time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, c.TLSCertFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), changed)
	write(t, c.TLSKeyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), changed)
}

func write(t testing.TB, file string, data []byte, changed time.Time) {
	t.Helper()
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, changed, changed); err != nil {
		t.Fatal(err)
	}
}

func servedName(t testing.TB, c *tls.Config) string {
	t.Helper()
	pair, err := c.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf.Subject.CommonName
}

func TestACertificateThatChangesIsServedAnew(t *testing.T) {
	dir := t.TempDir()
	c := config.Streaming{TLSCertFile: filepath.Join(dir, "cert.pem"), TLSKeyFile: filepath.Join(dir, "key.pem")}
	if _, err := streamingTLS(c); err == nil || !strings.Contains(err.Error(), "cert.pem") {
		t.Errorf("without files: %v", err)
	}
	writePair(t, c, "first", time.Now().Add(-time.Hour))
	served, err := streamingTLS(c)
	if err != nil {
		t.Fatal(err)
	}
	if got := servedName(t, served); got != "first" {
		t.Errorf("served: %s", got)
	}
	write(t, c.TLSCertFile, []byte("half of a"), time.Now().Add(-time.Minute))
	if got := servedName(t, served); got != "first" {
		t.Errorf("served while the file is written: %s", got)
	}
	writePair(t, c, "second", time.Now())
	if got := servedName(t, served); got != "second" {
		t.Errorf("served after the change: %s", got)
	}
}

func TestClientsAreAskedForCertificatesWhereAnAuthorityIsNamed(t *testing.T) {
	dir := t.TempDir()
	c := config.Streaming{TLSCertFile: filepath.Join(dir, "cert.pem"), TLSKeyFile: filepath.Join(dir, "key.pem"), TLSClientCAFile: filepath.Join(dir, "ca.pem")}
	writePair(t, c, "server", time.Now())
	write(t, c.TLSClientCAFile, []byte("nothing of use"), time.Now())
	if _, err := streamingTLS(c); err == nil || !strings.Contains(err.Error(), "ca.pem has no certificate") {
		t.Errorf("with an empty file: %v", err)
	}
	pem, err := os.ReadFile(c.TLSCertFile)
	if err != nil {
		t.Fatal(err)
	}
	write(t, c.TLSClientCAFile, pem, time.Now())
	served, err := streamingTLS(c)
	if err != nil {
		t.Fatal(err)
	}
	if served.ClientAuth != tls.RequireAndVerifyClientCert || served.ClientCAs == nil {
		t.Errorf("clients are asked for: %v", served.ClientAuth)
	}
	if plain, err := streamingTLS(config.Streaming{}); plain != nil || err != nil {
		t.Errorf("without configuration: %v, %v", plain, err)
	}
}
