// Package monitor is the parent of all containers of a node: two processes that
// guard each other, and the client by which the daemon talks to them.
//
// # Processes
//
// The keeper (RunKeeper) is the monitor's first process. It is a subreaper, holds a
// record and duplicates of all fds of every process, and does nothing else. The
// pump (RunPump), its child and a subreaper too, runs the OCI runtimes, so that
// what they make becomes its child; it moves bytes, reaps, and serves the daemon.
//
// When the pump dies its children become the keeper's. The keeper starts another
// pump, gives it records and fds, and tells it of children that end; they stay zombies until
// the pump has recorded how. When the keeper dies, the pump sees the end of their socket and
// becomes the keeper by exec, in place: the same process, the same children, the fds
// inherited. Then it starts a pump. An upgrade is the same exec with the binary
// that is then at the keeper's path.
//
// # A container's life
//
// Create makes the streams and the log, puts them into the keeper's custody, and runs
// "create" of the runtime with them. The pid comes from the pid file; with it
// go a pidfd, the cgroups and the count of the OOM killer's victims, all acknowledged
// by the keeper before Create returns. Start runs "start". Bytes move (below) until the
// streams end, which may be long after the process. At its end the process stays a zombie
// until its record, with the exit in it, is the keeper's and in DIR/monitor/procs; then it
// is reaped, its last output is logged, Wait returns and EventExit is sent. Delete kills
// what is left, runs "delete", removes what a killed runtime did not note, and forgets.
//
// Exec is the same with "exec", but its output goes to the daemon on a connection
// for each stream (ExecSession), and it is forgotten when nobody comes for it.
//
// # Bytes
//
// A pump may be killed between any two instructions, so what it has read and not yet
// written would be lost. It does not read: tee(2) copies the head of the pipe, whole
// lines of it become entries, the stream's journal in memory that both processes map
// says which bytes at which time go to which place in the log, the entries are
// appended, and only then the bytes are read out of the pipe. The next pump finds
// the journal, makes the same entries of the same bytes, and appends those that
// the log's size says are missing. Whether bytes were taken out is told by the first of
// them, which the read puts over a cell of the journal that had another value.
// An unfinished line waits in the pipe; what fills the pipe behind it is seen by a signal,
// not by epoll (unfinished.go). A pty can only be read: see moveTerminal.
//
// # Locks
//
// A process's turn guards its journals and log; its mu guards record and fds and is held
// for no system call that waits; saving keeps changes in the order in which the keeper
// gets them; ops lets one runtime at a time work on it. Order: ops, turn, saving, mu; the pump's mu
// before a process's.
package monitor
