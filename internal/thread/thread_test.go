package thread

import (
	"errors"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRunNeverUsesTheFirstThreadNorOneTwice(t *testing.T) {
	var mu sync.Mutex
	seen := map[int]bool{}
	var wg sync.WaitGroup
	start := make(chan struct{})
	boom := errors.New("boom")
	for range 50 {
		wg.Go(func() {
			err := Run(func() error {
				<-start // all at once, so that no id of a thread that ended comes again
				mu.Lock()
				defer mu.Unlock()
				if tid := unix.Gettid(); tid == os.Getpid() || seen[tid] {
					t.Errorf("thread %d of process %d", tid, os.Getpid())
				} else {
					seen[tid] = true
				}
				return boom
			})
			if !errors.Is(err, boom) {
				t.Errorf("f's error is lost: %v", err)
			}
		})
	}
	close(start)
	wg.Wait()
}

func TestJoinTellsWhatIsWrong(t *testing.T) {
	err := Run(func() error { return Join(t.TempDir()+"/none", unix.CLONE_NEWNET) })
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a path that does not exist: %v", err)
	}
	err = Run(func() error { return Join("/dev/null", unix.CLONE_NEWNET) })
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("a file that is no namespace: %v", err)
	}
}
