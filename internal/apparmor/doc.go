// Package apparmor has the AppArmor profiles of containers: whether the kernel
// knows any, whether it knows a certain one, and the engine's own default.
//
// The kernel holds profiles in compiled form. Only apparmor_parser makes those,
// so the default profile (profile.go) is loaded through it, when the engine
// starts. Its name ends in a digest of its text: an engine that was upgraded loads its
// own beside the one of containers that still run. It is looked for again before each
// use, because tools that "clean up" unload profiles that have no file in
// /etc/apparmor.d, and loaded again where it is gone.
package apparmor
