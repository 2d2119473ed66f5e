package storage

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cri-engine/cri-engine/test/registry"
)

func BenchmarkPullSmall(b *testing.B) {
	needRoot(b)
	r := registry.Start(b)
	r.Add("app", testImage("base", "middle", "top"), "v1")
	s := openStore(b, testOptions(b, r))
	for b.Loop() {
		mustPull(b, s, r.Ref("app:v1"))
		b.StopTimer()
		if err := s.Remove(b.Context(), r.Ref("app:v1")); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkPullPresent(b *testing.B) {
	needRoot(b)
	r := registry.Start(b)
	r.Add("app", testImage("base", "middle", "top"), "v1")
	s := openStore(b, testOptions(b, r))
	mustPull(b, s, r.Ref("app:v1"))
	for b.Loop() {
		mustPull(b, s, r.Ref("app:v1"))
	}
}

func BenchmarkRootFS(b *testing.B) {
	needRoot(b)
	r := registry.Start(b)
	r.Add("app", testImage("base", "middle", "top"), "v1")
	s := openStore(b, testOptions(b, r))
	img := mustPull(b, s, r.Ref("app:v1"))
	b.Run("create", func(b *testing.B) {
		for n := 0; b.Loop(); n++ {
			id := fmt.Sprint("create", n)
			if _, err := s.CreateRootFS(b.Context(), id, img.ID, RootFSOptions{}); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := s.RemoveRootFS(b.Context(), id); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	b.Run("remove", func(b *testing.B) {
		for n := 0; b.Loop(); n++ {
			b.StopTimer()
			id := fmt.Sprint("remove", n)
			if _, err := s.CreateRootFS(b.Context(), id, img.ID, RootFSOptions{}); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			if err := s.RemoveRootFS(b.Context(), id); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	s := &Store{names: testResolver(b, "")}
	images := map[string]Image{}
	for i := range 200 {
		id := fmt.Sprintf("sha256:%064x", i)
		images[id] = Image{ID: id, RepoTags: []string{fmt.Sprintf("docker.io/library/image%d:latest", i)}}
	}
	s.images.Store(newIndex(images))
	b.Run("list", func(b *testing.B) {
		for b.Loop() {
			if len(s.Images()) != 200 {
				b.Fatal("not all")
			}
		}
	})
	b.Run("short-name", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.Image("image7"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("id", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.Image("sha256:" + strings.Repeat("0", 64)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
