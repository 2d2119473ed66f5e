package oci

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// defaultPath is the PATH of a container whose image has none.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment holds, each overriding those before: our defaults, the handler's, the image's, the request's.
func (b *builder) environment() error {
	var env environment
	env.set(defaultPath)
	if b.Hostname != "" {
		env.set("HOSTNAME=" + b.Hostname)
	}
	if b.Config.GetTty() {
		env.set(defaultTerm)
	}
	for _, e := range b.base.Process.Env {
		env.set(e)
	}
	for _, e := range b.Image.Env {
		// An entry without "=" is no variable; images have had them, and they start elsewhere.
		if strings.IndexByte(e, '=') > 0 && !strings.ContainsRune(e, 0) {
			env.set(e)
		}
	}
	for i, e := range b.Config.GetEnvs() {
		field := fmt.Sprintf("config.envs[%d]", i)
		key, value := e.GetKey(), string(e.GetValue())
		// Values may be secret: errors name the key only.
		switch {
		case key == "":
			return invalid(field+".key", "", "empty")
		case strings.ContainsAny(key, "=\x00"):
			return invalid(field+".key", key, `contains "=" or a NUL byte`)
		case strings.ContainsRune(value, 0):
			return invalid(field+".value", "", "the value of %s contains a NUL byte", key)
		case !utf8.ValidString(key) || !utf8.ValidString(value):
			// The spec is JSON, which the OCI runtimes read with every such byte replaced.
			return unsupported(field+".value", "the value of %q is not UTF-8, which an OCI runtime would not pass on unchanged", key)
		}
		env.set(key + "=" + value)
	}
	b.spec.Process.Env = env.list
	return nil
}

const defaultTerm = "TERM=xterm"

// environment is a list of "KEY=value" in which each key is once, where it was first set.
type environment struct {
	list []string
	at   map[string]int
}

func (e *environment) set(entry string) {
	key, _, _ := strings.Cut(entry, "=")
	if i, ok := e.at[key]; ok {
		e.list[i] = entry
		return
	}
	if e.at == nil {
		e.at = map[string]int{}
	}
	e.at[key] = len(e.list)
	e.list = append(e.list, entry)
}
