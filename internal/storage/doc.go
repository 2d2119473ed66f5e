// Package storage keeps images and the root filesystems made from them, on
// go.podman.io/storage and go.podman.io/image.
//
// [Init] comes first in main: unpacking a layer runs this program again, in a
// chroot. [Open] then opens or makes the store, puts right what a crash left,
// and reads every image into memory; from there on the store on disk changes
// through this [Store] only.
//
// # An image's life
//
// [Store.Pull] finds the registry for a name, checks the signature policy and
// the image's platform, and unpacks the layers; several callers that want the
// same image with the same credentials share one pull. The image is recorded
// without a name first, then the filesystem is synced, and only then it gets
// its names. So a name is the promise that every byte of the image has reached
// the disk, and what has no name when the store is opened is what a crash or a
// removal left: it is deleted, with layers that no image wants.
//
// [Store.Image] and [Store.Images] read memory: an immutable snapshot that is
// replaced after every change. They never wait for a pull, a removal or a disk.
//
// [Store.Remove] takes all names away, which unlists the image at once, and
// deletes it, or leaves that to the last root filesystem made from it.
//
// # A root filesystem's life
//
// [Store.CreateRootFS] makes an overlay on an image and mounts it; after a
// reboot [Store.MountRootFS] mounts it again; [Store.RemoveRootFS] unmounts and
// deletes it. They outlive the process, mounts included: [Store.Close] touches
// none. [Store.RootFSes] says which there are, for the sweep at start.
//
// With mapped ids (idmap.go), for a pod with a user namespace, the layers below are
// mounted with the user namespace's ids, not copied. The library takes a fork of
// this process for a moment, to have such a namespace; mounts that a death in that
// moment leaves are detached before anything is deleted through them.
//
// # Figures
//
// What images and writable layers use is measured by one goroutine at a bounded
// rate; [Store.FsInfo] and [Store.RootFSUsage] answer with what it last saw.
package storage
