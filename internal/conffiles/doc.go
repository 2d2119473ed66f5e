// Package conffiles reads configuration files that others write and change:
// devices of CDI, OCI hooks, a handler's base specification. They are the
// operator's, but a mistake in one must not take the engine's memory or time, so
// every read is of a regular file and bounded, and every error names the file.
//
// A leaf: it imports nothing of the engine's.
package conffiles
