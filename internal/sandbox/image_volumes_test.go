package sandbox

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/oci"
	"github.com/cri-engine/cri-engine/internal/storage"
)

func withImages(refs ...string) *runtimeapi.ContainerConfig {
	c := containerConfig("c")
	for i, ref := range refs {
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{
			ContainerPath: "/v" + strings.Repeat("v", i), Readonly: true, Image: &runtimeapi.ImageSpec{Image: ref},
		})
	}
	return c
}

func TestImageVolumesAreTheContainersOwn(t *testing.T) {
	w := newWorld(t)
	e := w.engine()
	podID := must(e.RunPod(t.Context(), podConfig("p"), ""))(t)
	id := must(e.CreateContainer(t.Context(), podID, withImages("image", "image"), nil))(t)
	t.Run("mounts of one image share one root filesystem", func(t *testing.T) {
		got := w.RootFSes()
		slices.Sort(got)
		if !slices.Equal(got, []string{id, id + "-0"}) {
			t.Errorf("root filesystems %v", got)
		}
	})
	t.Run("the status has their digest and the request stays as it was", func(t *testing.T) {
		s := state(t, e, id)
		for i, m := range s.Mounts {
			if m.Image.ImageRef != s.ImageID || m.Image.Image != "image" || s.Config.Mounts[i].Image.ImageRef != "" {
				t.Errorf("mount %v", m)
			}
		}
	})
	t.Run("they are kept over a restart and go with the container", func(t *testing.T) {
		e.Close()
		e = w.engine()
		if s := state(t, e, id); s.Mounts[1].Image.ImageRef != s.ImageID || len(w.RootFSes()) != 2 {
			t.Errorf("mounts %v, root filesystems %v", s.Mounts, w.RootFSes())
		}
		if err := e.RemovePod(t.Context(), podID); err != nil {
			t.Fatal(err)
		}
		if !w.empty() {
			t.Error("something is left")
		}
	})
}

func TestAnImageVolumeThatFailsUndoesTheOthers(t *testing.T) {
	w := newWorld(t)
	e := w.engine()
	podID := must(e.RunPod(t.Context(), podConfig("p"), ""))(t)
	_, err := e.CreateContainer(t.Context(), podID, withImages("image", "none"), nil)
	if !errors.Is(err, storage.ErrNotFound) || !errors.Is(err, oci.ErrImageVolume) || !strings.Contains(err.Error(), "config.mounts[1]") {
		t.Errorf("error %v", err)
	}
	if left := w.RootFSes(); len(left) > 0 {
		t.Errorf("root filesystems %v", left)
	}
}

func TestImageVolumesOfNoContainerAreSwept(t *testing.T) {
	w := newWorld(t)
	orphan := strings.Repeat("a", 64)
	if _, err := w.CreateRootFS(context.Background(), volumeID(orphan, 3), "", storage.RootFSOptions{}); err != nil {
		t.Fatal(err)
	}
	w.engine()
	waitFor(t, func() bool { return len(w.RootFSes()) == 0 })
}
