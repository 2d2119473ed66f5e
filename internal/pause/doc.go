// Package pause is the init of a pod whose containers share a PID namespace:
// a static program of some 300 bytes that reaps orphans and ends on SIGTERM.
//
// It is written down here as machine code, so that neither a C compiler nor
// an image is needed to have it: [Binary] makes an ELF file of it, [Install]
// an otherwise empty root filesystem that the OCI runtime can start it from.
// With an argument ("/pause -v") it prints a line and ends at once, which is
// what the trial of an OCI runtime runs.
package pause
