package monitor

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// monitorProcess is a monitor that this process started.
type monitorProcess struct {
	mu    sync.Mutex // Protects what follows.
	ended chan struct{}
	tried time.Time
}

// ensure starts a monitor unless the one that was started last still runs. If
// another one holds the lock, ours ends at once, and the other is what answers.
func (m *monitorProcess) ensure(o Options) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended != nil {
		select {
		case <-m.ended:
		default:
			return nil
		}
	}
	if time.Since(m.tried) < maxBackoff {
		return nil
	}
	m.tried = time.Now()
	return m.start(o)
}

// start runs the monitor in a session of its own, so that nothing that is sent to
// ours reaches it, and with nothing of ours open but the log.
func (m *monitorProcess) start(o Options) error {
	log := os.Stderr
	if o.LogFile != "" {
		f, err := os.OpenFile(o.LogFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
		if err != nil {
			return fmt.Errorf("open the monitor's log: %w", err)
		}
		defer f.Close()
		log = f
	}
	cmd := exec.Command(o.Binary, "--state", o.StateDir)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the monitor: %w", err)
	}
	ended := make(chan struct{})
	m.ended = ended
	go func() {
		_ = cmd.Wait() // whatever it says, the next connection tells whether there is a monitor
		close(ended)
	}()
	return nil
}
