package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// imagesOptions are the flags of images.
type imagesOptions struct {
	options
	digests, pinned, noTrunc bool
}

func imagesCommand() *cobra.Command {
	var o imagesOptions
	cmd := &cobra.Command{
		Use:   "images [NAME]",
		Short: "List images",
		Example: `  cri-engine images
  cri-engine images docker.io/library/nginx:latest
  cri-engine images --digests -o json`,
		Args: cobra.MaximumNArgs(1),
		RunE: o.connected(func(ctx context.Context, c *call) error { return listImages(ctx, c, &o) }),
	}
	o.addEndpoint(cmd, defaultTimeout)
	o.addOutput(cmd, "only ids")
	cmd.ValidArgsFunction = o.complete(1, completeImages)
	cmd.Flags().BoolVar(&o.digests, "digests", false, "show digests")
	cmd.Flags().BoolVar(&o.pinned, "pinned", false, "show which images are never garbage collected")
	cmd.Flags().BoolVar(&o.noTrunc, "no-trunc", false, "show whole ids and digests")
	return cmd
}

func listImages(ctx context.Context, c *call, o *imagesOptions) error {
	var filter *runtimeapi.ImageFilter
	if len(c.args) == 1 {
		filter = &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: c.args[0]}}
	}
	list, err := c.images(ctx, filter)
	if err != nil {
		return err
	}
	slices.SortStableFunc(list, func(a, b *runtimeapi.Image) int {
		return strings.Compare(firstName(a), firstName(b))
	})
	switch {
	case o.quiet:
		for _, image := range list {
			fmt.Fprintln(c.out, clean(image.GetId()))
		}
		return nil
	case o.structured():
		return c.print(&runtimeapi.ListImagesResponse{Images: list})
	}
	header := []string{"IMAGE", "TAG", "IMAGE ID", "SIZE"}
	if o.digests {
		header = slices.Insert(header, 2, "DIGEST")
	}
	if o.pinned {
		header = append(header, "PINNED")
	}
	t := newTable(c.out, header...)
	for _, image := range list {
		for _, name := range imageNames(image) {
			row := []string{name.repo, name.tag, idCell(image.GetId(), o.noTrunc), size(image.GetSize())}
			if o.digests {
				row = slices.Insert(row, 2, idCell(name.digest, o.noTrunc))
			}
			if o.pinned {
				row = append(row, strconv.FormatBool(image.GetPinned()))
			}
			t.row(row...)
		}
	}
	return t.flush()
}

const none = "<none>"

// imageName is a name of an image, taken apart for the table.
type imageName struct{ repo, tag, digest string }

// imageNames are a row for each tag, and for each repository whose digest has no tag.
func imageNames(image *runtimeapi.Image) []imageName {
	digests := map[string]string{}
	for _, ref := range image.GetRepoDigests() {
		if repo, digest, ok := strings.Cut(ref, "@"); ok {
			digests[repo] = digest
		}
	}
	var names []imageName
	tagged := map[string]bool{}
	for _, ref := range image.GetRepoTags() {
		// The last colon: a registry's port has one too.
		i := strings.LastIndexByte(ref, ':')
		if i < 0 {
			continue
		}
		repo := ref[:i]
		tagged[repo] = true
		digest, ok := digests[repo]
		if !ok {
			digest = none
		}
		names = append(names, imageName{repo, ref[i+1:], digest})
	}
	for repo, digest := range digests {
		if !tagged[repo] {
			names = append(names, imageName{repo, none, digest})
		}
	}
	if len(names) == 0 {
		return []imageName{{none, none, none}}
	}
	slices.SortFunc(names, func(a, b imageName) int { return strings.Compare(a.repo+":"+a.tag, b.repo+":"+b.tag) })
	return names
}

// firstName sorts images: by name, those without one last.
func firstName(image *runtimeapi.Image) string {
	n := imageNames(image)[0]
	if n.repo == none {
		return "~" + image.GetId()
	}
	return n.repo + ":" + n.tag
}

// rmiOptions are the flags of rmi.
type rmiOptions struct {
	options
	all, prune, force bool
}

func rmiCommand() *cobra.Command {
	var o rmiOptions
	cmd := &cobra.Command{
		Use:   "rmi IMAGE...",
		Short: "Remove images",
		Long: `Remove images, each with all its names.

--prune removes those that no container uses and that are not pinned.`,
		Example: `  cri-engine rmi nginx:1.29 4f2a1c
  cri-engine rmi --prune`,
		RunE: o.connected(func(ctx context.Context, c *call) error { return rmi(ctx, c, &o) }),
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		return objectsOr(args, o.all || o.prune, "image", "--all", "--prune")
	}
	o.addEndpoint(cmd, defaultTimeout)
	cmd.ValidArgsFunction = o.complete(0, completeImages)
	cmd.Flags().BoolVarP(&o.all, "all", "a", false, "remove all images")
	cmd.Flags().BoolVar(&o.prune, "prune", false, "remove all images that no container uses")
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "an image that does not exist is no error")
	return cmd
}

// objectsOr wants names of objects, or one of the flags that stand for them.
func objectsOr(args []string, flagged bool, kind string, flags ...string) error {
	switch {
	case len(args) == 0 && !flagged:
		return fmt.Errorf("name at least one %s, or give %s", kind, strings.Join(flags, " or "))
	case len(args) > 0 && flagged:
		return fmt.Errorf("either name %ss or give %s", kind, strings.Join(flags, " or "))
	}
	return nil
}

func rmi(ctx context.Context, c *call, o *rmiOptions) error {
	names := c.args
	if o.all || o.prune {
		var err error
		if names, err = removableImages(ctx, c.client, o.prune); err != nil {
			return err
		}
	}
	return c.each(ctx, "rmi", names, func(ctx context.Context, name string) (string, error) {
		image, err := c.findImage(ctx, name)
		if errors.Is(err, errUnknown) && o.force {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		spec := &runtimeapi.ImageSpec{Image: image.GetId()}
		if _, err := c.image.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: spec}); err != nil {
			return "", err
		}
		return "Deleted: " + firstRef(image), nil
	})
}

// firstRef is the name by which an image is best known.
func firstRef(image *runtimeapi.Image) string {
	for _, refs := range [][]string{image.GetRepoTags(), image.GetRepoDigests()} {
		if len(refs) > 0 {
			return refs[0]
		}
	}
	return image.GetId()
}

// removableImages are the ids of all images, or of those that no container uses.
func removableImages(ctx context.Context, c *client, unusedOnly bool) ([]string, error) {
	list, err := c.images(ctx, nil)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	if unusedOnly {
		containers, err := c.containers(ctx, nil)
		if err != nil {
			return nil, err
		}
		for _, container := range containers {
			// Runtimes differ in which of these is the id and which a name.
			for _, ref := range []string{container.GetImageId(), container.GetImageRef(), container.GetImage().GetImage(), container.GetImage().GetUserSpecifiedImage()} {
				used[ref] = true
			}
		}
	}
	var ids []string
	for _, image := range list {
		names := slices.Concat([]string{image.GetId(), strings.TrimPrefix(image.GetId(), "sha256:"), "sha256:" + image.GetId()},
			image.GetRepoTags(), image.GetRepoDigests())
		inUse := slices.ContainsFunc(names, func(name string) bool { return used[name] })
		if !inUse && !(unusedOnly && image.GetPinned()) {
			ids = append(ids, image.GetId())
		}
	}
	return ids, nil
}
