// Command registry serves the demo's image from a docker-registry on a free
// port of loopback:
//
//	registry DIR
//
// It keeps everything in DIR, prints the image's name when it can be pulled,
// and ends when its standard input does.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-engine/cri-engine/test/harness"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: registry DIR")
		os.Exit(2)
	}
	if err := serve(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func serve(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	registry, err := harness.StartRegistry(ctx, harness.RegistryOptions{Dir: dir})
	if err != nil {
		return err
	}
	defer registry.Stop()
	if err := push(ctx, registry); err != nil {
		return err
	}
	fmt.Printf("%s/demo:latest\n", registry.Addr)
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// push makes the image: busybox, whose web server is the default command.
func push(ctx context.Context, registry *harness.Registry) error {
	busybox, err := harness.BusyboxLayer()
	if err != nil {
		return err
	}
	page := harness.NewLayer(harness.File{Name: "www/index.html", Mode: 0o644, Body: []byte("It works: this page comes out of a pod.\n")})
	image := harness.Image{
		Layers: []harness.Layer{busybox, page},
		Config: ociv1.ImageConfig{
			Env: []string{"PATH=/bin"},
			Cmd: []string{"httpd", "-f", "-v", "-p", "80", "-h", "/www"},
		},
	}
	return registry.Push(ctx, "demo", image.Pack(), "latest")
}
