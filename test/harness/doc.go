// Package harness is what the end-to-end tests and the benchmark share: images
// made from busybox and a small program of our own, a real registry to serve
// them, and engines that run in scratch directories.
//
// An [Engine] is the shipped binaries started the way a service manager would:
// NewEngine writes its directories and configuration, Start runs `cri-engine
// serve` and waits for the socket, Kill and Terminate end that process and
// leave pods running, Close ends the daemon, the monitor and nothing else.
package harness
