// Package server answers the Container Runtime Interface on a unix socket.
//
// It is the edge: requests are checked here, before anything is done, handed to
// the engine, the image store and the networks (deps.go says what is asked of
// them), and what those return is put into CRI's messages. Errors become gRPC
// codes in errors.go and nowhere else. There is a file for each RPC, or for two that are one
// (a list and its filter).
//
// # A server's life
//
// [New] makes it from parts that are ready: the engine has read its records and
// knows what is true, so nothing is ever answered that a later look would
// change. [Server.Serve] takes the socket and answers. [Server.Stop] ends calls:
// those that watch at once, others after they had time to finish, and what is left by
// cancelling them, which makes them undo what they did. Pods run on.
//
// # A call's way
//
// Every request passes the same interceptors (interceptors.go): a panic in a handler
// becomes an error of this one call; the call is logged with its duration and
// object, never with its content; strings that no request has a use for (NUL
// bytes, megabytes) are refused; errors are translated.
package server
