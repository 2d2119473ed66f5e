// Package hooks runs an operator's programs at the stages of a container's life, as
// oci-hooks(5) 1.0.0 describes it: files in directories say which program, at which
// stages, and for which containers. The programs are run by the OCI runtime; this
// package only writes them into the specification.
//
// What to do with a bad file is as in CRI-O: at the engine's start it is an error,
// since a hook that silently does not run may be one that confines. Later, when a
// container is made, a file that became bad is logged and what it said before holds;
// a bad one that is new is logged and has no hook.
package hooks
