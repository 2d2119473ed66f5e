package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels by which a kubelet, and crictl after it, tells a container's pod. Those that
// `run` makes carry them too.
const (
	labelPodName       = "io.kubernetes.pod.name"
	labelPodNamespace  = "io.kubernetes.pod.namespace"
	labelPodUID        = "io.kubernetes.pod.uid"
	labelContainerName = "io.kubernetes.container.name"
)

// errUnknown: an argument names nothing that exists.
var errUnknown = errors.New("no such")

// candidate is something that an argument may name.
type candidate struct {
	id    string
	names []string
}

// find returns the index of the one candidate that name stands for: an id, a name, or the
// start of an id, in this order. kind is what they are, for errors.
func find(kind, name string, all []candidate) (int, error) {
	if name == "" {
		return 0, fmt.Errorf("%w %s: the name is empty", errUnknown, kind)
	}
	var named, prefixed []int
	for i, c := range all {
		bare := strings.TrimPrefix(c.id, "sha256:")
		switch {
		case c.id == name || bare == name:
			return i, nil
		case slices.Contains(c.names, name):
			named = append(named, i)
		case strings.HasPrefix(c.id, name) || strings.HasPrefix(bare, name):
			prefixed = append(prefixed, i)
		}
	}
	for _, matches := range [][]int{named, prefixed} {
		switch len(matches) {
		case 0:
		case 1:
			return matches[0], nil
		default:
			return 0, ambiguous(kind, matches, all)
		}
	}
	return 0, fmt.Errorf("%w %s", errUnknown, kind)
}

// ambiguous names some of those that an argument may stand for.
func ambiguous(kind string, matches []int, all []candidate) error {
	const shown = 4
	var ids []string
	for _, i := range matches[:min(len(matches), shown)] {
		ids = append(ids, shortID(all[i].id))
	}
	if len(matches) > shown {
		ids = append(ids, "…")
	}
	return fmt.Errorf("%d %ss answer to that: %s", len(matches), kind, strings.Join(ids, ", "))
}

// containers are all of a runtime's, as listed once.
type containers []*runtimeapi.Container

func (c *client) containers(ctx context.Context, filter *runtimeapi.ContainerFilter) (containers, error) {
	r, err := c.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	list := containers(r.GetContainers())
	slices.SortStableFunc(list, func(a, b *runtimeapi.Container) int { return newestFirst(a.GetCreatedAt(), b.GetCreatedAt()) })
	return list, nil
}

// find returns the container that name stands for: id, unique prefix, NAME or POD/NAME.
func (l containers) find(name string) (*runtimeapi.Container, error) {
	all := make([]candidate, len(l))
	for i, c := range l {
		own := c.GetMetadata().GetName()
		all[i] = candidate{c.GetId(), []string{own, c.GetLabels()[labelPodName] + "/" + own}}
	}
	i, err := find("container", name, all)
	if err != nil {
		return nil, err
	}
	return l[i], nil
}

// pods are all of a runtime's, as listed once.
type pods []*runtimeapi.PodSandbox

func (c *client) pods(ctx context.Context, filter *runtimeapi.PodSandboxFilter) (pods, error) {
	r, err := c.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	list := pods(r.GetItems())
	slices.SortStableFunc(list, func(a, b *runtimeapi.PodSandbox) int { return newestFirst(a.GetCreatedAt(), b.GetCreatedAt()) })
	return list, nil
}

// find returns the pod that name stands for: id, unique prefix, NAME or NAMESPACE/NAME.
func (l pods) find(name string) (*runtimeapi.PodSandbox, error) {
	all := make([]candidate, len(l))
	for i, p := range l {
		own := p.GetMetadata().GetName()
		all[i] = candidate{p.GetId(), []string{own, p.GetMetadata().GetNamespace() + "/" + own}}
	}
	i, err := find("pod", name, all)
	if err != nil {
		return nil, err
	}
	return l[i], nil
}

func (c *client) images(ctx context.Context, filter *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	r, err := c.image.ListImages(ctx, &runtimeapi.ListImagesRequest{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	return r.GetImages(), nil
}

// findImage returns the image that name stands for: what the runtime itself takes
// (an id, a tag, a digest, a short name), or a unique prefix of an id.
func (c *client) findImage(ctx context.Context, name string) (*runtimeapi.Image, error) {
	image, err := c.imageStatus(ctx, name)
	// A prefix may look like no reference at all; the runtime may say so.
	if image != nil || err != nil && !hasCode(err, codes.InvalidArgument) && !hasCode(err, codes.NotFound) {
		return image, err
	}
	list, err := c.images(ctx, nil)
	if err != nil {
		return nil, err
	}
	all := make([]candidate, len(list))
	for i, image := range list {
		all[i] = candidate{image.GetId(), slices.Concat(image.GetRepoTags(), image.GetRepoDigests())}
	}
	i, err := find("image", name, all)
	if err != nil {
		return nil, err
	}
	return list[i], nil
}

// imageStatus returns the image that ref stands for in the runtime's own view,
// nil when it has none.
func (c *client) imageStatus(ctx context.Context, ref string) (*runtimeapi.Image, error) {
	r, err := c.image.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		return nil, err
	}
	return r.GetImage(), nil
}

// newestFirst compares two times of creation.
func newestFirst(a, b int64) int {
	switch {
	case a > b:
		return -1
	case a < b:
		return 1
	default:
		return 0
	}
}
