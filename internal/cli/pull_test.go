package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	enginev1 "github.com/cri-engine/cri-engine/api/engine/v1"
)

const pulledID = "sha256:cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"

func TestPull(t *testing.T) {
	t.Run("id, size and time are told", func(t *testing.T) {
		f := newFake(t)
		r := f.try(t, "pull", "example.com/app:1")
		if r.code != 0 || !strings.HasPrefix(r.out, "example.com/app:1\t"+pulledID+"\t12.3MB in ") {
			t.Errorf("got %d %q %q", r.code, r.out, r.err)
		}
		f.try(t, "pull", "-q", "example.com/app:2").want(t, 0, pulledID+"\n")
		f.try(t, "pull", "-o", "json", "example.com/app:3").want(t, 0, "{\n  \"imageRef\": \""+pulledID+"\"\n}\n")
	})
	t.Run("progress is a line for each change of a layer", func(t *testing.T) {
		step := func(image, layer string, s enginev1.PullProgress_State, offset int64) *enginev1.PullProgress {
			return &enginev1.PullProgress{Image: image, Layer: layer, State: s, Offset: offset, Total: 2_000_000}
		}
		layer := "sha256:" + strings.Repeat("5a", 32)
		f := newFake(t,
			step("app", "", enginev1.PullProgress_STATE_RESOLVING, 0),
			step("app", layer, enginev1.PullProgress_STATE_DOWNLOADING, 0),
			step("other", layer, enginev1.PullProgress_STATE_FAILED, 0),
			step("app", layer, enginev1.PullProgress_STATE_DOWNLOADING, 1_000_000),
			step("app", layer, enginev1.PullProgress_STATE_DONE, 2_000_000),
		)
		f.slow = 300 * time.Millisecond
		r := f.try(t, "pull", "app")
		want := "app: resolving 2MB\n5a5a5a5a5a5a5: downloading 2MB\n5a5a5a5a5a5a5: done 2MB\n"
		if r.code != 0 || r.err != want {
			t.Errorf("code %d, stderr %q, want %q", r.code, r.err, want)
		}
	})
	t.Run("an error names the image, and others are pulled", func(t *testing.T) {
		f := newFake(t)
		f.fail["PullImage"] = status.Error(codes.Unknown, "RegistryUnavailable: connection refused")
		f.try(t, "pull", "a", "b").want(t, 1, "", "pull a: RegistryUnavailable: connection refused\n", "pull b: ")
	})
}

func TestCredentials(t *testing.T) {
	file := filepath.Join(t.TempDir(), "creds")
	if err := os.WriteFile(file, []byte("user:pass:word\nrest"), 0o600); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name, stdin string
		args        []string
		user, pass  string
		err         string
	}{
		{"none", "", nil, "", "", ""},
		{"on the command line", "", []string{"--creds", "u:p"}, "u", "p", ""},
		{"of a file, whose password may hold colons", "", []string{"--creds-file", file}, "user", "pass:word", ""},
		{"of stdin", "u2:p2\n", []string{"--creds-file", "-"}, "u2", "p2", ""},
		{"without a password and nobody to ask", "", []string{"--creds", "u"}, "", "", "want USER:PASSWORD"},
		{"without a user", "", []string{"--creds", ":p"}, "", "", "want USER:PASSWORD"},
		{"of both", "", []string{"--creds", "u:p", "--creds-file", "-"}, "", "", "exclude each other"},
		{"of no file", "", []string{"--creds-file", file + "x"}, "", "", "no such file"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t)
			r := f.tryContext(t.Context(), t, c.stdin, append([]string{"pull", "-q", "x"}, c.args...)...)
			if c.err != "" {
				r.want(t, 1, "", c.err)
				if f.called("PullImage") != 0 {
					t.Error("it was pulled all the same")
				}
				return
			}
			if f.auth.GetUsername() != c.user || f.auth.GetPassword() != c.pass {
				t.Errorf("sent %q:%q", f.auth.GetUsername(), f.auth.GetPassword())
			}
		})
	}
}
