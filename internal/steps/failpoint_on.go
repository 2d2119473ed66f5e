//go:build failpoints

package steps

import (
	"os"
	"strings"
	"syscall"
)

// failpoint is where this process dies, as Points writes it. A name that ends
// in "@FILE" dies only while FILE exists, and removes it first: so that a test
// can arm the point once, for the call it means.
var failpoint = os.Getenv("CRI_ENGINE_FAILPOINT")

func hit(op, step, when string) {
	if failpoint == "" {
		return
	}
	point, file, once := strings.Cut(failpoint, "@")
	if point != op+"/"+step+":"+when {
		return
	}
	if once && os.Remove(file) != nil {
		return
	}
	_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
	select {}
}
