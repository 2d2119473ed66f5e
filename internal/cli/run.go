package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/cli/crilog"
	"github.com/cri-engine/cri-engine/internal/steps"
)

// runOptions are the flags of run.
type runOptions struct {
	options
	credentials
	detach, remove   bool
	interactive, tty bool
	detachKeys       string
	pull             string
	pod              podFlags
	container        containerFlags
}

// When run pulls an image.
const (
	pullMissing = "missing"
	pullAlways  = "always"
	pullNever   = "never"
)

func runCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run IMAGE [ARG...]",
		Short: "Make a pod with one container and show what it writes",
		Long: `Make a pod with one container, pulling its image when it is missing, and show what the
container writes until it ends. The exit code is the container's own.

What is behind IMAGE replaces the arguments (CMD) of the image. The pod and the
container stay until they are removed, or are removed at once with --rm. Ctrl-C stops showing;
with --rm it also stops and removes them. With -i the container reads our stdin; in a terminal (-it) every
key goes to it, and the detach keys leave it running. When anything fails on the way,
what was made is removed.`,
		Example: `  cri-engine run --rm docker.io/library/busybox echo hello
  echo hello | cri-engine run --rm -i docker.io/library/busybox cat
  cri-engine run --rm -it docker.io/library/busybox
  cri-engine run -d --name web -p 8080:80 --memory 256m --cpus 0.5 nginx
  cri-engine run --rm -v /etc:/host-etc:ro -e LEVEL=debug busybox ls /host-etc`,
		Args: cobra.MinimumNArgs(1),
		RunE: o.connected(func(ctx context.Context, c *call) error { return runImage(ctx, c, &o) }),
	}
	// Flags behind the image are the container's own.
	cmd.Flags().SetInterspersed(false)
	o.addEndpoint(cmd, defaultTimeout)
	o.addOutput(cmd, "with -d: only the container's id; no progress of a pull")
	o.credentials.addFlags(cmd)
	cmd.ValidArgsFunction = o.complete(1, completeImages)
	f := cmd.Flags()
	f.BoolVarP(&o.detach, "detach", "d", false, "show the ids and return while the container runs")
	f.BoolVar(&o.remove, "rm", false, "stop and remove all that was made once the container has ended, also on Ctrl-C")
	f.BoolVarP(&o.interactive, "stdin", "i", false, "give the container our stdin; with -d: one that attach can write to")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the container a terminal")
	f.StringVar(&o.detachKeys, "detach-keys", "ctrl-p,ctrl-q", "`KEYS` to leave a terminal with; empty, or with --rm: none")
	f.StringVar(&o.pull, "pull", pullMissing, "`WHEN` to pull the image: missing, always or never")
	mustComplete(cmd, "pull", pullMissing, pullAlways, pullNever)
	o.pod.addFlags(cmd)
	o.container.addFlags(cmd)
	mustCompleteFunc(cmd, "pod", o.complete(0, completePods))
	return cmd
}

func (o *runOptions) check() error {
	switch {
	case o.detach && o.remove:
		return errors.New("--rm and -d exclude each other: nobody would be left to remove it")
	case o.structured() && !o.detach:
		return errors.New("-o is for -d: without it the output is the container's")
	}
	if _, err := parseKeys(o.detachKeys); err != nil {
		return err
	}
	switch o.pull {
	case pullMissing, pullAlways, pullNever:
		return nil
	}
	return fmt.Errorf("--pull %s: want missing, always or never", o.pull)
}

// runner makes a pod and a container from the command line, step by step.
type runner struct {
	*call
	o    *runOptions
	ref  string
	args []string
	auth *runtimeapi.AuthConfig

	image       *runtimeapi.Image
	pod         *runtimeapi.PodSandboxConfig
	podID       string
	madePod     bool
	container   *runtimeapi.ContainerConfig
	containerID string
	session     *session // nil without -i
}

func runImage(ctx context.Context, c *call, o *runOptions) error {
	r := &runner{call: c, o: o, ref: c.args[0], args: c.args[1:]}
	if err := r.prepare(ctx); err != nil {
		return about("run", r.ref, err)
	}
	if err := steps.Run(ctx, "run", r.steps()); err != nil {
		return about("run", r.ref, err)
	}
	if o.detach {
		return r.tellIDs()
	}
	return r.follow(ctx)
}

// prepare checks the command line and makes the requests of it: nothing is
// made on the node before all of it is known to be sound.
func (r *runner) prepare(ctx context.Context) error {
	if err := r.o.check(); err != nil {
		return err
	}
	var err error
	if r.auth, err = r.o.auth(r.in, r.errOut); err != nil {
		return err
	}
	if r.o.container.name == "" {
		r.o.container.name = inventName(r.ref)
	}
	if err := checkName("--name", r.o.container.name); err != nil {
		return err
	}
	if r.container, err = r.o.container.config(r.args, &r.o.pod); err != nil {
		return err
	}
	r.container.Tty, r.container.Stdin = r.o.tty, r.o.interactive
	// The end of our stdin is the container's. A terminal's stays open for who attaches next.
	r.container.StdinOnce = r.interactive() && !r.o.tty
	if r.o.pod.id != "" {
		return r.joinPod(ctx)
	}
	r.madePod = true
	r.pod, err = r.o.pod.config(r.o.container.name, r.o.container.privileged)
	if err == nil {
		r.bind()
	}
	return err
}

// joinPod takes what CreateContainer needs from a pod that is there already.
func (r *runner) joinPod(ctx context.Context) error {
	if err := r.o.pod.refuseWithPod(); err != nil {
		return err
	}
	list, err := r.pods(ctx, nil)
	if err != nil {
		return err
	}
	pod, err := list.find(r.o.pod.id)
	if err != nil {
		return fmt.Errorf("--pod %s: %w", r.o.pod.id, err)
	}
	status, err := r.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.GetId()})
	if err != nil {
		return fmt.Errorf("--pod %s: %w", r.o.pod.id, err)
	}
	s := status.GetStatus()
	r.podID = pod.GetId()
	r.pod = &runtimeapi.PodSandboxConfig{
		Metadata: s.GetMetadata(), Labels: s.GetLabels(), Annotations: s.GetAnnotations(),
		LogDirectory: logsOf(s),
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: s.GetLinux().GetNamespaces().GetOptions(),
			Privileged:       r.o.container.privileged,
		}},
	}
	r.bind()
	return nil
}

// bind gives the container what it has of its pod: the labels by which tools find it, and the namespaces.
func (r *runner) bind() {
	meta := r.pod.GetMetadata()
	for key, value := range map[string]string{
		labelPodName: meta.GetName(), labelPodNamespace: meta.GetNamespace(), labelPodUID: meta.GetUid(),
		labelContainerName: r.container.GetMetadata().GetName(),
	} {
		r.container.Labels[key] = value
	}
	r.container.Linux.SecurityContext.NamespaceOptions = r.pod.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func (r *runner) steps() []steps.Step {
	list := []steps.Step{{Name: "image", Do: r.ensureImage}}
	if r.madePod {
		list = append(list,
			steps.Step{Name: "log directory", Do: r.makeLogs, Undo: r.removeLogs},
			steps.Step{Name: "pod", Do: r.runPod, Undo: r.removePod},
		)
	}
	list = append(list, steps.Step{Name: "create", Do: r.create, Undo: r.removeContainer})
	if !r.interactive() {
		return append(list, steps.Step{Name: "start", Do: r.start})
	}
	return append(list,
		steps.Step{Name: "attach", Do: r.attachEarly, Undo: r.endSession},
		steps.Step{Name: "start", Do: r.start, Undo: r.stopStarted},
		steps.Step{Name: "attach after the start", Do: r.attachLate, Undo: r.endSession},
	)
}

// ensureImage pulls the image when --pull says so.
func (r *runner) ensureImage(ctx context.Context) error {
	var err error
	if r.o.pull != pullAlways {
		if r.image, err = r.imageStatus(ctx, r.ref); err != nil {
			return err
		}
	}
	if r.image == nil {
		if r.o.pull == pullNever {
			return errors.New("no such image here, and --pull never")
		}
		id, err := r.pullImage(unlimited(ctx), r.ref, r.auth, r.pod)
		if err != nil {
			return err
		}
		if r.image, err = r.imageStatus(ctx, id); err != nil {
			return err
		}
		if r.image == nil {
			return errors.New("the image that was pulled is gone already")
		}
	}
	r.container.Image = &runtimeapi.ImageSpec{Image: r.image.GetId(), UserSpecifiedImage: r.ref}
	return nil
}

func (r *runner) makeLogs(context.Context) error { return makeLogs(r.pod) }

func (r *runner) removeLogs(context.Context) error { return removeLogs(r.pod) }

func (r *runner) runPod(ctx context.Context) error {
	resp, err := r.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: r.pod, RuntimeHandler: r.o.pod.handler})
	if err != nil {
		// When the answer did not come in time, the runtime may have made it all the same.
		return errors.Join(err, r.removeLostPod(ctx))
	}
	r.podID = resp.GetPodSandboxId()
	return nil
}

// removeLostPod removes the pod with this run's UID, which nobody else has.
func (r *runner) removeLostPod(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), steps.UndoTimeout)
	defer cancel()
	list, err := r.pods(ctx, nil)
	if err != nil {
		return fmt.Errorf("look for what may be left of the pod: %w", err)
	}
	for _, pod := range list {
		if pod.GetMetadata().GetUid() == r.pod.GetMetadata().GetUid() {
			return r.call.removePod(ctx, pod.GetId())
		}
	}
	return nil
}

func (r *runner) removePod(ctx context.Context) error { return r.call.removePod(ctx, r.podID) }

func (r *runner) create(ctx context.Context) error {
	resp, err := r.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId: r.podID, Config: r.container, SandboxConfig: r.pod,
	})
	if err != nil {
		return err
	}
	r.containerID = resp.GetContainerId()
	return nil
}

func (r *runner) removeContainer(ctx context.Context) error {
	_, err := r.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: r.containerID})
	return err
}

func (r *runner) start(ctx context.Context) error {
	_, err := r.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: r.containerID})
	return err
}

// stopStarted ends a container that runs and can't be attached to.
func (r *runner) stopStarted(ctx context.Context) error {
	return r.stopContainer(ctx, r.containerID, 0)
}

// tellIDs writes what was made, for -d.
func (r *runner) tellIDs() error {
	switch {
	case r.quiet:
		_, err := fmt.Fprintln(r.out, clean(r.containerID))
		return err
	case r.structured():
		data, err := json.Marshal(map[string]string{"podSandboxId": r.podID, "containerId": r.containerID})
		if err != nil {
			return err
		}
		return r.printJSON(data)
	}
	_, err := fmt.Fprintf(r.out, "pod\t\t%s\ncontainer\t%s\n", clean(r.podID), clean(r.containerID))
	return err
}

// follow shows the container's output until it has ended, and ends with its exit code.
func (r *runner) follow(ctx context.Context) error {
	code, err := r.watch(ctx)
	_ = r.endSession(ctx)
	if errors.Is(err, errDetached) {
		fmt.Fprintf(r.errOut, "\n%s: detached; container %s runs on\n", program, shortID(r.containerID))
		return nil
	}
	if r.o.remove {
		err = errors.Join(err, r.tidy(ctx))
	} else if ctx.Err() != nil {
		fmt.Fprintf(r.errOut, "%s: container %s is left running\n", program, shortID(r.containerID))
	}
	switch {
	case ctx.Err() != nil && r.onlyInterrupted(err):
		return &ExitError{interrupted}
	case err != nil:
		return about("run", r.ref, err)
	case code != 0:
		return &ExitError{code}
	}
	return nil
}

// onlyInterrupted tells whether Ctrl-C is all that went wrong.
func (r *runner) onlyInterrupted(err error) bool {
	for _, line := range messages(err) {
		if line != context.Canceled.Error() {
			return false
		}
	}
	return true
}

// watch copies the log and returns the exit code.
func (r *runner) watch(ctx context.Context) (code int, err error) {
	status, err := r.containerStatus(ctx, r.containerID)
	if err != nil {
		return 0, err
	}
	if r.session != nil {
		defer r.tellStdin()
	}
	if r.session != nil && r.outputAttached() {
		if err := r.watchSession(ctx); err != nil {
			return 0, err
		}
	} else if path := status.GetLogPath(); path != "" {
		if err := r.showLog(ctx, path, crilog.Options{Tail: -1, Ended: r.ended(r.containerID)}); err != nil {
			return 0, err
		}
	} else {
		fmt.Fprintf(r.errOut, "%s: the pod has no log directory: output is not shown\n", program)
	}
	for {
		status, err := r.containerStatus(ctx, r.containerID)
		if err != nil {
			return 0, err
		}
		if status.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
			return r.exitCode(status), nil
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return 0, err
		}
	}
}

// exitCode is the container's, with a word when something else than the
// program itself decided on it.
func (r *runner) exitCode(status *runtimeapi.ContainerStatus) int {
	if reason := status.GetReason(); reason != "" && reason != "Completed" && reason != "Error" {
		text := strings.TrimSpace(reason + " " + status.GetMessage())
		fmt.Fprintf(r.errOut, "%s: container %s: %s\n", program, shortID(r.containerID), clean(text))
	}
	return int(status.GetExitCode())
}

// tidy removes what was made, for --rm. Ctrl-C has ended ctx by then, or not.
func (r *runner) tidy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), steps.UndoTimeout)
	defer cancel()
	if err := r.stopContainer(ctx, r.containerID, seconds(defaultGrace)); err != nil {
		return err
	}
	if err := r.removeContainer(ctx); err != nil {
		return err
	}
	if !r.madePod {
		return nil
	}
	return errors.Join(r.removePod(ctx), r.removeLogs(ctx))
}
