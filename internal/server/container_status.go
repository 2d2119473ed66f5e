package server

import (
	"context"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/sandbox"
)

// ContainerStatus is all that is known of one container, from memory.
func (s *runtimeService) ContainerStatus(_ context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	if err := checkID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	c, err := s.Engine.Container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: s.containerStatus(c)}
	if r.GetVerbose() {
		resp.Info, err = containerInfo(c)
	}
	return resp, err
}

func (s *Server) containerStatus(c *sandbox.Container) *runtimeapi.ContainerStatus {
	status := &runtimeapi.ContainerStatus{
		Id:          c.ID,
		Metadata:    c.Config.GetMetadata(),
		State:       c.State,
		CreatedAt:   nanos(c.CreatedAt),
		StartedAt:   nanos(c.StartedAt),
		FinishedAt:  nanos(c.FinishedAt),
		ExitCode:    c.ExitCode,
		Image:       imageSpec(c),
		ImageRef:    s.imageRef(c),
		ImageId:     c.ImageID,
		Reason:      c.Reason,
		Message:     c.Message,
		Labels:      c.Config.GetLabels(),
		Annotations: c.Config.GetAnnotations(),
		Mounts:      c.Mounts,
		LogPath:     c.LogPath,
		User:        c.User,
		StopSignal:  s.stopSignal(c),
	}
	if c.Resources != nil {
		status.Resources = &runtimeapi.ContainerResources{Linux: c.Resources}
	}
	return status
}

// imageSpec is the request's, with the name that the user wrote as the image: the
// kubelet asks by id, and shows people what it finds here.
func imageSpec(c *sandbox.Container) *runtimeapi.ImageSpec {
	spec := c.Config.GetImage()
	name := spec.GetUserSpecifiedImage()
	if name == "" {
		name = spec.GetImage()
	}
	return &runtimeapi.ImageSpec{
		Image: name, Annotations: spec.GetAnnotations(),
		UserSpecifiedImage: spec.GetUserSpecifiedImage(), RuntimeHandler: spec.GetRuntimeHandler(),
	}
}

// imageRef is the image in use by digest, in the repository that the container
// named if that is known: what users see as imageID in a pod's status and give to
// others, where the bare id (image_id) would say nothing. It is the id for an image that
// has no name any more.
func (s *Server) imageRef(c *sandbox.Container) string {
	image, err := s.Images.Image(c.ImageID)
	if err != nil || len(image.RepoDigests) == 0 {
		return c.ImageID
	}
	named := imageSpec(c).GetImage()
	for _, digest := range image.RepoDigests {
		repo, _, _ := strings.Cut(digest, "@")
		if rest, ok := strings.CutPrefix(named, repo); ok && (rest == "" || rest[0] == ':' || rest[0] == '@') {
			return digest
		}
	}
	return image.RepoDigests[0]
}

// stopSignal is the request's, else the image's, else SIGTERM.
func (s *Server) stopSignal(c *sandbox.Container) runtimeapi.Signal {
	if sig := c.Config.GetStopSignal(); sig != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return sig
	}
	if image, err := s.Images.Image(c.ImageID); err == nil {
		if sig, ok := criSignal(image.Config.StopSignal); ok {
			return sig
		}
	}
	return runtimeapi.Signal_SIGNAL_SIGTERM
}

// criSignal is CRI's name of "SIGQUIT", "QUIT" or "SIGRTMIN+3".
func criSignal(name string) (runtimeapi.Signal, bool) {
	name = strings.TrimPrefix(strings.ToUpper(name), "SIG")
	name = strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(name)
	value, ok := runtimeapi.Signal_value["SIGNAL_SIG"+name]
	return runtimeapi.Signal(value), ok
}

func containerInfo(c *sandbox.Container) (map[string]string, error) {
	config, err := protoJSON(c.Config)
	if err != nil {
		return nil, err
	}
	info := map[string]any{
		"sandboxID":      c.PodID,
		"pid":            c.Pid,
		"runtimeHandler": c.Handler,
		"cgroupsPath":    c.Cgroup,
		"rootfs":         c.RootFS,
		"config":         config,
	}
	if c.Restored {
		info["restored"] = "from a damaged record: some fields are unknown"
	}
	for k, v := range c.Info {
		info[k] = v
	}
	return infoJSON(map[string]any{"info": info})
}
