package monitor

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
)

// runtimeMain is an OCI runtime without namespaces or cgroups: what the monitor sees of a
// real one (command line, pid file, inherited stdio, exit codes, the JSON log, processes
// that are left to the nearest subreaper), and nothing that needs root.
func runtimeMain(args []string) {
	global := flag.NewFlagSet("runtime", flag.ExitOnError)
	root := global.String("root", "", "")
	log := global.String("log", "", "")
	global.String("log-format", "", "")
	_ = global.Parse(args)
	if err := runtimeCommand(*root, global.Args()); err != nil {
		line, _ := json.Marshal(map[string]string{"level": "error", "msg": err.Error()})
		_ = os.WriteFile(*log, line, 0o600)
		os.Exit(1)
	}
	os.Exit(0)
}

func runtimeCommand(root string, args []string) error {
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	bundle := flags.String("bundle", "", "")
	pidFile := flags.String("pid-file", "", "")
	process := flags.String("process", "", "")
	flags.Bool("detach", false, "")
	force := flags.Bool("force", false, "")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	dir := filepath.Join(root, flags.Arg(0))
	if args[0] != "create" {
		if _, err := os.Stat(dir); err != nil {
			return fmt.Errorf("container does not exist")
		}
	}
	switch args[0] {
	case "create":
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		return runtimeSpawn(dir, filepath.Join(*bundle, "config.json"), *pidFile, true)
	case "start":
		return os.WriteFile(filepath.Join(dir, "start"), nil, 0o600) // a fifo that init reads
	case "exec":
		return runtimeSpawn(dir, *process, *pidFile, false)
	case "delete":
		if pid, err := readPidFile(filepath.Join(dir, "pid")); err == nil && syscall.Kill(pid, 0) == nil && !*force {
			return fmt.Errorf("container is not stopped")
		}
		return os.RemoveAll(dir)
	}
	return fmt.Errorf("unknown command %q", args[0])
}

func runtimeSpawn(dir, spec, pidFile string, create bool) error {
	data, err := os.ReadFile(spec)
	if err != nil {
		return err
	}
	var s struct {
		Args    []string
		Process struct{ Args []string }
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	fifo := "-"
	if create {
		fifo = filepath.Join(dir, "start")
		if err := syscall.Mkfifo(fifo, 0o600); err != nil {
			return err
		}
		s.Args = s.Process.Args
	}
	cmd := exec.Command("/proc/self/exe", append([]string{"--init", fifo}, s.Args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	pid := strconv.Itoa(cmd.Process.Pid)
	if create {
		if err := os.WriteFile(filepath.Join(dir, "pid"), []byte(pid), 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(pidFile, []byte(pid), 0o600)
}

// initMain waits for start, as a created container does, and becomes the process.
func initMain(fifo string, args []string) {
	if fifo != "-" {
		if _, err := os.ReadFile(fifo); err != nil {
			os.Exit(125)
		}
	}
	err := syscall.Exec(args[0], args, os.Environ())
	fmt.Fprintln(os.Stderr, err)
	os.Exit(127)
}

// testSpec is a config.json for both kinds of runtime.
func testSpec(id string, args []string) map[string]any {
	namespaces := []map[string]any{}
	for _, ns := range []string{"pid", "ipc", "uts", "mount", "network"} {
		namespaces = append(namespaces, map[string]any{"type": ns})
	}
	return map[string]any{
		"ociVersion": "1.0.2",
		"process": map[string]any{
			"args": args, "cwd": "/", "env": []string{"PATH=/bin"}, "user": map[string]any{"uid": 0, "gid": 0},
			"noNewPrivileges": true,
		},
		"root":     map[string]any{"path": testRootFS, "readonly": true},
		"hostname": "box",
		"mounts": []map[string]any{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755"}},
			{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
			{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
		},
		"linux": map[string]any{"namespaces": namespaces, "cgroupsPath": "/monitor-test/" + id},
	}
}

// testRootFS is made by the tests that need it.
var testRootFS string
