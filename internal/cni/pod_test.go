package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
)

const podID = "3f2a000000000000000000000000000000000000000000000000000000000000"

func TestPodsThatCannotBe(t *testing.T) {
	cases := []struct {
		name   string
		change func(*Pod)
	}{
		{"no id", func(p *Pod) { p.ID = "" }},
		{"an id that climbs", func(p *Pod) { p.ID = "../x" }},
		{"an id of 129 bytes", func(p *Pod) { p.ID = strings.Repeat("a", 129) }},
		{"a name that adds an argument", func(p *Pod) { p.Name = "x;IP=10.0.0.1" }},
		{"a namespace with an equals sign", func(p *Pod) { p.Namespace = "a=b" }},
		{"a uid with a null byte", func(p *Pod) { p.UID = "a\x00b" }},
		{"a name of 513 bytes", func(p *Pod) { p.Name = strings.Repeat("a", 513) }},
		{"a negative host port", func(p *Pod) { p.Ports = []PortMapping{{HostPort: -1, ContainerPort: 80}} }},
		{"a host port above 65535", func(p *Pod) { p.Ports = []PortMapping{{HostPort: 65536, ContainerPort: 80}} }},
		{"no container port", func(p *Pod) { p.Ports = []PortMapping{{HostPort: 80}} }},
		{"an unknown protocol", func(p *Pod) { p.Ports = []PortMapping{{HostPort: 80, ContainerPort: 80, Protocol: "icmp"}} }},
		{"a host address that is a name", func(p *Pod) { p.Ports = []PortMapping{{HostPort: 80, ContainerPort: 80, HostIP: "localhost"}} }},
		{"a host address with a zone", func(p *Pod) { p.Ports = []PortMapping{{HostPort: 80, ContainerPort: 80, HostIP: "fe80::1%eth0"}} }},
		{"a host port mapped twice", func(p *Pod) {
			p.Ports = []PortMapping{{HostPort: 80, ContainerPort: 80, Protocol: "TCP"}, {HostPort: 80, ContainerPort: 81}}
		}},
		{"too many ports", func(p *Pod) { p.Ports = make([]PortMapping, maxPorts+1) }},
		{"too many DNS entries", func(p *Pod) { p.DNSSearches = make([]string, maxDNSEntries+1) }},
		{"a bandwidth of nothing", func(p *Pod) { p.Annotations = map[string]string{IngressBandwidthAnnotation: "0"} }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			pod := Pod{ID: podID, Name: "n", Namespace: "ns", UID: "u"}
			c.change(&pod)
			if _, err := pod.validate(); !errors.Is(err, ErrInvalid) {
				t.Errorf("got %v, want ErrInvalid", err)
			}
		})
	}
}

func TestPortsAreMadeCanonical(t *testing.T) {
	pod, err := Pod{ID: podID, Ports: []PortMapping{
		{HostPort: 0, ContainerPort: 1}, {HostPort: 80, ContainerPort: 8080, Protocol: "TCP"}, {HostPort: 80, ContainerPort: 8080, Protocol: "udp"},
		{HostPort: 80, ContainerPort: 8080, HostIP: "::ffff:127.0.0.1"}, {HostPort: 81, ContainerPort: 81, Protocol: "SCTP"},
	}}.validate()
	want := []PortMapping{
		{HostPort: 80, ContainerPort: 8080, Protocol: "tcp"}, {HostPort: 80, ContainerPort: 8080, Protocol: "udp"},
		{HostPort: 80, ContainerPort: 8080, Protocol: "tcp", HostIP: "127.0.0.1"}, {HostPort: 81, ContainerPort: 81, Protocol: "sctp"},
	}
	if err != nil || !slices.Equal(pod.Ports, want) {
		t.Errorf("got %+v, %v; want %+v", pod.Ports, err, want)
	}
}

func TestWhatPluginsAreTold(t *testing.T) {
	pod := Pod{
		ID: podID, Name: "n", Namespace: "ns", UID: "u",
		Ports:       []PortMapping{{HostPort: 80, ContainerPort: 8080, Protocol: "tcp"}},
		Annotations: map[string]string{IngressBandwidthAnnotation: "10M"}, CgroupParent: "/kubepods/x",
		DNSServers: []string{"10.0.0.10"}, DNSSearches: []string{"svc"}, DNSOptions: []string{"ndots:5"},
		PodCIDRs: []string{"10.1.0.0/24", "fd00::/64"},
	}
	rt, err := pod.runtimeConf("/run/netns/x")
	if err != nil {
		t.Fatal(err)
	}
	wantArgs := [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "ns"}, {"K8S_POD_NAME", "n"},
		{"K8S_POD_INFRA_CONTAINER_ID", podID}, {"K8S_POD_UID", "u"}}
	if !reflect.DeepEqual(rt.Args, wantArgs) || rt.IfName != "eth0" || rt.NetNS != "/run/netns/x" || rt.ContainerID != podID {
		t.Errorf("got %+v", rt)
	}
	got, err := json.Marshal(rt.CapabilityArgs)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"bandwidth":{"ingressRate":10000000,"ingressBurst":10000000,"egressRate":0,"egressBurst":0},` +
		`"cgroupPath":"/kubepods/x",` +
		`"dns":{"options":["ndots:5"],"searches":["svc"],"servers":["10.0.0.10"]},` +
		`"io.kubernetes.cri.pod-annotations":{"kubernetes.io/ingress-bandwidth":"10M"},` +
		`"ipRanges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"fd00::/64"}]],` +
		`"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp"}]}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	bare, err := Pod{ID: podID}.capabilities()
	if err != nil || len(bare) > 0 {
		t.Errorf("a pod that asks for nothing passes %v, %v", bare, err)
	}
}

func TestResultOf(t *testing.T) {
	const interfaces = `"interfaces":[{"name":"cri0"},{"name":"veth1"},{"name":"eth0","sandbox":"/n"},{"name":"net1","sandbox":"/n"},{"name":"eth0","sandbox":"/n"}]`
	cases := []struct {
		name, result string
		ips          []string // nil for an error
	}{
		{"the plugin's first address stays first, one of the other family follows",
			`{` + interfaces + `,"ips":[{"interface":2,"address":"fd00::2/64"},{"interface":2,"address":"fd00::3/64"},{"interface":2,"address":"10.0.0.2/24"}]}`,
			[]string{"fd00::2", "10.0.0.2", "fd00::3"}},
		{"addresses of one family keep their order", `{"ips":[{"address":"10.0.0.3/24"},{"address":"10.0.0.2/24"}]}`, []string{"10.0.0.3", "10.0.0.2"}},
		{"addresses of other interfaces are not the pod's",
			`{` + interfaces + `,"ips":[{"interface":3,"address":"10.9.0.2/24"},{"interface":0,"address":"10.0.0.1/24"},{"interface":2,"address":"10.0.0.2/24"}]}`,
			[]string{"10.0.0.2"}},
		{"no address", `{` + interfaces + `}`, nil},
		{"only addresses of other interfaces", `{` + interfaces + `,"ips":[{"interface":3,"address":"10.9.0.2/24"}]}`, nil},
		{"an interface that is not in the result", `{"ips":[{"interface":0,"address":"10.0.0.2/24"}]}`, nil},
		{"a negative interface", `{` + interfaces + `,"ips":[{"interface":-1,"address":"10.0.0.2/24"}]}`, nil},
		{"an unspecified address", `{"ips":[{"address":"0.0.0.0/0"}]}`, nil},
		{"a multicast address", `{"ips":[{"address":"224.0.0.1/4"}]}`, nil},
		{"a null address", `{"ips":[null]}`, nil},
		{"a null interface", `{"interfaces":[null],"ips":[{"address":"10.0.0.2/24"}]}`, nil},
		{"an interface whose name is a path", `{"interfaces":[{"name":"../x","sandbox":"/n"}],"ips":[{"address":"10.0.0.2/24"}]}`, nil},
		{"too many addresses", `{"ips":[` + strings.Repeat(`{"address":"10.0.0.2/24"},`, maxIPs) + `{"address":"10.0.0.2/24"}]}`, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var r types100.Result
			if err := json.Unmarshal([]byte(c.result), &r); err != nil {
				t.Fatal(err)
			}
			got, err := resultOf(&r)
			if (err != nil) != (c.ips == nil) {
				t.Fatalf("got %+v, %v", got, err)
			}
			if err == nil && fmt.Sprint(got.IPs) != fmt.Sprint(c.ips) {
				t.Errorf("got %v, want %v", got.IPs, c.ips)
			}
			if err == nil && strings.Contains(c.result, "net1") && !slices.Equal(got.Interfaces, []string{"eth0", "net1"}) {
				t.Errorf("got interfaces %v", got.Interfaces)
			}
		})
	}
}

func FuzzResult(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/n"}],"ips":[{"interface":0,"address":"10.0.0.2/24"}]}`))
	f.Add([]byte(`{"cniVersion":"0.4.0","interfaces":[null],"ips":[{"version":"4","address":"10.0.0.2/24"}]}`))
	f.Add([]byte(`{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var got Result
		err := guard(func() error {
			raw, err := create.CreateFromBytes(data)
			if err != nil {
				return err
			}
			r, err := types100.NewResultFromResult(raw)
			if err != nil {
				return err
			}
			got, err = resultOf(r)
			return err
		})
		if err != nil {
			return
		}
		if len(got.IPs) == 0 || len(got.IPs) > maxIPs {
			t.Errorf("took %d addresses", len(got.IPs))
		}
		for _, ip := range got.IPs {
			if !ip.IsValid() || ip.IsUnspecified() || ip.Is4In6() {
				t.Errorf("took the address %v", ip)
			}
		}
	})
}
