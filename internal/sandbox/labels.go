package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/labels"
	"github.com/cri-engine/cri-engine/internal/oci"
)

// superPrivileged is the type of policies for containers that may do what the
// host's processes may: they need no volume to be relabelled.
const superPrivileged = "spc_t"

const selinuxField = "config.linux.security_context.selinux_options"

func labelOptions(o *runtimeapi.SELinuxOption) labels.Options {
	return labels.Options{User: o.GetUser(), Role: o.GetRole(), Type: o.GetType(), Level: o.GetLevel()}
}

// labelError says which field of the request is wrong.
func labelError(err error) error {
	var option *labels.OptionError
	if !errors.As(err, &option) {
		return err
	}
	field := selinuxField
	if option.Field != "" {
		field += "." + option.Field
	}
	return &oci.InvalidError{Field: field, Value: option.Value, Reason: option.Reason}
}

// podLabels gives the pod its labels. They are released when the pod is forgotten.
func (e *Engine) podLabels(cfg *runtimeapi.PodSandboxConfig) (labels.Pair, error) {
	pair, err := e.o.Labels.Pod(labelOptions(cfg.GetLinux().GetSecurityContext().GetSelinuxOptions()))
	return pair, labelError(err)
}

// containerLabels are the pod's but for what the container asks for. Its processes
// have none where SELinux does not confine them: what they are then follows from the
// engine's own label, which policies turn into spc_t. They are the privileged ones, and
// those that see the host's processes or IPC, which a confined process could make no use
// of, unless a type was asked for.
func (e *Engine) containerLabels(c *container) (labels.Pair, error) {
	sc, podRec := c.cfg.GetLinux().GetSecurityContext(), c.pod.read()
	pair, err := e.o.Labels.Container(podRec.Labels, labelOptions(sc.GetSelinuxOptions()))
	if err != nil {
		return labels.Pair{}, labelError(err)
	}
	hosts := podRec.IPCNS == "" || c.namespaceOptions().GetPid() == runtimeapi.NamespaceMode_NODE
	if sc.GetPrivileged() || hosts && c.selinuxType() == "" {
		pair.Process = ""
	}
	return pair, nil
}

// selinuxType is the one that the container, or else its pod, asks for; "" for none.
func (c *container) selinuxType() string {
	if t := c.cfg.GetLinux().GetSecurityContext().GetSelinuxOptions().GetType(); t != "" {
		return t
	}
	return c.pod.cfg.GetLinux().GetSecurityContext().GetSelinuxOptions().GetType()
}

// initLabel is the label of a pod's sandbox process.
func (p *pod) initLabel() string {
	if p.cfg.GetLinux().GetSecurityContext().GetPrivileged() {
		return ""
	}
	return p.rec.Labels.Process
}

// labelFiles labels the files that all containers of the pod see.
func (e *Engine) labelFiles(ctx context.Context, p *pod) error {
	for _, name := range []string{resolvFile, hostsFile, hostnameFile} {
		if err := e.o.Labels.Relabel(ctx, filepath.Join(e.podDir(p.id), name), p.rec.Labels.Mount); err != nil {
			return err
		}
	}
	return nil
}

// relabel labels the volumes that the request wants to have the container's
// label, so that the pod's containers can use them, and no other pod's.
func (r *containerCreate) relabel(ctx context.Context) error {
	pair := r.c.read().Labels
	if pair.Mount == "" || r.c.selinuxType() == superPrivileged {
		return nil
	}
	volumes, err := oci.Relabels(r.c.cfg)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if err := labels.CheckPath(v.Path, r.e.o.Root, r.e.o.State); err != nil {
			return &oci.InvalidError{Field: v.Field, Value: "true", Reason: err.Error()}
		}
	}
	for _, v := range volumes {
		if err := r.e.o.Labels.Relabel(ctx, v.Path, pair.Mount); err != nil {
			return fmt.Errorf("%s: %w", v.Field, err)
		}
	}
	return nil
}
