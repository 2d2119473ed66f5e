package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/sandbox"
)

// drain reads a stream to its end and checks that no message is empty.
func drain[R, T any](t testing.TB, in grpc.ServerStreamingClient[R], err error, items func(*R) []T) (all []T, messages int) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := in.Recv()
		if errors.Is(err, io.EOF) {
			return all, messages
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(items(m)) == 0 {
			t.Error("a message has no item")
		}
		all, messages = append(all, items(m)...), messages+1
	}
}

func TestChunks(t *testing.T) {
	item := func(size int) *runtimeapi.Image { return &runtimeapi.Image{Id: strings.Repeat("x", size)} }
	many := func(n, size int) (list []*runtimeapi.Image) {
		for range n {
			list = append(list, item(size))
		}
		return list
	}
	cases := []struct {
		name  string
		items []*runtimeapi.Image
		want  []int
	}{
		{"nothing is no message", nil, nil},
		{"one", many(1, 1), []int{1}},
		{"as many as fit", many(chunkItems, 1), []int{chunkItems}},
		{"one more", many(chunkItems+1, 1), []int{chunkItems, 1}},
		{"large ones are fewer", many(5, chunkBytes/2-100), []int{2, 2, 1}},
		{"one that is too large goes alone", append(many(1, chunkBytes*2), many(2, 1)...), []int{1, 2}},
		{"also in the middle", append(many(2, 1), item(chunkBytes*2), item(1)), []int{2, 1, 1}},
	}
	for _, c := range cases {
		var got []int
		err := sendChunks(t.Context(), c.items, func(chunk []*runtimeapi.Image) error {
			got = append(got, len(chunk))
			return nil
		})
		if err != nil || fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: got %v, %v; want %v", c.name, got, err, c.want)
		}
	}
	t.Run("a cancelled call sends no more", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		sent := 0
		err := sendChunks(ctx, many(3*chunkItems, 1), func([]*runtimeapi.Image) error { sent++; cancel(); return nil })
		if !errors.Is(err, context.Canceled) || sent != 1 {
			t.Errorf("sent %d, %v", sent, err)
		}
	})
}

func TestStreamedLists(t *testing.T) {
	f := world()
	for i := range 2 * chunkItems {
		f.pods = append(f.pods, &sandbox.Pod{ID: fmt.Sprintf("e%04d", i), Config: podConfig(), CreatedAt: at(1)})
	}
	c := start(t, f)
	t.Run("pods come in pieces, each once", func(t *testing.T) {
		in, err := c.StreamPodSandboxes(t.Context(), &runtimeapi.StreamPodSandboxesRequest{})
		pods, messages := drain(t, in, err, (*runtimeapi.StreamPodSandboxesResponse).GetPodSandboxes)
		seen := map[string]bool{}
		for _, p := range pods {
			seen[p.GetId()] = true
		}
		if len(pods) != len(f.pods) || len(seen) != len(f.pods) || messages < 3 {
			t.Errorf("%d pods, %d different ones, in %d messages; want %d", len(pods), len(seen), messages, len(f.pods))
		}
	})
	t.Run("pods are filtered as in the list", func(t *testing.T) {
		in, err := c.StreamPodSandboxes(t.Context(), &runtimeapi.StreamPodSandboxesRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "db"}}})
		pods, _ := drain(t, in, err, (*runtimeapi.StreamPodSandboxesResponse).GetPodSandboxes)
		if len(pods) != 1 || pods[0].GetId() != "ba" {
			t.Errorf("got %v", pods)
		}
	})
	t.Run("containers", func(t *testing.T) {
		in, err := c.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: "bb"}})
		list, _ := drain(t, in, err, (*runtimeapi.StreamContainersResponse).GetContainers)
		if len(list) != 1 || list[0].GetId() != "cc" {
			t.Errorf("got %v", list)
		}
	})
	t.Run("container stats", func(t *testing.T) {
		in, err := c.StreamContainerStats(t.Context(), &runtimeapi.StreamContainerStatsRequest{})
		list, _ := drain(t, in, err, (*runtimeapi.StreamContainerStatsResponse).GetContainerStats)
		if len(list) != 1 || list[0].GetCpu().GetUsageCoreNanoSeconds().GetValue() != 11 {
			t.Errorf("got %v", list)
		}
	})
	t.Run("images", func(t *testing.T) {
		in, err := c.images.StreamImages(t.Context(), &runtimeapi.StreamImagesRequest{})
		list, _ := drain(t, in, err, (*runtimeapi.StreamImagesResponse).GetImages)
		if len(list) != 2 {
			t.Errorf("got %v", list)
		}
	})
	t.Run("an empty answer ends without a message", func(t *testing.T) {
		in, err := c.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: "nothing"}})
		if list, messages := drain(t, in, err, (*runtimeapi.StreamContainersResponse).GetContainers); len(list) != 0 || messages != 0 {
			t.Errorf("got %v in %d messages", list, messages)
		}
	})
	t.Run("what no request has a use for is refused", func(t *testing.T) {
		in, err := c.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: "a\x00"}})
		if err == nil {
			_, err = in.Recv()
		}
		wantCode(t, err, codes.InvalidArgument, "NUL")
	})
	t.Run("a wrong filter is refused as in the list", func(t *testing.T) {
		in, err := c.images.StreamImages(t.Context(), &runtimeapi.StreamImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: "a\nb"}}})
		if err == nil {
			_, err = in.Recv()
		}
		wantCode(t, err, codes.InvalidArgument, "filter.image")
	})
}
