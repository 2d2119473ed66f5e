// Package sandbox is pods and containers: what they are, the states they go
// through, the records they last in, and how both are found again at start.
//
// # A pod's way
//
// RunPod (pod_run.go) makes a pod in steps, each with its undo: its record,
// its directory, its pinned namespaces, its network, its files under /etc, its
// /dev/shm, and, where its PID namespace is shared, a process to hold that. It
// is listed when the last step is done and not before. There is no pause
// container: the namespaces are held by bind mounts.
//
// CreateContainer (container_create.go) gives a container of a ready pod a
// root filesystem and an OCI bundle. StartContainer has the monitor create and
// start its process, and the record says so. When the process ends, the monitor
// tells (watch.go), the record gets the exit code, and what the container still
// held is given back. StopContainer sends signals and waits; RemoveContainer
// takes the rest away. StopPod ends all containers, detaches the network and lets
// the namespaces go; RemovePod takes everything.
//
// # What lasts
//
// A pod or container is a record on disk (record.go), replaced atomically
// before and after everything that would have to be undone. Its phase alone
// decides what a start after a crash does with it (recover.go): a half-made
// object is rolled back, a half-ended one is ended, and a container whose start
// was cut off is either running, has ended, or is as it was created.
//
// # Locks
//
// Every pod and container has an op lock, held by the one operation that makes,
// starts or removes it, and waited for with a context. Its mutex guards the
// record in memory and is held for one small file's rename at most. Lists and
// statuses read atomic snapshots under neither. Stopping takes no op lock: it
// signals and waits, so several stops run side by side.
//
// Making a pod or container is joined by a repeated request for the same name
// (flight.go); it is undone when all who asked have given up. Starting,
// stopping and removing go to their end once begun.
package sandbox
