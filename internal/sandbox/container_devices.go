package sandbox

import (
	"errors"
	"fmt"
	"maps"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/cdi"
	"github.com/cri-engine/cri-engine/internal/hooks"
	"github.com/cri-engine/cri-engine/internal/oci"
)

// injectDevices adds the CDI devices that a container asks for to its OCI spec:
// those of the request's field, and those of annotations, which is how device
// plugins ask of kubelets and runtimes that don't know the field.
func (e *Engine) injectDevices(spec *specs.Spec, cfg *runtimeapi.ContainerConfig, h *oci.Handler) error {
	names, err := cdiDevices(cfg)
	if err != nil || len(names) == 0 {
		return err
	}
	if e.o.Devices == nil {
		return fmt.Errorf("config.CDI_devices: %q: [cdi] enabled is false in the configuration of this node: %w", names[0], ErrPrecondition)
	}
	if err := e.o.Devices.Inject(spec, names); err != nil {
		return fmt.Errorf("config.CDI_devices: %w", err)
	}
	if len(spec.Linux.NetDevices) > 0 && !h.MovesNetDevices() {
		// It would pass over what it doesn't know, and the container would run without.
		return fmt.Errorf("config.CDI_devices: %s cannot move network devices into containers: %w", h.Binary, errors.ErrUnsupported)
	}
	return nil
}

// addHooks adds the operator's hooks that are for this container. Conditions see all
// annotations, the pod's too: they are patterns of the operator's.
func (e *Engine) addHooks(spec *specs.Spec, c *container) error {
	if e.o.Hooks == nil {
		return nil
	}
	annotations := maps.Clone(c.cfg.GetAnnotations())
	if annotations == nil {
		annotations = map[string]string{}
	}
	maps.Copy(annotations, c.podCfg.GetAnnotations())
	return e.o.Hooks.Apply(spec, hooks.Container{Annotations: annotations, BindMounts: len(c.cfg.GetMounts()) > 0})
}

func cdiDevices(cfg *runtimeapi.ContainerConfig) ([]string, error) {
	var names []string
	for _, d := range cfg.GetCDIDevices() {
		names = append(names, d.GetName())
	}
	annotated, err := cdi.Annotated(cfg.GetAnnotations())
	if err != nil {
		return nil, fmt.Errorf("config.annotations: %w", err)
	}
	return append(names, annotated...), nil
}
