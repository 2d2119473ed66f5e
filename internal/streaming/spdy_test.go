package streaming

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/cri-engine/cri-engine/test/harness"
)

func TestClientsThatVanishAsTheyOpenStreamsLeaveNothing(t *testing.T) {
	s, e := listen(t, Options{CreationTimeout: 200 * time.Millisecond})
	for i := range 300 {
		protocol := portforward.ProtocolV1Name
		u, err := s.PortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p1"})
		if i%2 == 0 {
			protocol, u = remotecommand.StreamProtocolV4Name, execURL(t, s, "hang", false)
		}
		if err != nil {
			t.Fatal(err)
		}
		nc, err := net.Dial("tcp", s.Address())
		if err != nil {
			t.Fatal(err)
		}
		conn, err := harness.UpgradeSPDY(nc, u, protocol)
		if err != nil {
			t.Fatal(err)
		}
		openAll(conn, protocol)
		time.Sleep(time.Duration(rand.IntN(500)) * time.Microsecond)
		if i%4 < 2 {
			nc.Close()
		}
		conn.Close()
		nc.Close()
	}
	waitFor(t, "all commands to end", func() bool { return e.running.Load() == 0 })
	ended := make(chan struct{})
	go func() {
		s.Close()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the server does not end")
	}
	waitFor(t, "nobody to wait for an answer that does not come", func() bool {
		stacks := make([]byte, 16<<20)
		return !bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("waitWriteReply"))
	})
}

// openAll asks for streams and does not wait for them.
func openAll(conn httpstream.Connection, protocol string) {
	if protocol == remotecommand.StreamProtocolV4Name {
		for _, kind := range []string{"error", "stdin", "stdout", "stderr"} {
			h := http.Header{}
			h.Set(remotecommand.StreamType, kind)
			go func() { _, _ = conn.CreateStream(h) }()
		}
		return
	}
	for i := range 10 {
		for _, kind := range []string{portforward.StreamTypeError, portforward.StreamTypeData} {
			h := http.Header{}
			h.Set(portforward.StreamType, kind)
			h.Set(portforward.PortHeader, "80")
			h.Set(portforward.PortForwardRequestIDHeader, fmt.Sprint(i))
			go func() { _, _ = conn.CreateStream(h) }()
		}
	}
}
