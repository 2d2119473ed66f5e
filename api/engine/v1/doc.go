// Package enginev1 is the engine's own gRPC service, beside CRI on the same socket.
//
// engine.pb.go and engine_grpc.pb.go are generated from engine.proto by protoc
// (Debian's protobuf-compiler) with the plugins that go.mod pins as tools.
package enginev1

//go:generate sh generate.sh
