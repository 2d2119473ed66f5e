// Package thread runs code in other namespaces. Namespaces belong to threads, and
// the Go runtime moves goroutines between threads, so such code gets a thread
// of its own that ends with it. It is a leaf.
package thread

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Run runs f on a thread that ends afterwards, so that no other goroutine ever
// finds itself where f went. What f starts in other goroutines isn't there.
//
// The first thread of the process cannot end: the Go runtime parks it instead,
// and it would hold on to the namespace for ever, in /proc/PID/ns for all to
// see. When the goroutine lands there, it stays locked to it and lets another
// one do the work, which then gets another thread.
func Run(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- Run(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

// Join moves the calling thread, which must be Run's, into the namespace pinned
// at path. kind is its CLONE_NEW flag: a path that is another kind is an error.
func Join(path string, kind int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, kind); err != nil {
		return fmt.Errorf("join namespace %s: %w", path, err)
	}
	return nil
}
