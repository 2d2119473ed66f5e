package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// maxFile bounds one configuration file.
const maxFile = 1 << 20

// Loaded is a configuration and where its values came from.
type Loaded struct {
	Config
	// Origins has "file:line" or a flag for every key that is not at its
	// default, such as "runtime.default_handler".
	Origins map[string]string
	// Files that were read, in order.
	Files []string
}

// Load reads the configuration file and the drop-ins beside it. An empty path
// means [DefaultPath], which need not exist; a path that was named must. The
// result is not validated yet: flags may come over it.
func Load(path string) (*Loaded, error) {
	l := &Loaded{Config: Default(), Origins: map[string]string{}}
	optional := path == ""
	if optional {
		path = DefaultPath
	}
	err := l.read(path)
	if err != nil && !(optional && errors.Is(err, fs.ErrNotExist)) {
		return nil, err
	}
	dropIns, err := dropInsOf(path)
	if err != nil {
		return nil, err
	}
	for _, file := range dropIns {
		if err := l.read(file); err != nil {
			return nil, err
		}
	}
	l.settle()
	return l, nil
}

// LoadFile reads one file over the defaults, without drop-ins.
func LoadFile(path string) (*Loaded, error) {
	l := &Loaded{Config: Default(), Origins: map[string]string{}}
	if err := l.read(path); err != nil {
		return nil, err
	}
	l.settle()
	return l, nil
}

// Flags are the command line's, "" where not given.
type Flags struct {
	Root, State, Listen, LogLevel, LogFormat string
}

// Override lays the command line over the configuration. A state directory
// that was given takes the sockets along, CRI's unless that was given too: two
// engines with the same file then don't meet.
func (l *Loaded) Override(f Flags) {
	if f.State != "" && f.Listen == "" {
		f.Listen = filepath.Join(f.State, socketName)
	}
	if f.State != "" {
		l.NRI.Socket = filepath.Join(f.State, nriSocketName)
	}
	for _, o := range []struct {
		value, key, flag string
		field            *string
	}{
		{f.Root, "root", "--root", &l.Root},
		{f.State, "state", "--state", &l.State},
		{f.Listen, "listen", "--listen", &l.Listen},
		{f.LogLevel, "log.level", "--log-level", &l.Log.Level},
		{f.LogFormat, "log.format", "--log-format", &l.Log.Format},
	} {
		if o.value != "" {
			*o.field, l.Origins[o.key] = o.value, o.flag
		}
	}
}

// dropInsOf returns *.toml in conf.d beside the file, by name.
func dropInsOf(path string) ([]string, error) {
	dir := filepath.Join(filepath.Dir(path), "conf.d")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration drop-ins: %w", err)
	}
	var files []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".toml") && !strings.HasPrefix(e.Name(), ".") {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(files)
	return files, nil
}

// read lays one file over the configuration.
func (l *Loaded) read(path string) error {
	data, err := readBounded(path)
	if err == nil {
		err = l.decode(path, data)
	}
	if err != nil {
		return fmt.Errorf("configuration %w", err)
	}
	l.Files = append(l.Files, path)
	return nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s: larger than %d bytes", path, maxFile)
	}
	return data, err
}

// decode lays the text of one file over the configuration; nothing of it when
// it returns an error.
func (l *Loaded) decode(path string, data []byte) error {
	var doc document
	md, err := toml.Decode(string(data), &doc)
	if err != nil {
		return located(path, err)
	}
	var unknown []error
	for _, key := range md.Keys() {
		if !known(reflect.TypeFor[Config](), key) {
			unknown = append(unknown, fmt.Errorf("%s: unknown key %s", doc.where(&md, path, key), key))
		}
	}
	if len(unknown) > 0 {
		return errors.Join(unknown...)
	}

	next := l.Config
	// The decoder would put a new handler in place of one that an earlier file
	// began; what this file says of handlers is merged below.
	next.Runtime.Handlers = nil
	if _, err := toml.Decode(string(data), &next); err != nil {
		return located(path, err)
	}
	next.Runtime.Handlers = mergeHandlers(l.Runtime.Handlers, next.Runtime.Handlers, &md)
	l.Config = next
	for _, key := range md.Keys() {
		if t := md.Type(key...); t != "Hash" {
			l.Origins[key.String()] = doc.where(&md, path, key)
		}
	}
	return nil
}

// mergeHandlers lays the keys that a file defines over the handlers before it.
func mergeHandlers(before, file map[string]Handler, md *toml.MetaData) map[string]Handler {
	merged := map[string]Handler{}
	for name, h := range before {
		merged[name] = h
	}
	for name, h := range file {
		base := merged[name]
		from, to := reflect.ValueOf(h), reflect.ValueOf(&base).Elem()
		for i := range from.NumField() {
			if md.IsDefined("runtime", "handlers", name, keyOf(from.Type().Field(i))) {
				to.Field(i).Set(from.Field(i))
			}
		}
		merged[name] = base
	}
	return merged
}

// settle brings values into their one form, once all files are read.
func (l *Loaded) settle() {
	caps := make([]string, 0, len(l.Runtime.DefaultCapabilities))
	for _, c := range l.Runtime.DefaultCapabilities {
		c = strings.ToUpper(c)
		if !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		caps = append(caps, c)
	}
	l.Runtime.DefaultCapabilities = caps
	if l.Origins["state"] != "" && l.Origins["listen"] == "" {
		l.Listen = filepath.Join(l.State, socketName)
	}
	if l.State != Default().State && l.Origins["nri.socket"] == "" {
		l.NRI.Socket = filepath.Join(l.State, nriSocketName)
	}
}

// known tells whether the key, or table, exists in the type, spelled exactly
// so (the decoder itself does not mind upper and lower case).
func known(t reflect.Type, key toml.Key) bool {
	for i, part := range key {
		switch t.Kind() {
		case reflect.Map:
			t = t.Elem()
		case reflect.Struct:
			f, ok := fieldOf(t, part)
			if !ok {
				return false
			}
			t = f.Type
		default:
			// A table where a value belongs: the decoder says so with the key above it.
			return i > 0
		}
	}
	return true
}

func fieldOf(t reflect.Type, key string) (reflect.StructField, bool) {
	for f := range fields(t) {
		if keyOf(f) == key {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

// fields are those of a struct type, in order.
func fields(t reflect.Type) func(func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range t.NumField() {
			if !yield(t.Field(i)) {
				return
			}
		}
	}
}

// keyOf is a field's name in the file.
func keyOf(f reflect.StructField) string { return f.Tag.Get("toml") }

// document is a file whose values are looked at later.
type document map[string]toml.Primitive

// where returns "file:line" of a key, or the file alone. The decoder knows
// each key's line, but tells it only in an error of the value's own
// unmarshaler; so the key is decoded into a value that refuses everything.
func (d document) where(md *toml.MetaData, path string, key toml.Key) string {
	table := d
	for i, part := range key {
		value, ok := table[part]
		if !ok {
			break
		}
		if i == len(key)-1 {
			var refused toml.ParseError
			if err := md.PrimitiveDecode(value, refuse{}); errors.As(err, &refused) && refused.Position.Line > 0 {
				return fmt.Sprintf("%s:%d", path, refused.Position.Line)
			}
			break
		}
		table = document{}
		if err := md.PrimitiveDecode(value, &table); err != nil {
			break
		}
	}
	return path
}

type refuse struct{}

// UnmarshalTOML refuses every value.
func (refuse) UnmarshalTOML(any) error { return errors.New("refused") }

// mismatch is how the decoder says that a value has the wrong type.
var mismatch = regexp.MustCompile(`^toml: (?:line (\d+) )?\(last key "(.*?)"\): (.*)$`)

// located puts the file, the line and the key at the start of a decoder's error.
func located(path string, err error) error {
	var parse toml.ParseError
	if errors.As(err, &parse) {
		key := ""
		if parse.LastKey != "" {
			key = parse.LastKey + ": "
		}
		return fmt.Errorf("%s:%d: %s%s", path, parse.Position.Line, key, parse.Message)
	}
	if m := mismatch.FindStringSubmatch(err.Error()); m != nil {
		return fmt.Errorf("%s:%s: %s: %s", path, m[1], m[2], m[3])
	}
	return fmt.Errorf("%s: %s", path, strings.TrimPrefix(err.Error(), "toml: "))
}
