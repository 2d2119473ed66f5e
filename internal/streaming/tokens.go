package streaming

import (
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// tokenTime is how long a URL is good for, maxTokens how many may be out.
	tokenTime = time.Minute
	maxTokens = 1000
)

// tokens are the requests that wait for their client to connect.
type tokens struct {
	mu      sync.Mutex // Protects what follows.
	waiting map[string]waiting
	now     func() time.Time
}

type waiting struct {
	request any
	until   time.Time
}

func newTokens() *tokens {
	return &tokens{waiting: map[string]waiting{}, now: time.Now}
}

// add returns a token of 26 letters and digits, 130 random bits, for a request.
func (t *tokens) add(request any) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if len(t.waiting) >= maxTokens {
		for token, w := range t.waiting {
			if now.After(w.until) {
				delete(t.waiting, token)
			}
		}
	}
	if len(t.waiting) >= maxTokens {
		return "", status.Error(codes.ResourceExhausted, fmt.Sprintf("%d streaming requests of the last minute wait for their client to connect", maxTokens))
	}
	token := rand.Text()
	t.waiting[token] = waiting{request, now.Add(tokenTime)}
	return token, nil
}

// take returns a token's request, once.
func (t *tokens) take(token string) (any, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w, ok := t.waiting[token]
	delete(t.waiting, token)
	if !ok || t.now().After(w.until) {
		return nil, false
	}
	return w.request, true
}
