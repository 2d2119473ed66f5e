// Package daemon puts the engine together from its parts and runs it.
//
// [Run] takes the state directory for itself (lock.go), opens what does not depend on
// each other side by side (the image store, the monitor, the OCI runtimes, the
// networks: parts.go), lets the engine read its records and compare them with
// what is really there, starts and synchronizes NRI plugins, and only then listens: an answer that is given is true. On SIGTERM
// or SIGINT the server finishes the calls under way and all is closed in the
// reverse order. Pods and containers are the monitor's, and run on.
package daemon
