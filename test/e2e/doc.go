// Package e2e tests the shipped binaries on real parts, through the CRI socket
// alone: runc, crun, CNI plugins, docker-registry.
//
//	go test -tags e2e ./test/e2e
//
// It needs root, and what TestMain asks for by name. The binaries come from
// BIN (../../bin); the daemon with fail points is built here.
//
// # Worlds
//
// A test function runs in a world of its own: a new process of the test binary
// in new mount, PID, network, IPC, UTS and cgroup namespaces, with an init that
// reaps, /run and /tmp empty, cgroup hierarchies whose root is the world's own
// cgroup, and a registry on its loopback. So tests run side by side, nothing
// they do can hurt the machine, and a leak is exact: whatever is there after a
// test and was not there before is the engine's. When a world's init ends the
// kernel takes the rest.
//
// With CRI_ENGINE_E2E_HOST=1 tests run on the machine itself, one after the
// other, as one wants on a machine that exists for them (a VM with systemd).
//
// # Leaks
//
// After every test [leaks] compares mounts, network namespaces, processes,
// cgroups, interfaces, firewall rules, System V objects and files with what was
// there before it, and the daemon's and monitor's descriptors too.
//
// CRI_ENGINE_E2E_SLOW is how many times slower than a usual one the machine is: every
// limit of time is that many times longer. CRI_ENGINE_E2E_PREBUILT is a directory with
// what is built otherwise (payload, cri-engine-failpoints), for a machine without Go.
//
// Other knobs: KILLS, how many kills each process gets in the kill test;
// SEED, its random seed; CRI_ENGINE_E2E_SCRATCH, a directory on a filesystem
// that overlayfs takes as an upper layer; CRI_ENGINE_E2E_KEEP=1 keeps it.
package e2e
