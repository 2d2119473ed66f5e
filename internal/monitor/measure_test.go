package monitor

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestMemory says what the monitor's processes take, and each idle container adds.
// MONITOR_BINARY names the binary to measure: the test's own is larger.
func TestMemory(t *testing.T) {
	binary := os.Getenv("MONITOR_BINARY")
	if binary == "" {
		t.Skip("needs MONITOR_BINARY, the binary as it is shipped")
	}
	n := runcNode(t)
	o := n.options()
	o.StateDir, o.Binary = o.StateDir+"-m", binary
	must(t, os.Mkdir(o.StateDir, 0o700))
	defer os.RemoveAll(o.StateDir)
	c, err := Dial(n.ctx(), o)
	must(t, err)
	n.c, c = c, n.c
	defer func() {
		s := n.status()
		n.c.Close()
		n.c = c
		p, _ := os.FindProcess(s.KeeperPid)
		_ = p.Signal(os.Interrupt)
		time.Sleep(200 * time.Millisecond)
	}()
	const count = 20
	s := n.status()
	k0, p0 := anonymous(t, s.KeeperPid), anonymous(t, s.PumpPid)
	t.Logf("empty: keeper %s, pump %s", k0, p0)
	var boxes []*box
	for range count {
		boxes = append(boxes, n.run([]string{"/bin/sleep", "1000"}))
	}
	time.Sleep(7 * time.Second)
	t.Logf("with %d: keeper %s, pump %s", count, anonymous(t, s.KeeperPid), anonymous(t, s.PumpPid))
	for _, b := range boxes {
		n.delete(b.id)
	}
}

// anonymous returns RSS, and its part that no other process shares.
func anonymous(t *testing.T, pid int) string {
	t.Helper()
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	must(t, err)
	var got []string
	for _, line := range strings.Split(string(data), "\n") {
		if name, value, ok := strings.Cut(line, ":"); ok && (name == "VmRSS" || name == "RssAnon" || name == "Threads") {
			got = append(got, name+" "+strings.TrimSpace(value))
		}
	}
	return strings.Join(got, ", ")
}
