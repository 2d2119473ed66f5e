package server

import (
	"context"
	"errors"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/storage"
)

// ImageStatus is all that is known of one image, from memory. An unknown image
// is no error but an answer without one.
func (s *imageService) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	if err := checkImage("image", r.GetImage()); err != nil {
		return nil, err
	}
	image, err := s.Images.Image(r.GetImage().GetImage())
	if errors.Is(err, storage.ErrNotFound) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ImageStatusResponse{Image: criImage(image)}
	if r.GetVerbose() {
		resp.Info, err = infoJSON(map[string]any{"info": map[string]any{
			"imageSpec": map[string]any{
				"created": image.Created, "architecture": image.Architecture, "os": image.OS, "config": image.Config,
			},
		}})
	}
	return resp, err
}
