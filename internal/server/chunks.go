package server

import (
	"context"

	"google.golang.org/protobuf/proto"
)

// One message of a streamed list has at most so many items, and no more bytes
// than this unless one item alone has: a client takes 16 MiB, and one that
// reads slowly holds what is under way in memory.
const (
	chunkItems = 256
	chunkBytes = 1 << 20
)

// sendChunks sends the items in their order, each once. An empty list is no
// message at all: the proto wants "lists of at least one item". It ends with the
// call's context, or when the client does not take more.
func sendChunks[T proto.Message](ctx context.Context, items []T, send func([]T) error) error {
	for len(items) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := chunkOf(items)
		if err := send(items[:n:n]); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}

// chunkOf says how many of the first items fit into one message: one at least.
func chunkOf[T proto.Message](items []T) int {
	size := 0
	for i, item := range items[:min(len(items), chunkItems)] {
		if size += proto.Size(item); size > chunkBytes && i > 0 {
			return i
		}
	}
	return min(len(items), chunkItems)
}
