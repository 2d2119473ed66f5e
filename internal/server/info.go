package server

import (
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// infoJSON makes a verbose status' info: every value as JSON.
func infoJSON(values map[string]any) (map[string]string, error) {
	info := make(map[string]string, len(values))
	for key, value := range values {
		text, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("verbose info %s: %w", key, err)
		}
		info[key] = string(text)
	}
	return info, nil
}

// protoJSON is a message inside of an info. Environments are in it, so it is for
// those who ask on the socket, never for a log.
func protoJSON(m proto.Message) (json.RawMessage, error) {
	return protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
}

// nanos is a time as CRI has it: nanoseconds since 1970, and 0 for never.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
