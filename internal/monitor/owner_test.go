package monitor

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAPipeIsItsOwners(t *testing.T) {
	owner := &Owner{UID: os.Getuid(), GID: os.Getgid()}
	if owner.UID == 0 {
		owner = &Owner{UID: 200001, GID: 200002}
	}
	fds, err := pipe(0, owner)
	must(t, err)
	defer closeAll(fds[:])
	for _, fd := range fds {
		var st unix.Stat_t
		must(t, unix.Fstat(fd, &st))
		if int(st.Uid) != owner.UID || int(st.Gid) != owner.GID {
			t.Errorf("it is %d:%d's, want %v", st.Uid, st.Gid, owner)
		}
	}
}
