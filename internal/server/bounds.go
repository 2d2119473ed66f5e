package server

import (
	"bytes"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/cri-engine/cri-engine/internal/oci"
)

// What any request may have at most, whatever the field. Each is well above
// what Kubernetes itself lets through.
const (
	maxText    = 256 << 10 // bytes of one string; the kernel takes 128 KiB as an argument
	maxEntries = 16 << 10  // of one list or map
)

// checkBounds walks the whole message and refuses what no field has a use for: NUL
// bytes, which end a string early for the kernel but not for a check, and
// entries without bound.
func checkBounds(m proto.Message) error {
	return boundsOf("", m.ProtoReflect())
}

func boundsOf(prefix string, m protoreflect.Message) error {
	var err error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		field := prefix + string(fd.Name())
		switch {
		case fd.IsMap():
			err = mapBounds(field, fd, v.Map())
		case fd.IsList():
			err = listBounds(field, fd, v.List())
		default:
			err = valueBounds(field, fd, v)
		}
		return err == nil
	})
	return err
}

func listBounds(field string, fd protoreflect.FieldDescriptor, list protoreflect.List) error {
	if list.Len() > maxEntries {
		return tooMany(field, list.Len())
	}
	for i := range list.Len() {
		if err := valueBounds(fmt.Sprintf("%s[%d]", field, i), fd, list.Get(i)); err != nil {
			return err
		}
	}
	return nil
}

func mapBounds(field string, fd protoreflect.FieldDescriptor, m protoreflect.Map) error {
	if m.Len() > maxEntries {
		return tooMany(field, m.Len())
	}
	var err error
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		if err = valueBounds(field, fd.MapKey(), k.Value()); err == nil {
			err = valueBounds(field+"["+shorten(k.String(), 64)+"]", fd.MapValue(), v)
		}
		return err == nil
	})
	return err
}

// valueBounds never puts a value into its error: it may be a secret.
func valueBounds(field string, fd protoreflect.FieldDescriptor, v protoreflect.Value) error {
	var size int
	var nul bool
	switch fd.Kind() {
	case protoreflect.MessageKind:
		return boundsOf(field+".", v.Message())
	case protoreflect.StringKind:
		size, nul = len(v.String()), strings.IndexByte(v.String(), 0) >= 0
	case protoreflect.BytesKind:
		size, nul = len(v.Bytes()), bytes.IndexByte(v.Bytes(), 0) >= 0
	}
	switch {
	case size > maxText:
		return invalid(field, "", "has %d bytes, more than %d", size, maxText)
	case nul:
		return invalid(field, "", "contains a NUL byte")
	}
	return nil
}

func tooMany(field string, n int) error {
	return invalid(field, "", "has %d entries, more than %d", n, maxEntries)
}

// invalid is the error of a request's field.
func invalid(field, value, format string, args ...any) error {
	return &oci.InvalidError{Field: field, Value: value, Reason: fmt.Sprintf(format, args...)}
}
