package storage

import (
	"io"
	"sync"

	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"
)

// redirectLogs sends what the libraries log to our log. They write much, and
// for people who run a command: below a warning it is for debugging.
var redirectLogs = sync.OnceFunc(func() {
	logrus.SetOutput(io.Discard)
	logrus.AddHook(logHook{})
})

type logHook struct{}

func (logHook) Levels() []logrus.Level { return logrus.AllLevels }

func (logHook) Fire(e *logrus.Entry) error {
	text := redact(e.Message, nil)
	switch {
	case e.Level <= logrus.ErrorLevel:
		klog.ErrorS(nil, text, "from", "containers/storage")
	case e.Level == logrus.WarnLevel:
		klog.InfoS(text, "from", "containers/storage")
	default:
		klog.V(2).InfoS(text, "from", "containers/storage")
	}
	return nil
}
