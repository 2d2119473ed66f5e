package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"k8s.io/klog/v2"

	"github.com/cri-engine/cri-engine/internal/cgroup"
	"github.com/cri-engine/cri-engine/internal/cni"
	"github.com/cri-engine/cri-engine/internal/labels"
	"github.com/cri-engine/cri-engine/internal/monitor"
)

// recordVersion is written into every record. A record of a later version is
// set aside, never guessed at.
const recordVersion = 1

// maxRecordBytes bounds what is read back: a request is at most 16 MiB, and
// base64 makes it a third longer.
const maxRecordBytes = 32 << 20

// phase is how far a pod or container has come. Recovery decides by it alone.
type phase string

// A pod goes creating → ready → stopping → stopped → removing; a container
// creating → created → starting → running → exited → removing, and from created
// it may go to exited or removing at once.
const (
	phaseCreating phase = "creating"
	phaseReady    phase = "ready"
	phaseStopping phase = "stopping"
	phaseStopped  phase = "stopped"
	phaseCreated  phase = "created"
	phaseStarting phase = "starting"
	phaseRunning  phase = "running"
	phaseExited   phase = "exited"
	phaseRemoving phase = "removing"
)

// podRecord is all that lasts of a pod, in ROOT/pods/ID.json.
type podRecord struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	Phase   phase  `json:"phase"`
	// BootID of the kernel that its namespaces and processes live in.
	BootID    string    `json:"bootId"`
	CreatedAt time.Time `json:"createdAt"`
	// Config is the PodSandboxConfig in protobuf's binary form: JSON would not hold every string it can.
	Config []byte `json:"config"`
	// RequestedHandler as the request had it, Handler what that meant.
	RequestedHandler string `json:"requestedHandler,omitempty"`
	Handler          string `json:"handler"`
	// Pinned namespaces, "" where the pod uses the host's.
	NetNS string `json:"netns,omitempty"`
	IPCNS string `json:"ipcns,omitempty"`
	UTSNS string `json:"utsns,omitempty"`
	// UserNS owns the others; "" where the pod has none of its own.
	UserNS string `json:"userns,omitempty"`
	// Network is written before CNI ADD, so that a crash in the middle of it is followed by DEL.
	Network *cni.Pod    `json:"network,omitempty"`
	Result  *cni.Result `json:"result,omitempty"`
	// Init is the sandbox process, where the pod needs one. Written before it is created.
	Init *process `json:"init,omitempty"`
	// Labels are SELinux's. Their level is in use as long as the record is there.
	Labels labels.Pair `json:"labels,omitzero"`
	// CgroupParent of its containers. OwnParent: the request named none, so it is ours to remove.
	CgroupParent string `json:"cgroupParent"`
	OwnParent    bool   `json:"ownParent,omitempty"`
	// Overhead and Resources are those of the last resize, LinuxContainerResources; none before it.
	Overhead  []byte `json:"overhead,omitempty"`
	Resources []byte `json:"resources,omitempty"`
}

// pins are the paths of all namespaces that the pod has of its own, the owner of the others last.
func (r *podRecord) pins() []string {
	return slices.DeleteFunc([]string{r.NetNS, r.IPCNS, r.UTSNS, r.UserNS}, func(path string) bool { return path == "" })
}

// process is what is known of a container's or sandbox's first process.
type process struct {
	Runtime   monitor.Runtime `json:"runtime"`
	Pid       int             `json:"pid,omitempty"`
	StartTime uint64          `json:"startTime,omitempty"`
	// Cgroups are its directories, to end what its own end leaves behind.
	Cgroups cgroup.Dirs `json:"cgroups,omitempty"`
}

// containerRecord is all that lasts of a container, in ROOT/containers/ID.json.
type containerRecord struct {
	Version   int       `json:"version"`
	ID        string    `json:"id"`
	PodID     string    `json:"podId"`
	Phase     phase     `json:"phase"`
	BootID    string    `json:"bootId"`
	CreatedAt time.Time `json:"createdAt"`
	// Config is the ContainerConfig, PodConfig the PodSandboxConfig of its request, as in podRecord.
	Config    []byte  `json:"config"`
	PodConfig []byte  `json:"podConfig"`
	ImageID   string  `json:"imageId"`
	Handler   string  `json:"handler"`
	LogPath   string  `json:"logPath,omitempty"`
	Cgroup    string  `json:"cgroup,omitempty"`
	RootFS    string  `json:"rootfs,omitempty"`
	Process   process `json:"process"`
	// Volumes are the images that its mounts name.
	Volumes []imageVolume `json:"volumes,omitempty"`
	// User that the process runs as.
	UID    int64   `json:"uid"`
	GID    int64   `json:"gid"`
	Groups []int64 `json:"groups,omitempty"`
	// Labels are SELinux's, as in podRecord; that of processes is "" where they are not confined.
	Labels labels.Pair `json:"labels,omitzero"`
	// AppArmor is the profile that confines it, "" for none.
	AppArmor string `json:"apparmor,omitempty"`

	// Resources are the limits since the last update, a LinuxContainerResources; none before it.
	Resources []byte `json:"resources,omitempty"`

	StartedAt  time.Time `json:"startedAt,omitzero"`
	FinishedAt time.Time `json:"finishedAt,omitzero"`
	ExitCode   int32     `json:"exitCode"`
	Reason     string    `json:"reason,omitempty"`
	Message    string    `json:"message,omitempty"`
	// StopSignal asks it to end. StopSent: it was sent, and a second stop does not send it again.
	StopSignal int  `json:"stopSignal"`
	StopSent   bool `json:"stopSent,omitempty"`
	// Restored: this was put together from what was left of a damaged record.
	Restored bool `json:"restored,omitempty"`
}

// records are the files that pods and containers last in, one each, replaced by
// atomic rename. A record is in the page cache when save returns, which is
// enough for any death of this process; flush takes those to disk that must
// outlive the machine's.
type records struct {
	pods, containers, damaged string // directories
	dirty                     chan string
}

func openRecords(root string) (*records, error) {
	r := &records{
		pods:       filepath.Join(root, "pods"),
		containers: filepath.Join(root, "containers"),
		damaged:    filepath.Join(root, "damaged"),
		dirty:      make(chan string, 1024),
	}
	for _, dir := range []string{r.pods, r.containers, r.damaged} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("records: %w", err)
		}
	}
	return r, nil
}

func (r *records) savePod(rec *podRecord) error {
	return save(r.pods, rec.ID, rec)
}

func (r *records) saveContainer(rec *containerRecord) error {
	return save(r.containers, rec.ID, rec)
}

func (r *records) deletePod(id string) error { return remove(filepath.Join(r.pods, id+".json")) }
func (r *records) deleteContainer(id string) error {
	return remove(filepath.Join(r.containers, id+".json"))
}

// tmpPrefix marks a record that was being written; what a crash left of it is removed at start.
const tmpPrefix = ".tmp-"

func save(dir, id string, rec any) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("record %s: %w", id, err)
	}
	tmp := filepath.Join(dir, tmpPrefix+id)
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("write record: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, id+".json")); err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// flush takes a container's record to disk soon, off the caller's path.
func (r *records) flush(id string) {
	select {
	case r.dirty <- filepath.Join(r.containers, id+".json"):
	default: // the flusher is behind: its next syncfs takes this one too
	}
}

// flusher writes out what flush named until ctx ends, then once more. All that
// came together costs one syncfs(2).
func (r *records) flusher(ctx context.Context) {
	for {
		select {
		case <-r.dirty:
		case <-ctx.Done():
			if len(r.dirty) > 0 {
				r.sync()
			}
			return
		}
		// A short wait gathers the exits of a pod, or of a node that is drained.
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
		for len(r.dirty) > 0 {
			<-r.dirty
		}
		r.sync()
	}
}

func (r *records) sync() {
	dir, err := os.Open(r.containers)
	if err != nil {
		klog.ErrorS(err, "Records could not be flushed")
		return
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		klog.ErrorS(err, "Records could not be flushed", "dir", r.containers)
	}
}

// loadAll reads every record in dir. A file that can't be read as one is moved
// to the damaged directory, and its id told to damaged, so that what it stood for is not forgotten.
func loadAll[T any](r *records, dir string, check func(*T, string) error, damaged func(id string)) ([]*T, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	var all []*T
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), tmpPrefix) {
			_ = os.Remove(path)
			continue
		}
		id, isJSON := strings.CutSuffix(e.Name(), ".json")
		rec := new(T)
		err := loadOne(path, rec)
		if err == nil {
			err = check(rec, id)
		}
		if err == nil {
			all = append(all, rec)
			continue
		}
		aside := filepath.Join(r.damaged, fmt.Sprintf("%s.%d", e.Name(), time.Now().UnixNano()))
		klog.ErrorS(err, "A record can't be used and is set aside", "file", path, "movedTo", aside)
		if err := os.Rename(path, aside); err != nil {
			klog.ErrorS(err, "Setting a record aside failed", "file", path)
		}
		if isJSON && validID(id) {
			damaged(id)
		}
	}
	return all, nil
}

func loadOne(path string, rec any) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return errors.Join(err, errors.New("not a regular file"))
	}
	data, err := io.ReadAll(io.LimitReader(f, maxRecordBytes+1))
	if err != nil {
		return err
	}
	if len(data) > maxRecordBytes {
		return fmt.Errorf("longer than %d bytes", maxRecordBytes)
	}
	return json.Unmarshal(data, rec)
}

// validID: ids are 64 lower-case hex digits, and so safe as file names.
func validID(id string) bool {
	return len(id) == 64 && strings.Trim(id, "0123456789abcdef") == ""
}

// encode is the one form of a message in records, and what retries are compared by.
func encode(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}
