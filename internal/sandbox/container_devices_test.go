package sandbox

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/cdi"
	"github.com/cri-engine/cri-engine/internal/oci"
)

// devicesFunc is a Devices that notes what it is asked for.
type devicesFunc func(spec *specs.Spec, names []string) error

func (f devicesFunc) Inject(spec *specs.Spec, names []string) error { return f(spec, names) }

func TestInjectDevices(t *testing.T) {
	handler := func(netDevices bool) *oci.Handler {
		return &oci.Handler{Binary: "/bin/runtime", Features: features.Features{Linux: &features.Linux{NetDevices: &features.NetDevices{Enabled: &netDevices}}}}
	}
	asked := &runtimeapi.ContainerConfig{
		CDIDevices:  []*runtimeapi.CDIDevice{{Name: "v.com/d=1"}},
		Annotations: map[string]string{"cdi.k8s.io/b": "v.com/d=3", "cdi.k8s.io/a": "v.com/d=2", "other": "x"},
	}
	withNet := devicesFunc(func(spec *specs.Spec, _ []string) error {
		spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth9": {}}
		return nil
	})
	for _, c := range []struct {
		name    string
		devices Devices
		cfg     *runtimeapi.ContainerConfig
		handler *oci.Handler
		is      error
		text    string
	}{
		{"a container that asks for none is left alone, also where CDI is off", nil, &runtimeapi.ContainerConfig{}, handler(true), nil, ""},
		{"where CDI is off one that asks is refused, with the key", nil, asked, handler(true), ErrPrecondition, "[cdi] enabled"},
		{"an annotation that names none is refused", withNet, &runtimeapi.ContainerConfig{Annotations: map[string]string{"cdi.k8s.io/x": "gpu"}}, handler(true), cdi.ErrInvalid, "config.annotations"},
		{"network devices need a runtime that moves them", withNet, asked, handler(false), errors.ErrUnsupported, "/bin/runtime"},
		{"one that says nothing doesn't", withNet, asked, &oci.Handler{Binary: "/bin/old"}, errors.ErrUnsupported, "/bin/old"},
		{"and pass with one that does", withNet, asked, handler(true), nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := &Engine{o: Options{Devices: c.devices}}
			err := e.injectDevices(&specs.Spec{Linux: &specs.Linux{}}, c.cfg, c.handler)
			if !errors.Is(err, c.is) || c.text != "" && !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v, want %v with %q", err, c.is, c.text)
			}
		})
	}
	t.Run("the field comes first, then the annotations by key", func(t *testing.T) {
		var got []string
		e := &Engine{o: Options{Devices: devicesFunc(func(_ *specs.Spec, names []string) error { got = names; return nil })}}
		if err := e.injectDevices(&specs.Spec{Linux: &specs.Linux{}}, asked, handler(true)); err != nil {
			t.Fatal(err)
		}
		if want := []string{"v.com/d=1", "v.com/d=2", "v.com/d=3"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}
