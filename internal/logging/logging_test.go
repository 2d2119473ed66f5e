package logging

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"
)

// write logs one record of each kind.
func write() {
	klog.ErrorS(errors.New("no space"), "an error", "pod", "p1")
	klog.InfoS("a warning")
	klog.V(2).InfoS("a change", "took", 3*time.Millisecond)
	klog.V(4).InfoS("a look")
	klog.V(8).InfoS("a trace")
	logrus.Warn("a library's warning")
	logrus.Info("a library's remark")
	klog.Flush()
}

var records = []string{"an error", "a warning", "a change", "a look", "a trace", "a library's warning", "a library's remark"}

func TestSetup(t *testing.T) {
	cases := []struct {
		level string
		want  []string
	}{
		{"error", records[:1]},
		{"warn", []string{"an error", "a warning", "a library's warning"}},
		{"info", []string{"an error", "a warning", "a change", "a library's warning"}},
		{"debug", []string{"an error", "a warning", "a change", "a look", "a library's warning", "a library's remark"}},
		{"trace", records},
	}
	// JSON comes last: klog does not go back to text.
	for _, format := range []string{"text", "json"} {
		for _, c := range cases {
			t.Run(format+" "+c.level, func(t *testing.T) {
				var out bytes.Buffer
				if err := setup(&out, c.level, format); err != nil {
					t.Fatal(err)
				}
				write()
				lines := strings.Split(strings.TrimSpace(out.String()), "\n")
				if len(lines) != len(c.want) {
					t.Fatalf("got %d records, want %d:\n%s", len(lines), len(c.want), out.String())
				}
				for _, want := range c.want {
					if n := strings.Count(out.String(), `"`+want+`"`); n != 1 {
						t.Errorf("%q is there %d times:\n%s", want, n, out.String())
					}
				}
				if format == "json" {
					checkJSON(t, lines)
				}
			})
		}
	}
}

func checkJSON(t *testing.T, lines []string) {
	t.Helper()
	wantLevel := map[string]string{
		"an error": "error", "a warning": "info", "a change": "info", "a look": "debug", "a trace": "trace",
		"a library's warning": "info", "a library's remark": "debug",
	}
	for _, line := range lines {
		var r struct{ Level, Msg, Pod, Err, Took string }
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Errorf("%q: %v", line, err)
		}
		if r.Level != wantLevel[r.Msg] {
			t.Errorf("%q has level %q, want %q", r.Msg, r.Level, wantLevel[r.Msg])
		}
		if r.Msg == "a change" && r.Took != "3ms" {
			t.Errorf("%q has not its duration", line)
		}
		if r.Msg == "an error" && (r.Pod != "p1" || r.Err != "no space") {
			t.Errorf("%q has not its fields", line)
		}
	}
}

func TestSetupRefusesWhatItDoesNotKnow(t *testing.T) {
	if setup(nil, "loud", "text") == nil {
		t.Error("an unknown level is taken")
	}
	if setup(nil, "info", "xml") == nil {
		t.Error("an unknown format is taken")
	}
}
