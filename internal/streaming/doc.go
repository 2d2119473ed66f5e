// Package streaming serves exec, attach and port-forward over HTTP, SPDY and
// WebSocket.
//
// CRI's Exec, Attach and PortForward only answer a URL. [Server.Exec] and its like
// keep the request under a random token, which is good for one connection within a
// minute; the kubelet (or crictl) connects there and the streams begin. Protocols
// that today's clients do not speak any more are k8s.io/cri-streaming's. The tokens,
// the listener and the connections are this package's, so that every call knows when
// its client's connection is gone and ends with it, whatever it was waiting for.
package streaming
