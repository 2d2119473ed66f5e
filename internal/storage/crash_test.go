package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cri-engine/cri-engine/test/registry"
)

// crashEnv makes the test's binary a process that pulls an image: a crashSpec in JSON.
const crashEnv = "CRI_ENGINE_TEST_PULL"

type crashSpec struct {
	Options Options
	Ref     string
}

func pullUntilKilled(spec string) {
	var c crashSpec
	err := json.Unmarshal([]byte(spec), &c)
	if err == nil {
		var s *Store
		if s, err = Open(context.Background(), c.Options); err == nil {
			_, err = s.Pull(context.Background(), PullRequest{Ref: c.Ref})
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func TestKilledWhilePulling(t *testing.T) {
	needRoot(t)
	r := registry.Start(t)
	texts := []string{strings.Repeat("one ", 100_000), strings.Repeat("two ", 200_000), strings.Repeat("three ", 100_000)}
	r.Add("app", testImage(texts...), "v1")
	o := testOptions(t, r)
	spec, err := json.Marshal(crashSpec{o, r.Ref("app:v1")})
	if err != nil {
		t.Fatal(err)
	}
	took := runCrash(t, string(spec), 0) // to the end: that is how long it may take
	kills := 6
	if testing.Short() {
		kills = 2
	}
	whole, half := 0, 0
	for i := range kills {
		s := openStore(t, o)
		if err := s.Remove(t.Context(), r.Ref("app:v1")); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		runCrash(t, string(spec), time.Millisecond+rand.N(took))
		s.reopen(t)
		img, err := s.Image(r.Ref("app:v1"))
		switch {
		case errors.Is(err, ErrNotFound):
			half++
			wantEmpty(t, s)
			img = mustPull(t, s, r.Ref("app:v1"))
		case err != nil:
			t.Fatal(err)
		default:
			whole++
		}
		checkContent(t, s, fmt.Sprint("c", i), img, texts)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d killed before the image was there, %d after", half, whole)
}

// runCrash pulls in another process, kills it after a while unless that is 0,
// and returns how long it lived.
func runCrash(t testing.TB, spec string, kill time.Duration) time.Duration {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashEnv+"="+spec)
	start := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if kill > 0 {
		time.Sleep(kill)
		_ = cmd.Process.Kill()
	}
	if err := cmd.Wait(); err != nil && kill == 0 {
		t.Fatalf("the pull fails: %v", err)
	}
	return time.Since(start)
}

func checkContent(t testing.TB, s *testStore, id string, img Image, texts []string) {
	t.Helper()
	fs, err := s.CreateRootFS(t.Context(), id, img.ID, RootFSOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i, text := range texts {
		if body, err := os.ReadFile(filepath.Join(fs.Path, fmt.Sprint("file", i))); err != nil || string(body) != text {
			t.Errorf("layer %d: %d bytes, %v; want %d", i, len(body), err, len(text))
		}
	}
	if err := s.RemoveRootFS(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}
