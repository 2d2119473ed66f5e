package registry

import (
	"fmt"
	"net/http"
	"slices"
	"time"
)

// Only twists what is asked for by this tag or digest.
func Only(name string, t Twist) Twist {
	return func(w http.ResponseWriter, r Request) bool { return r.Name == name && t(w, r) }
}

// Manifests twists manifests alone.
func Manifests(t Twist) Twist {
	return func(w http.ResponseWriter, r Request) bool { return r.Kind == "manifest" && t(w, r) }
}

// Status answers with an HTTP status and a body.
func Status(status int, body string) Twist {
	return func(w http.ResponseWriter, _ Request) bool {
		w.WriteHeader(status)
		fmt.Fprint(w, body)
		return true
	}
}

// Garble changes one byte in the middle.
func Garble(w http.ResponseWriter, r Request) bool {
	body := slices.Clone(r.Body)
	body[len(body)/2] ^= 0xff
	w.Header().Set("Content-Type", r.MediaType)
	_, _ = w.Write(body)
	return true
}

// Truncate ends after half of it, as if that were all.
func Truncate(w http.ResponseWriter, r Request) bool {
	w.Header().Set("Content-Type", r.MediaType)
	_, _ = w.Write(r.Body[:len(r.Body)/2])
	return true
}

// CutOff promises all of it and closes the connection after half.
func CutOff(w http.ResponseWriter, r Request) bool {
	w.Header().Set("Content-Length", fmt.Sprint(len(r.Body)))
	_, _ = w.Write(r.Body[:len(r.Body)/2])
	return true
}

// Stall sends half of it and then nothing more.
func Stall(w http.ResponseWriter, r Request) bool {
	w.Header().Set("Content-Type", r.MediaType)
	w.Header().Set("Content-Length", fmt.Sprint(len(r.Body)))
	_, _ = w.Write(r.Body[:len(r.Body)/2])
	return hang(w, r)
}

// Hang never answers.
func Hang(w http.ResponseWriter, r Request) bool { return hang(nil, r) }

func hang(w http.ResponseWriter, r Request) bool {
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
	select {
	case <-r.Ended:
	case <-r.Context().Done():
	}
	return true
}

// Endless sends it and then bytes without end.
func Endless(w http.ResponseWriter, r Request) bool {
	w.Header().Set("Content-Type", r.MediaType)
	if _, err := w.Write(r.Body); err != nil {
		return true
	}
	for zeros := make([]byte, 64<<10); ; {
		if _, err := w.Write(zeros); err != nil {
			return true
		}
		select {
		case <-r.Ended:
			return true
		default:
		}
	}
}

// Late waits before the honest answer.
func Late(d time.Duration) Twist {
	return func(_ http.ResponseWriter, r Request) bool {
		select {
		case <-time.After(d):
		case <-r.Ended:
		case <-r.Context().Done():
		}
		return false
	}
}

// Trickle sends it in chunks with pauses.
func Trickle(chunk int, pause time.Duration) Twist {
	return func(w http.ResponseWriter, r Request) bool {
		w.Header().Set("Content-Type", r.MediaType)
		w.Header().Set("Content-Length", fmt.Sprint(len(r.Body)))
		for part := range slices.Chunk(r.Body, chunk) {
			if _, err := w.Write(part); err != nil {
				return true
			}
			if f, ok := w.(http.Flusher); ok {
				f.Flush()
			}
			select {
			case <-time.After(pause):
			case <-r.Ended:
				return true
			case <-r.Context().Done():
				return true
			}
		}
		return true
	}
}
