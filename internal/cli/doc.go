// Package cli is the client for people: the commands of cri-engine that talk
// to a container runtime, and doctor, which looks at the machine.
//
// # The life of a command
//
// [Commands] makes the commands for main to add to its root. A command's
// function runs inside a call: the wrapper has ended its context on Ctrl-C,
// connected to the socket that --endpoint names, and stubbed the CRI services on it.
// What the function returns, one error or several joined ones, the wrapper
// writes to stderr, a line each, and turns into an [ExitError] whose code main ends with.
//
// Errors of the runtime lose gRPC's wrapping where they come in (an interceptor of the
// connection), so the rest of the package sees a code and a message.
//
// # Objects
//
// Arguments name pods, containers and images by id, by a prefix of it that is
// only one's, or by a name that is only one's; resolve.go turns them into ids
// against a list made once per command. A command with several arguments does all it can
// and tells at the end what failed.
//
// Only the Container Runtime Interface is spoken, so that any runtime will do. One
// thing goes beyond it: the progress of pulls, from the engine's own service
// (api/engine/v1) where there is one.
//
// Everything that comes from a runtime or an image is foreign: text that is shown
// in tables and messages loses its control characters, lists and messages are bounded.
package cli
