package storage

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/types"
)

// credentials are a request's, in the form the docker transport wants.
type credentials struct {
	config types.DockerAuthConfig
	token  string // bearer
	server string // host they are limited to, "" for any
}

// parseAuth reads what a request says; nil when it says nothing.
func parseAuth(a *Auth) (*credentials, error) {
	if a == nil {
		return nil, nil
	}
	c := credentials{token: a.RegistryToken, server: serverHost(a.ServerAddress)}
	switch {
	case a.Username != "":
		c.config = types.DockerAuthConfig{Username: a.Username, Password: a.Password}
	case a.IdentityToken != "":
	case a.Auth != "":
		user, password, err := decodeBasic(a.Auth)
		if err != nil {
			return nil, err
		}
		c.config = types.DockerAuthConfig{Username: user, Password: password}
	}
	c.config.IdentityToken = a.IdentityToken
	if c.config == (types.DockerAuthConfig{}) && c.token == "" {
		return nil, nil
	}
	return &c, nil
}

// decodeBasic reads base64 of "user:password". Its errors do not quote it.
func decodeBasic(s string) (user, password string, err error) {
	s = strings.TrimRight(strings.TrimSpace(s), "=")
	raw, err := base64.RawStdEncoding.DecodeString(s)
	if err != nil {
		raw, err = base64.RawURLEncoding.DecodeString(s)
	}
	if err != nil {
		return "", "", errors.New("the credentials are not base64")
	}
	user, password, ok := strings.Cut(string(raw), ":")
	if !ok {
		return "", "", errors.New("the credentials are not base64 of user:password")
	}
	// Docker pads the password with zero bytes.
	return user, strings.TrimRight(password, "\x00"), nil
}

// serverHost is the host and port of an address that may be a whole URL.
// Docker Hub's many names are one, as in references.
func serverHost(address string) string {
	if _, rest, ok := strings.Cut(address, "://"); ok {
		address = rest
	}
	host, _, _ := strings.Cut(address, "/")
	switch host = strings.ToLower(host); host {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return "docker.io"
	}
	return host
}

// apply puts the credentials into sys if they are meant for that image.
func (c *credentials) apply(sys *types.SystemContext, named reference.Named) {
	if c == nil || c.server != "" && c.server != strings.ToLower(reference.Domain(named)) {
		return
	}
	// Set even for a token alone: it is how the transport knows that what it was
	// given is not for mirrors.
	config := c.config
	sys.DockerAuthConfig = &config
	sys.DockerBearerRegistryToken = c.token
}

// key tells credentials apart without keeping them.
func (c *credentials) key() string {
	if c == nil {
		return ""
	}
	h := sha256.New()
	for _, s := range []string{c.config.Username, c.config.Password, c.config.IdentityToken, c.token, c.server} {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return string(h.Sum(nil))
}

// secrets are the strings that no text may hold. Short ones can't be told from
// other text, and are no secrets worth the name.
func (c *credentials) secrets() []string {
	if c == nil {
		return nil
	}
	var out []string
	for _, s := range []string{c.config.Password, c.config.IdentityToken, c.token} {
		if len(s) >= 4 {
			out = append(out, s)
		}
	}
	return out
}
