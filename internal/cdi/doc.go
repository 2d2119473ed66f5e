// Package cdi gives containers devices of the Container Device Interface
// (https://github.com/cncf-tags/container-device-interface): a vendor's file in a
// directory of the node says which device nodes, mounts, environment and hooks a
// device like "vendor.com/gpu=0" is made of.
//
// The files are looked at when a container asks for a device and at no other time:
// one that does not costs nothing, and one that does sees what drivers have
// written until then. A file that can't be used takes its own devices away and no
// others. Files, their number and what one container asks for are bounded.
//
// The formats and the edits are those of tags.cncf.io/container-device-interface.
// Its cache is not used: it reads files of any size, and fills in what it finds of
// a device node (type, numbers) in its own memory, where it outlives a driver's reload.
package cdi
