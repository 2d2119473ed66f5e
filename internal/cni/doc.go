// Package cni gives pods their namespaces and their network: namespaces that
// are pinned in the file system, and CNI plugins called through libcni.
//
// # A pod's network
//
// In the order of a pod's life, with what is true after each call:
//
//   - [NewNamespaces] creates and pins the pod's namespaces. lo is up, hostname and
//     sysctls are set. Nobody is in them.
//   - [Networks.Intent] checks the pod's ports and bandwidth and writes into the Pod
//     which network it will get, configuration included. Nothing has happened yet;
//     the caller records the Pod on disk.
//   - [Networks.Add] runs CNI ADD. The pod has an eth0 with at least one address, or
//     DEL was called and nothing is left.
//   - [SetSysctls] for those of the pod's sysctls that are eth0's ([SplitSysctls]),
//     which is there only now.
//   - [Networks.Check] at any time.
//   - [Networks.Del] runs CNI DEL with the recorded Pod. It may be called after a
//     failed or unfinished Add, more than once, without the namespace, and after a
//     reboot.
//   - [Unpin] lets go of the namespaces. Interfaces that are still inside go with
//     them, when the last process is gone.
//
// Calls about one pod must not overlap; the caller has a lock per pod anyway.
// Calls about different pods never wait for each other here.
//
// # Which network
//
// [New] starts a watch on a directory of CNI configurations, and [Networks.Close]
// ends it. The first valid file by name is the network of every pod that comes;
// pods that are there keep the one they were recorded with. A file that can't
// be used is passed over and named in [Networks.Status]. As long as the
// directory has no file at all, the default network serves: the conflist that
// the engine carries (conf/cni), fitted to the host (default.go says how and why).
//
// [Networks.Ready] and [Networks.Status] answer from memory. The watch looks for
// the plugins' binaries, and asks networks of CNI 1.1 for their STATUS, every
// few seconds.
//
// # Plugins
//
// Plugins are programs that others wrote, run as root: they are trusted with
// the host, not with the engine. Each runs in a process group that ends with the call's
// context and with the daemon; what it writes is bounded; what it returns is
// checked; a result that makes the CNI library panic is an error.
package cni
