package nri

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/containerd/nri/pkg/adaptation"
	nrilog "github.com/containerd/nri/pkg/log"
	"k8s.io/klog/v2"
)

// maxLogText bounds a line of the library's: plugins' names and errors are in it.
const maxLogText = 2 << 10

// logger leads what the library says into our log.
type logger struct{}

// useLogger sets it once: the library has one for the whole process.
var useLogger = sync.OnceFunc(func() { nrilog.Set(logger{}) })

func (logger) Debugf(_ context.Context, format string, args ...any) {
	if klog.V(4).Enabled() {
		klog.V(4).InfoS("NRI", "message", text(format, args))
	}
}

func (logger) Infof(_ context.Context, format string, args ...any) {
	klog.V(2).InfoS("NRI", "message", text(format, args))
}

func (logger) Warnf(_ context.Context, format string, args ...any) {
	klog.InfoS("NRI warns", "message", text(format, args))
}

func (logger) Errorf(_ context.Context, format string, args ...any) {
	for _, a := range args {
		// Said of every start of a program that was built without WebAssembly.
		if err, ok := a.(error); ok && errors.Is(err, adaptation.ErrWasmDisabled) {
			return
		}
	}
	klog.ErrorS(nil, "NRI", "message", text(format, args))
}

func text(format string, args []any) string {
	s := strings.ToValidUTF8(fmt.Sprintf(format, args...), "\ufffd")
	if len(s) > maxLogText {
		s = s[:maxLogText] + "…"
	}
	return s
}
