// Package logging sets up what the daemon logs with: k8s.io/klog/v2, as text or
// JSON, one record a line, on standard error. The libraries that log with logrus
// are led there too.
package logging

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"

	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"
)

// levels of the configuration as klog's verbosity. V(0) is for what an operator
// should know of, V(2) for what changes, V(4) and up for looking inside. With
// "error", only errors are left.
var levels = map[string]int{"error": -1, "warn": 0, "info": 2, "debug": 4, "trace": 8}

// Setup makes klog write records of the level ("error" … "trace") in the format
// ("text" or "json") to standard error. Call it once, before anything logs.
func Setup(level, format string) error { return setup(os.Stderr, level, format) }

func setup(to io.Writer, level, format string) error {
	v, ok := levels[level]
	if !ok {
		return fmt.Errorf("log level %q is unknown", level)
	}
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	set := map[string]string{"v": strconv.Itoa(max(v, 0))}
	switch format {
	case "json":
		klog.SetSlogLogger(slog.New(slog.NewJSONHandler(to, &slog.HandlerOptions{Level: slogLevel(v), ReplaceAttr: plain})))
	case "text":
		// One writer per severity: each record goes to those at and below its own,
		// so the lowest that is wanted sees every record once.
		set["logtostderr"], set["alsologtostderr"], set["stderrthreshold"] = "false", "false", "FATAL"
		klog.SetOutput(io.Discard)
		lowest := "INFO"
		if v < 0 {
			lowest = "ERROR"
		}
		klog.SetOutputBySeverity(lowest, to)
	default:
		return fmt.Errorf("log format %q is unknown", format)
	}
	for name, value := range set {
		if err := flags.Set(name, value); err != nil {
			return fmt.Errorf("set up logging: %w", err)
		}
	}
	logrus.SetOutput(io.Discard)
	logrus.SetLevel(logrusLevel(v))
	logrus.StandardLogger().ReplaceHooks(logrus.LevelHooks{})
	logrus.AddHook(toKlog{})
	return nil
}

// slogLevel: klog hands V(n) to slog as level -n.
func slogLevel(v int) slog.Level {
	if v < 0 {
		return slog.LevelError
	}
	return slog.Level(-v)
}

// plain writes levels as the configuration names them, where slog has "DEBUG-4"
// and "INFO-2", and durations as people do.
func plain(groups []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		return slog.String(a.Key, a.Value.Duration().String())
	}
	if len(groups) > 0 || a.Key != slog.LevelKey {
		return a
	}
	level, _ := a.Value.Any().(slog.Level)
	name := "trace"
	switch {
	case level >= slog.LevelError:
		name = "error"
	case level >= -2:
		name = "info"
	case level >= -4:
		name = "debug"
	}
	return slog.String(slog.LevelKey, name)
}

// logrusLevel: what libraries call info is about their insides.
func logrusLevel(v int) logrus.Level {
	switch {
	case v < 0:
		return logrus.ErrorLevel
	case v < 4:
		return logrus.WarnLevel
	case v < 8:
		return logrus.InfoLevel
	}
	return logrus.DebugLevel
}

// toKlog leads logrus' records to klog.
type toKlog struct{}

// Levels are all.
func (toKlog) Levels() []logrus.Level { return logrus.AllLevels }

// Fire writes one record.
func (toKlog) Fire(e *logrus.Entry) error {
	var fields []any
	for k, v := range e.Data {
		fields = append(fields, k, v)
	}
	switch {
	case e.Level <= logrus.ErrorLevel:
		klog.ErrorS(nil, e.Message, fields...)
	case e.Level == logrus.WarnLevel:
		klog.InfoS(e.Message, fields...)
	case e.Level == logrus.InfoLevel:
		klog.V(4).InfoS(e.Message, fields...)
	default:
		klog.V(8).InfoS(e.Message, fields...)
	}
	return nil
}
