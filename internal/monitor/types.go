package monitor

import "time"

// Runtime says how to call an OCI runtime for one process.
type Runtime struct {
	// Path is the runtime's binary, absolute.
	Path string `json:"path"`
	// Root is what --root gets: the runtime's own state directory.
	Root string `json:"root"`
	// SystemdCgroup adds --systemd-cgroup.
	SystemdCgroup bool `json:"systemdCgroup,omitempty"`
	// Timeout ends a call of the runtime that takes longer; 0 for two minutes.
	Timeout time.Duration `json:"timeout,omitempty"`
}

// CreateRequest asks for a container's process, created but not started.
type CreateRequest struct {
	// ID is the container's id, 64 hex digits (a sandbox's init has the sandbox's id).
	ID      string  `json:"id"`
	Runtime Runtime `json:"runtime"`
	// Bundle is the OCI bundle: a directory with config.json.
	Bundle string `json:"bundle"`
	// LogPath is the CRI log file, absolute; empty for none (output is discarded).
	// It exists, mode 0640, when Create returns.
	LogPath string `json:"logPath,omitempty"`
	// Terminal gives the process a pty instead of pipes; the spec's process.terminal must agree.
	Terminal bool `json:"terminal,omitempty"`
	// Stdin keeps stdin open; without it the process reads /dev/null.
	Stdin bool `json:"stdin,omitempty"`
	// StdinOnce closes stdin when the first attached client that had it goes away.
	StdinOnce bool `json:"stdinOnce,omitempty"`
	// Env is added to the runtime's own environment, "K=V".
	Env []string `json:"env,omitempty"`
	// Owner of the pipes; nil for the runtime to see to.
	Owner *Owner `json:"owner,omitempty"`
}

// Owner is who may open a process's pipes again, as a program does that writes to
// /dev/stdout. A runtime gives them to the process's user, but can't where that
// is in a user namespace which does not know the pipes' owner. Ids are the host's.
type Owner struct {
	UID int `json:"uid"`
	GID int `json:"gid"`
}

// ExecRequest asks for one more process in a running container.
type ExecRequest struct {
	// ID is the container's id, ExecID this exec's own: 1–64 of [a-z0-9-], new for each.
	ID      string  `json:"id"`
	ExecID  string  `json:"execId"`
	Runtime Runtime `json:"runtime"`
	// Process is the OCI runtime spec's process object, JSON.
	Process  []byte `json:"process"`
	Terminal bool   `json:"terminal,omitempty"`
	Stdin    bool   `json:"stdin,omitempty"`
	// Owner of the pipes, as in CreateRequest.
	Owner *Owner `json:"owner,omitempty"`
}

// Exit is how a process ended.
type Exit struct {
	// Code is the exit status, 128+signal for a process that a signal ended,
	// and 255 when Lost.
	Code int32 `json:"code"`
	// Signal is the signal's number, 0 for none.
	Signal int32 `json:"signal,omitempty"`
	// OOMKilled: the kernel's OOM killer ended a process in the container's cgroup.
	OOMKilled bool `json:"oomKilled,omitempty"`
	// Lost: nobody was there to see it end, so Code is not its own.
	Lost bool `json:"lost,omitempty"`
	// At is when the monitor saw it.
	At time.Time `json:"at"`
}

// State is where a process is in its life.
type State string

// The states of a process. A process moves down this list, never up.
const (
	StateCreating State = "creating" // the OCI runtime is at work; pid unknown
	StateCreated  State = "created"  // waits for Start
	StateRunning  State = "running"
	StateExited   State = "exited" // Exit is known; kept until Forget
)

// Info is what the monitor knows of one process.
type Info struct {
	ID     string `json:"id"`
	ExecID string `json:"execId,omitempty"` // empty for a container's own process
	State  State  `json:"state"`
	// Pid in the host's PID namespace, and its start time in clock ticks
	// (proc_pid_stat(5), field 22) to tell it from a later process with the same number.
	Pid       int    `json:"pid,omitempty"`
	StartTime uint64 `json:"startTime,omitempty"`
	Exit      *Exit  `json:"exit,omitempty"` // set when State is StateExited
	LogPath   string `json:"logPath,omitempty"`
}

// EventType says what an Event tells.
type EventType string

// The event types.
const (
	// EventExit: the process ended; Info.Exit is set.
	EventExit EventType = "exit"
	// EventOOM: the OOM killer struck in the container, which may live on.
	EventOOM EventType = "oom"
	// EventReset: the connection was lost and made again (the pump was replaced, or
	// the whole monitor). Events may have been missed: call List.
	EventReset EventType = "reset"
)

// Event is something that happened without being asked for.
type Event struct {
	Type EventType `json:"type"`
	Info Info      `json:"info"`
}

// Options say where the monitor is and how to start it.
type Options struct {
	// StateDir is the engine's state directory; the monitor's socket, lock and
	// exit records are in StateDir/monitor.
	StateDir string
	// Binary is the monitor's binary, started when none answers. Empty: never
	// start one (it is a systemd unit of its own).
	Binary string
	// LogFile gets the monitor's own messages when Binary is started; empty: the caller's stderr.
	LogFile string
}

// Status is what the monitor says of itself.
type Status struct {
	Version   string `json:"version"`   // of the binary
	Protocol  int    `json:"protocol"`  // the highest version both sides speak
	KeeperPid int    `json:"keeperPid"` // the two processes that guard each other
	PumpPid   int    `json:"pumpPid"`
	Processes int    `json:"processes"` // in custody
	Attached  int    `json:"attached"`  // clients that see a container's output, one for each stream
	// Goroutines of the pump: what it does at the moment.
	Goroutines int `json:"goroutines"`
	// DroppedLogBytes counts output that could not be written to a log (disk full), since start.
	DroppedLogBytes uint64 `json:"droppedLogBytes"`
}

// DeleteRequest removes a container from its OCI runtime.
type DeleteRequest struct {
	ID      string  `json:"id"`
	Runtime Runtime `json:"runtime"`
	// Force kills whatever is left in the container first.
	Force bool `json:"force,omitempty"`
}
