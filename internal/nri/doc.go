// Package nri lets plugins take part in the life of pods and containers, by the
// Node Resource Interface (github.com/containerd/nri).
//
// # A plugin's way
//
// A plugin connects to the socket, or is started from the plugin directory, and
// registers. It is then synchronized: it is sent all pods and containers that
// there are, and may answer with changes of their limits. From then on it is
// called at each event that it subscribed to.
//
// # Turns
//
// What a plugin was synchronized with, and the events that follow, must make one
// story in which nothing is missing and nothing comes twice. So whoever calls
// plugins takes a turn ([Plugins.Turn]), and in the same turn notes that the event
// was told. Many have turns at a time. A synchronization waits until all turns
// have ended and lets none begin until its plugin is among those that are called;
// a turn that begins then sees it. It gives up, and the plugin with it, when turns
// don't end in time.
//
// In a turn nothing is waited for but plugins: no OCI runtime, no network, no
// lock of a pod or container. So a turn may begin under any lock, and what a
// synchronization waits for is bounded by the plugins' own time limits.
//
// # Who is who
//
// This package makes the messages out of what the engine knows (messages.go) and
// lays a plugin's wishes over an OCI spec (adjust.go). What may be wished for is
// checked by internal/oci, when it happens is decided by internal/sandbox, which
// declares the interface that [Plugins] satisfies.
package nri
