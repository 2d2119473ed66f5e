package config

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// Write writes the configuration as TOML that reads back as the same, each
// value with where it came from.
func (l *Loaded) Write(w io.Writer) error {
	var out bytes.Buffer
	err := l.writeTable(&out, "", reflect.ValueOf(l.Config))
	if err != nil {
		return err
	}
	_, err = w.Write(out.Bytes())
	return err
}

// writeTable writes a table's values, then the tables in it.
func (l *Loaded) writeTable(out *bytes.Buffer, table string, v reflect.Value) error {
	var tables []reflect.StructField
	for f := range fields(v.Type()) {
		if f.Type.Kind() == reflect.Struct || f.Type.Kind() == reflect.Map {
			tables = append(tables, f)
			continue
		}
		line, err := toml.Marshal(map[string]any{keyOf(f): v.FieldByIndex(f.Index).Interface()})
		if err != nil {
			return err
		}
		origin := l.Origins[join(table, keyOf(f))]
		if origin == "" {
			origin = "default"
		}
		fmt.Fprintf(out, "%s # %s\n", bytes.TrimSpace(line), origin)
	}
	for _, f := range tables {
		name, value := join(table, keyOf(f)), v.FieldByIndex(f.Index)
		if f.Type.Kind() == reflect.Struct {
			fmt.Fprintf(out, "\n[%s]\n", name)
			if err := l.writeTable(out, name, value); err != nil {
				return err
			}
			continue
		}
		if err := l.writeHandlers(out, name, value.Interface().(map[string]Handler)); err != nil {
			return err
		}
	}
	return nil
}

func (l *Loaded) writeHandlers(out *bytes.Buffer, table string, handlers map[string]Handler) error {
	for _, name := range slices.Sorted(maps.Keys(handlers)) {
		key := toml.Key(append(strings.Split(table, "."), name)).String()
		fmt.Fprintf(out, "\n[%s]\n", key)
		if err := l.writeTable(out, key, reflect.ValueOf(handlers[name])); err != nil {
			return err
		}
	}
	return nil
}

func join(table, key string) string {
	if table == "" {
		return key
	}
	return table + "." + key
}
