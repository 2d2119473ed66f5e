package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// defaultLogDir holds the log directories of the pods that run makes.
const defaultLogDir = "/var/log/cri-engine/pods"

// annotationLogs is an annotation of the pods that run makes: their log directory, which is
// removed with them. It is believed only as far as [logsOf]
// says: a kubelet hands on annotations that anybody wrote.
const annotationLogs = "cri-engine.io/run-log-directory"

// logDirName is the name of a pod's log directory, as a kubelet would name it.
func logDirName(meta *runtimeapi.PodSandboxMetadata) string {
	return meta.GetNamespace() + "_" + meta.GetName() + "_" + meta.GetUid()
}

// makeLogs makes the log directory of a pod of run.
func makeLogs(pod *runtimeapi.PodSandboxConfig) error {
	dir := pod.GetLogDirectory()
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	return os.Mkdir(dir, 0o755)
}

// annotated is what has a pod's metadata and annotations.
type annotated interface {
	GetMetadata() *runtimeapi.PodSandboxMetadata
	GetAnnotations() map[string]string
}

// logsOf returns the log directory of a pod that run made, "" for other pods and for
// what can't be one: it has the pod's own name and UID.
func logsOf(pod annotated) string {
	dir := pod.GetAnnotations()[annotationLogs]
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || filepath.Base(dir) != logDirName(pod.GetMetadata()) {
		return ""
	}
	return dir
}

// removeLogs removes the log directory of a pod that run made: the files of
// logs, then the directory if it has nothing else. It does nothing for other pods.
func removeLogs(pod annotated) error {
	dir := logsOf(pod)
	if dir == "" {
		return nil
	}
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove logs: %w", err)
	}
	defer root.Close()
	files, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return fmt.Errorf("remove logs: %w", err)
	}
	for _, f := range files {
		// Rotated ones are NAME.log.TIME and NAME.log.TIME.gz.
		if f.Type().IsRegular() && strings.Contains(f.Name(), ".log") {
			if err := root.Remove(f.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove logs: %w", err)
			}
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove logs: %w", err)
	}
	return nil
}
