package systemd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	godbus "github.com/godbus/dbus/v5"
)

func TestRemoveSlice(t *testing.T) {
	if _, err := os.Stat(privateSocket); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and systemd")
	}
	const name = "cri_engine_test-a.slice"
	if out, err := exec.Command("systemctl", "start", name).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const dir = "/sys/fs/cgroup/cri_engine_test.slice"
	if _, err := os.Stat(dir + "/" + name); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds none
		for _, slice := range []string{name, "cri_engine_test.slice"} {
			if err := RemoveSlice(t.Context(), slice); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("its cgroup is left: %v", err)
	}
}

func TestASliceThatDoesNotExistIsNoError(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{godbus.Error{Name: "org.freedesktop.systemd1.NoSuchUnit"}, true},
		{godbus.Error{Name: "org.freedesktop.DBus.Error.AccessDenied"}, false},
		{errors.New("NoSuchUnit"), false},
	} {
		if got := noSuchUnit(fmt.Errorf("wrapped: %w", c.err)); got != c.want {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}
