package harness

import (
	"bufio"
	"fmt"
	"net"
	"net/http"

	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// UpgradeSPDY makes a connection to the server of a streaming URL one of SPDY's, as
// the kubelet does. The connection stays the caller's to close when that fails.
func UpgradeSPDY(nc net.Conn, address, protocol string) (httpstream.Connection, error) {
	req, err := http.NewRequest(http.MethodPost, address, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
	req.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
	req.Header.Set(httpstream.HeaderProtocolVersion, protocol)
	if err := req.Write(nc); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(nc), req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, fmt.Errorf("upgrade: %s", resp.Status)
	}
	return spdy.NewClientConnection(nc)
}
