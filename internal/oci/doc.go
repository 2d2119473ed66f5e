// Package oci turns what the CRI asks for into what an OCI runtime runs.
//
// Once, when the engine starts, [DetectCgroupDriver] decides who makes cgroups
// and [FindHandlers] finds the OCI runtimes that work here and what they can do.
//
// For a pod, [CheckCgroupParent] checks where its cgroup will be. Where the
// pod's containers share a PID namespace, [PauseSpec] makes the spec of its init.
//
// For a container, [ContainerSpec] makes the spec from the request, the
// image's configuration, the mounted root filesystem and the pod's
// namespaces; the caller writes it into a bundle and keeps it. Before that,
// [MakeVolumes] makes the directories that the image declares as volumes. For an exec,
// [ExecProcess] makes a process from that spec.
//
// Nothing here is kept, locked or undone: specs are values, and the machine is
// only read. The exceptions are MakeVolumes, which makes directories in the root
// filesystem, and the trial container of FindHandlers, which is gone when it returns.
//
// What a request asks for is clamped to what this machine lets the engine give
// (capabilities to the bounding set, oom_score_adj and limits where raising
// takes CAP_SYS_RESOURCE), because the engine may itself run in a container.
// What cannot be clamped without being less safe than asked for is refused.
package oci
