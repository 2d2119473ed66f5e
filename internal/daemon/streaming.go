package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/cri-engine/cri-engine/internal/config"
	"github.com/cri-engine/cri-engine/internal/sandbox"
	"github.com/cri-engine/cri-engine/internal/streaming"
)

func openStreaming(c config.Streaming, engine *sandbox.Engine) (*streaming.Server, error) {
	t, err := streamingTLS(c)
	if err != nil {
		return nil, fmt.Errorf("streaming: %w", err)
	}
	return streaming.Listen(streaming.Options{
		Engine: engine, Address: c.Address, TLS: t,
		IdleTimeout: time.Duration(c.IdleTimeout), CreationTimeout: time.Duration(c.CreationTimeout),
	})
}

// streamingTLS is nil where no certificate is configured.
func streamingTLS(c config.Streaming) (*tls.Config, error) {
	if c.TLSCertFile == "" {
		return nil, nil
	}
	pair := &keyPair{cert: c.TLSCertFile, key: c.TLSKeyFile}
	if _, err := pair.get(nil); err != nil {
		return nil, err
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: pair.get, NextProtos: []string{"http/1.1"}}
	if c.TLSClientCAFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(c.TLSClientCAFile)
	if err != nil {
		return nil, err
	}
	t.ClientCAs, t.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !t.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate in it", c.TLSClientCAFile)
	}
	return t, nil
}

// keyPair is a certificate and its key, read again when the files have changed.
type keyPair struct {
	cert, key string

	mu       sync.Mutex // Protects what follows; held over the files' reading, which only handshakes wait for.
	loaded   *tls.Certificate
	modified [2]time.Time
}

func (k *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var now [2]time.Time
	for i, file := range []string{k.cert, k.key} {
		st, err := os.Stat(file)
		if err != nil {
			return k.orOld(err)
		}
		now[i] = st.ModTime()
	}
	if k.loaded != nil && now == k.modified {
		return k.loaded, nil
	}
	pair, err := tls.LoadX509KeyPair(k.cert, k.key)
	if err != nil {
		return k.orOld(fmt.Errorf("%s and %s: %w", k.cert, k.key, err))
	}
	k.loaded, k.modified = &pair, now
	return k.loaded, nil
}

// orOld goes on with the pair at hand while the files are being changed.
func (k *keyPair) orOld(err error) (*tls.Certificate, error) {
	if k.loaded != nil {
		return k.loaded, nil
	}
	return nil, errors.Join(errors.New("no certificate to serve"), err)
}
