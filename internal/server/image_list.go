package server

import (
	"context"
	"errors"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/storage"
)

// ListImages lists the images, or the one that the filter names, from memory.
func (s *imageService) ListImages(_ context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	resp := &runtimeapi.ListImagesResponse{}
	name := r.GetFilter().GetImage().GetImage()
	if name == "" {
		for _, image := range s.Images.Images() {
			resp.Images = append(resp.Images, criImage(image))
		}
		return resp, nil
	}
	if err := checkImage("filter.image", r.GetFilter().GetImage()); err != nil {
		return nil, err
	}
	image, err := s.Images.Image(name)
	switch {
	case err == nil:
		resp.Images = append(resp.Images, criImage(image))
	case !errors.Is(err, storage.ErrNotFound):
		return nil, err
	}
	return resp, nil
}

// criImage: the uid is set where the image's user is a number, else the name.
func criImage(i storage.Image) *runtimeapi.Image {
	image := &runtimeapi.Image{
		Id: i.ID, RepoTags: i.RepoTags, RepoDigests: i.RepoDigests,
		Size:   max(i.Size, 1), // CRI: must be > 0
		Spec:   &runtimeapi.ImageSpec{Image: i.ID, Annotations: i.Annotations},
		Pinned: i.Pinned,
	}
	user, _, _ := strings.Cut(i.Config.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		image.Uid = &runtimeapi.Int64Value{Value: uid}
	} else {
		image.Username = user
	}
	return image
}
