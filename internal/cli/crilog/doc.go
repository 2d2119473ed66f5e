// Package crilog reads the log files of containers as CRI defines them.
//
// A file is a list of physical lines, each
//
//	2026-01-02T15:04:05.999999999Z stdout F what the container wrote
//
// with a time, a stream, a tag and the content. Tag F ends a line of the
// container's, tag P says that it goes on in the next physical line of the same
// stream. (design: kubernetes/design-proposals-archive, node/kubelet-cri-logging.md)
//
// [Reader] takes such a file apart, [Copy] writes it out again as the
// container wrote it: from the start or the last lines, once or for as long
// as the container lives, over rotations of the file. Memory is bounded however
// long a line is: what the content says is the container's, thus hostile.
package crilog
