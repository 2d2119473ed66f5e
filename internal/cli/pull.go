package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// credentials are the flags that say who pulls.
type credentials struct{ inline, file string }

func (o *credentials) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.inline, "creds", "", "credentials for the registry: `USER[:PASSWORD]`; a missing password is asked for")
	cmd.Flags().StringVar(&o.file, "creds-file", "", "`FILE` with one line USER:PASSWORD; - for stdin")
}

// maxCredentials bounds a file of credentials: tokens of cloud registries have some KiB.
const maxCredentials = 64 << 10

// auth returns the credentials of the command line, nil when there are none:
// then the runtime's own configuration decides.
func (o *credentials) auth(in io.Reader, prompt io.Writer) (*runtimeapi.AuthConfig, error) {
	line := o.inline
	switch {
	case o.inline != "" && o.file != "":
		return nil, errors.New("--creds and --creds-file exclude each other")
	case o.file == "" && o.inline == "":
		return nil, nil
	case o.file == "-":
		text, err := bufio.NewReader(io.LimitReader(in, maxCredentials)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read credentials from stdin: %w", err)
		}
		line = text
	case o.file != "":
		f, err := os.Open(o.file)
		if err != nil {
			return nil, fmt.Errorf("--creds-file: %w", err)
		}
		defer f.Close()
		text, err := bufio.NewReader(io.LimitReader(f, maxCredentials)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("--creds-file: %w", err)
		}
		line = text
	}
	user, password, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":")
	if !ok {
		var err error
		if password, err = askPassword(in, prompt, user); err != nil {
			return nil, err
		}
	}
	if user == "" {
		return nil, errors.New("credentials: want USER:PASSWORD")
	}
	return &runtimeapi.AuthConfig{Username: user, Password: password}, nil
}

func askPassword(in io.Reader, prompt io.Writer, user string) (string, error) {
	f, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return "", errors.New("credentials: want USER:PASSWORD")
	}
	fmt.Fprintf(prompt, "Password of %s: ", clean(user))
	password, err := term.ReadPassword(int(f.Fd()))
	fmt.Fprintln(prompt)
	return string(password), err
}

// pullOptions are the flags of pull.
type pullOptions struct {
	options
	credentials
}

func pullCommand() *cobra.Command {
	var o pullOptions
	cmd := &cobra.Command{
		Use:   "pull IMAGE...",
		Short: "Pull images from their registries",
		Example: `  cri-engine pull docker.io/library/nginx:1.29
  cri-engine pull --creds-file - registry.example.com/app@sha256:0123... < token`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              o.connected(func(ctx context.Context, c *call) error { return pull(ctx, c, &o) }),
	}
	o.addEndpoint(cmd, 0)
	o.addOutput(cmd, "only the images' ids, no progress")
	o.credentials.addFlags(cmd)
	return cmd
}

func pull(ctx context.Context, c *call, o *pullOptions) error {
	auth, err := o.auth(c.in, c.errOut)
	if err != nil {
		return err
	}
	var errs []error
	for _, ref := range c.args {
		if err := c.pullAndTell(ctx, ref, auth); err != nil {
			errs = append(errs, about("pull", ref, err))
		}
	}
	return errors.Join(errs...)
}

// pullAndTell pulls one image and writes its id, size and the time it took.
func (c *call) pullAndTell(ctx context.Context, ref string, auth *runtimeapi.AuthConfig) error {
	began := time.Now()
	id, err := c.pullImage(ctx, ref, auth, nil)
	if err != nil {
		return err
	}
	took := time.Since(began)
	switch {
	case c.quiet:
		_, err = fmt.Fprintln(c.out, clean(id))
		return err
	case c.structured():
		return c.print(&runtimeapi.PullImageResponse{ImageRef: id})
	}
	detail := "in " + tookText(took)
	if image, err := c.imageStatus(ctx, id); err == nil && image != nil {
		detail = size(image.GetSize()) + " " + detail
		id = image.GetId()
	}
	_, err = fmt.Fprintf(c.out, "%s\t%s\t%s\n", clean(ref), clean(id), detail)
	return err
}

func tookText(d time.Duration) string {
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(100 * time.Millisecond).String()
}

// pullImage pulls an image, showing its progress on stderr unless -q, and
// returns the reference by which the runtime knows it.
func (c *call) pullImage(ctx context.Context, ref string, auth *runtimeapi.AuthConfig, pod *runtimeapi.PodSandboxConfig) (string, error) {
	view := newPullView(c.errOut, ref, c.quiet || c.structured())
	stop := c.watchPull(ctx, ref, view)
	r, err := c.image.PullImage(ctx, &runtimeapi.PullImageRequest{
		Image: &runtimeapi.ImageSpec{Image: ref}, Auth: auth, SandboxConfig: pod,
	})
	stop()
	view.close()
	if err != nil {
		return "", err
	}
	return r.GetImageRef(), nil
}

// isTerminal tells whether a stream is shown to a person.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
