package server

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/storage"
)

// PullImage fetches an image and answers with its id.
func (s *imageService) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	if err := checkImage("image", r.GetImage()); err != nil {
		return nil, err
	}
	if err := checkAuth("auth", r.GetAuth()); err != nil {
		return nil, err
	}
	if !s.hasHandler(r.GetImage().GetRuntimeHandler()) {
		return nil, invalid("image.runtime_handler", r.GetImage().GetRuntimeHandler(), "is not configured on this node")
	}
	image, err := s.Images.Pull(ctx, storage.PullRequest{
		Ref:       r.GetImage().GetImage(),
		Auth:      auth(r.GetAuth()),
		Namespace: r.GetSandboxConfig().GetMetadata().GetNamespace(),
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: image.ID}, nil
}

func auth(a *runtimeapi.AuthConfig) *storage.Auth {
	if a == nil {
		return nil
	}
	return &storage.Auth{
		Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(), ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
	}
}
