package server

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/oci"
)

func podConfig() *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "web-0", Namespace: "default", Uid: "b6c2c8a1-0000-4000-8000-000000000000"},
		Hostname:     "web-0",
		LogDirectory: "/var/log/pods/default_web-0_b6c2/",
		DnsConfig: &runtimeapi.DNSConfig{
			Servers: []string{"10.96.0.10", "fd00::a"}, Searches: []string{"default.svc.cluster.local", "."}, Options: []string{"ndots:5"},
		},
		PortMappings: []*runtimeapi.PortMapping{{HostPort: 8080, ContainerPort: 80, HostIp: "127.0.0.1"}, {ContainerPort: 53, Protocol: runtimeapi.Protocol_UDP}},
		Labels:       map[string]string{"app": "web"},
		Annotations:  map[string]string{"a.example/b": ""},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: "/kubepods.slice/kubepods-pod1.slice",
			Sysctls:      map[string]string{"net.ipv4.ip_local_port_range": "1024 65000", "net/ipv4/conf/eth0.1/forwarding": "1"},
		},
	}
}

func containerConfig() *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "web", Attempt: 1},
		Image:    &runtimeapi.ImageSpec{Image: "sha256:abc", UserSpecifiedImage: "nginx"},
		Envs:     []*runtimeapi.KeyValue{{Key: "A", Value: []byte("\xff\xfe")}},
		LogPath:  "web/0.log",
		Labels:   map[string]string{"app": "web"},
	}
}

// podUser changes the security context of a pod with a user.
func podUser(change func(*runtimeapi.LinuxSandboxSecurityContext)) func(*runtimeapi.PodSandboxConfig) {
	return func(p *runtimeapi.PodSandboxConfig) {
		p.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{RunAsUser: &runtimeapi.Int64Value{Value: 1}}
		change(p.Linux.SecurityContext)
	}
}

// wantInvalid checks that an error is about the field.
func wantInvalid(t testing.TB, err error, field string) {
	t.Helper()
	var invalid *oci.InvalidError
	switch {
	case field == "" && err != nil:
		t.Errorf("got %v, want none", err)
	case field != "" && (!errors.As(err, &invalid) || invalid.Field != field):
		t.Errorf("got %v, want an error about %s", err, field)
	case field != "" && invalid.Reason == "":
		t.Errorf("%v gives no reason", err)
	}
}

func TestCheckPodConfig(t *testing.T) {
	type pod = runtimeapi.PodSandboxConfig
	cases := []struct {
		name   string
		change func(*pod)
		field  string
	}{
		{"as a kubelet sends it", func(*pod) {}, ""},
		{"the least there can be", func(p *pod) { *p = pod{Metadata: p.Metadata} }, ""},
		{"no metadata", func(p *pod) { p.Metadata = nil }, "config.metadata"},
		{"no name", func(p *pod) { p.Metadata.Name = "" }, "config.metadata.name"},
		{"a name that is too long", func(p *pod) { p.Metadata.Name = strings.Repeat("n", 254) }, "config.metadata.name"},
		{"a name that is a path", func(p *pod) { p.Metadata.Name = "../etc" }, "config.metadata.name"},
		{"a name that breaks a line", func(p *pod) { p.Metadata.Name = "a\nb" }, "config.metadata.name"},
		{"no namespace", func(p *pod) { p.Metadata.Namespace = "" }, "config.metadata.namespace"},
		{"a namespace of two dots", func(p *pod) { p.Metadata.Namespace = ".." }, "config.metadata.namespace"},
		{"no uid", func(p *pod) { p.Metadata.Uid = "" }, "config.metadata.uid"},
		{"a uid that is too long", func(p *pod) { p.Metadata.Uid = strings.Repeat("0", 129) }, "config.metadata.uid"},
		{"a hostname that is too long", func(p *pod) { p.Hostname = strings.Repeat("h", 65) }, "config.hostname"},
		{"a hostname that is as long as can be", func(p *pod) { p.Hostname = strings.Repeat("h", 64) }, ""},
		{"a hostname with blanks", func(p *pod) { p.Hostname = "a b" }, "config.hostname"},
		{"a hostname that ends in a dash", func(p *pod) { p.Hostname = "a-" }, "config.hostname"},
		{"a relative log directory", func(p *pod) { p.LogDirectory = "var/log" }, "config.log_directory"},
		{"a log directory with traversal", func(p *pod) { p.LogDirectory = "/var/log/../../etc" }, "config.log_directory"},
		{"a log directory that is too long", func(p *pod) { p.LogDirectory = "/" + strings.Repeat("d", 4096) }, "config.log_directory"},
		{"a server that is a name", func(p *pod) { p.DnsConfig.Servers = []string{"dns.example"} }, "config.dns_config.servers"},
		{"a server with a second line", func(p *pod) { p.DnsConfig.Servers = []string{"1.1.1.1\nnameserver 6.6.6.6"} }, "config.dns_config.servers"},
		{"an empty search domain", func(p *pod) { p.DnsConfig.Searches = []string{""} }, "config.dns_config.searches"},
		{"search domains without end", func(p *pod) { p.DnsConfig.Searches = []string{strings.Repeat("s", maxDNS)} }, "config.dns_config.searches"},
		{"an option with a blank", func(p *pod) { p.DnsConfig.Options = []string{"ndots:5 rotate"} }, "config.dns_config.options"},
		{"a host port out of range", func(p *pod) { p.PortMappings[0].HostPort = 65536 }, "config.port_mappings.host_port"},
		{"a negative container port", func(p *pod) { p.PortMappings[0].ContainerPort = -1 }, "config.port_mappings.container_port"},
		{"a host port that leads nowhere", func(p *pod) { p.PortMappings[0].ContainerPort = 0 }, "config.port_mappings.container_port"},
		{"an unknown protocol", func(p *pod) { p.PortMappings[0].Protocol = 9 }, "config.port_mappings.protocol"},
		{"a host address that is a name", func(p *pod) { p.PortMappings[0].HostIp = "localhost" }, "config.port_mappings.host_ip"},
		{"a label without key", func(p *pod) { p.Labels[""] = "x" }, "config.labels"},
		{"annotations without end", func(p *pod) { p.Annotations["x"] = strings.Repeat("x", maxLabels) }, "config.annotations"},
		{"a group without a user", func(p *pod) {
			p.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{RunAsGroup: &runtimeapi.Int64Value{Value: 1}}
		}, "config.linux.security_context.run_as_group"},
		{"a negative user", podUser(func(sc *runtimeapi.LinuxSandboxSecurityContext) { sc.RunAsUser.Value = -1 }), "config.linux.security_context.run_as_user"},
		{"the user that means no change", podUser(func(sc *runtimeapi.LinuxSandboxSecurityContext) { sc.RunAsUser.Value = 1<<32 - 1 }), "config.linux.security_context.run_as_user"},
		{"a group out of range", podUser(func(sc *runtimeapi.LinuxSandboxSecurityContext) {
			sc.RunAsGroup = &runtimeapi.Int64Value{Value: 1 << 32}
		}), "config.linux.security_context.run_as_group"},
		{"a supplemental group out of range", podUser(func(sc *runtimeapi.LinuxSandboxSecurityContext) { sc.SupplementalGroups = []int64{1, -1} }),
			"config.linux.security_context.supplemental_groups[1]"},
		{"an unknown policy of groups", podUser(func(sc *runtimeapi.LinuxSandboxSecurityContext) { sc.SupplementalGroupsPolicy = 7 }),
			"config.linux.security_context.supplemental_groups_policy"},
		{"a sysctl that is a path", func(p *pod) { p.Linux.Sysctls = map[string]string{"net/../../x": "1"} }, "config.linux.sysctls"},
		{"a sysctl with two lines", func(p *pod) { p.Linux.Sysctls = map[string]string{"net.x": "1\n2"} }, "config.linux.sysctls[net.x]"},
		{"a cgroup parent with traversal", func(p *pod) { p.Linux.CgroupParent = "/kubepods/../.." }, "config.linux.cgroup_parent"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := podConfig()
			c.change(p)
			wantInvalid(t, checkPodConfig("config", p), c.field)
		})
	}
	t.Run("none at all", func(t *testing.T) { wantInvalid(t, checkPodConfig("config", nil), "config") })
}

func TestCheckContainerConfig(t *testing.T) {
	type container = runtimeapi.ContainerConfig
	cases := []struct {
		name   string
		change func(*container)
		field  string
	}{
		{"as a kubelet sends it", func(*container) {}, ""},
		{"no metadata", func(c *container) { c.Metadata = nil }, "config.metadata"},
		{"no name", func(c *container) { c.Metadata.Name = "" }, "config.metadata.name"},
		{"a name that is a path", func(c *container) { c.Metadata.Name = "a/../../b" }, "config.metadata.name"},
		{"no image", func(c *container) { c.Image = nil }, "config.image"},
		{"an image without name", func(c *container) { c.Image.Image = "" }, "config.image.image"},
		{"an image whose name has no end", func(c *container) { c.Image.Image = strings.Repeat("i", maxImageName+1) }, "config.image.image"},
		{"no log", func(c *container) { c.LogPath = "" }, ""},
		{"an absolute log path", func(c *container) { c.LogPath = "/etc/passwd" }, "config.log_path"},
		{"a log path with traversal", func(c *container) { c.LogPath = "web/../../../etc/passwd" }, "config.log_path"},
		{"a log path that goes up and comes back", func(c *container) { c.LogPath = "a/../b.log" }, "config.log_path"},
		{"a log path that is a directory", func(c *container) { c.LogPath = "web/" }, "config.log_path"},
		{"a log path of a dot", func(c *container) { c.LogPath = "./" }, "config.log_path"},
		{"a log path that only looks like traversal", func(c *container) { c.LogPath = "web/..0.log" }, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			cc := containerConfig()
			c.change(cc)
			wantInvalid(t, checkContainerConfig(cc), c.field)
		})
	}
}

func TestCheckID(t *testing.T) {
	for id, ok := range map[string]bool{
		strings.Repeat("0f", 32): true, "3": true, "": false, strings.Repeat("0", 128): true, strings.Repeat("0", 129): false,
		"3F": true, "../3f": false, "3f/x": false, "3f\x00": false, "web-0": true, "-3": false, "3f\n": false,
	} {
		if err := checkID("container_id", id); (err == nil) != ok {
			t.Errorf("%q: got %v", id, err)
		}
	}
}

func TestSeconds(t *testing.T) {
	if d, err := seconds(30); d != 30*time.Second || err != nil {
		t.Errorf("got %v, %v", d, err)
	}
	if d, err := seconds(math.MaxInt64); d < 100*365*24*time.Hour || err != nil {
		t.Errorf("a timeout over what a duration holds becomes %v, %v", d, err)
	}
	_, err := seconds(-1)
	wantInvalid(t, err, "timeout")
}

func TestCheckCommand(t *testing.T) {
	wantInvalid(t, checkCommand([]string{"ls", ""}), "")
	wantInvalid(t, checkCommand(nil), "cmd")
	wantInvalid(t, checkCommand([]string{""}), "cmd")
	wantInvalid(t, checkCommand([]string{"ls", strings.Repeat("x", maxCommand)}), "cmd")
}

func TestCheckBounds(t *testing.T) {
	many := make([]string, maxEntries+1)
	labels := map[string]string{}
	for i := range maxEntries + 1 {
		labels[strings.Repeat("k", 1+i%200)+strings.Repeat("l", i/200)] = ""
	}
	pod := func(change func(*runtimeapi.PodSandboxConfig)) proto.Message {
		p := podConfig()
		change(p)
		return &runtimeapi.RunPodSandboxRequest{Config: p}
	}
	container := func(change func(*runtimeapi.ContainerConfig)) proto.Message {
		c := containerConfig()
		change(c)
		return &runtimeapi.CreateContainerRequest{Config: c}
	}
	cases := []struct {
		name  string
		m     proto.Message
		field string
	}{
		{"an empty request", &runtimeapi.StatusRequest{}, ""},
		{"a pod", pod(func(*runtimeapi.PodSandboxConfig) {}), ""},
		{"a container with an environment that is not text", container(func(*runtimeapi.ContainerConfig) {}), ""},
		{"a NUL byte in a field", pod(func(p *runtimeapi.PodSandboxConfig) { p.Metadata.Uid = "a\x00b" }), "config.metadata.uid"},
		{"a NUL byte in a list", pod(func(p *runtimeapi.PodSandboxConfig) { p.DnsConfig.Options = []string{"a", "\x00"} }), "config.dns_config.options[1]"},
		{"a NUL byte in a map's value", pod(func(p *runtimeapi.PodSandboxConfig) { p.Labels["k"] = "\x00" }), "config.labels[k]"},
		{"a NUL byte in a map's key", pod(func(p *runtimeapi.PodSandboxConfig) { p.Labels["\x00"] = "v" }), "config.labels"},
		{"a NUL byte in an environment", container(func(c *runtimeapi.ContainerConfig) { c.Envs[0].Value = []byte("secret\x00") }), "config.envs[0].value"},
		{"a string without end", container(func(c *runtimeapi.ContainerConfig) { c.WorkingDir = strings.Repeat("x", maxText+1) }), "config.working_dir"},
		{"a list without end", container(func(c *runtimeapi.ContainerConfig) { c.Args = many }), "config.args"},
		{"a map without end", container(func(c *runtimeapi.ContainerConfig) { c.Annotations = labels }), "config.annotations"},
		{"a command of an exec", &runtimeapi.ExecSyncRequest{Cmd: []string{"\x00"}}, "cmd[0]"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := checkBounds(c.m)
			wantInvalid(t, err, c.field)
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("%v has the value", err)
			}
		})
	}
}

// FuzzRequests: whatever bytes a request is made of, it is checked without a panic.
func FuzzRequests(f *testing.F) {
	seed := func(m proto.Message) {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	seed(podConfig())
	seed(containerConfig())
	f.Fuzz(func(_ *testing.T, data []byte) {
		pod, container := &runtimeapi.PodSandboxConfig{}, &runtimeapi.ContainerConfig{}
		if proto.Unmarshal(data, pod) == nil && checkBounds(pod) == nil {
			_ = checkPodConfig("config", pod)
			_ = objectOf(&runtimeapi.RunPodSandboxRequest{Config: pod})
		}
		if proto.Unmarshal(data, container) == nil && checkBounds(container) == nil {
			_ = checkContainerConfig(container)
		}
	})
}
