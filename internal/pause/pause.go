package pause

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// Text is what the program prints when it is run with an argument.
const Text = "cri-engine pause\n"

// machines are the architectures that there is a program for, by GOARCH.
var machines = map[string]struct {
	machine elf.Machine
	code    []byte
}{
	"amd64": {elf.EM_X86_64, amd64},
	"arm64": {elf.EM_AARCH64, arm64},
}

// Binary returns the program for an architecture (a GOARCH) as an ELF
// executable. The error wraps errors.ErrUnsupported where there is none.
func Binary(goarch string) ([]byte, error) {
	m, ok := machines[goarch]
	if !ok {
		return nil, fmt.Errorf("pause program for %s: %w", goarch, errors.ErrUnsupported)
	}
	return link(m.machine, append(bytes.Clone(m.code), Text...)), nil
}

const (
	// base is where the file is mapped, headers and all.
	base = 0x400000
	// align suits the largest page of both architectures, 64 KiB on some arm64 kernels.
	align = 0x10000
)

// link makes a static executable of position-independent code that starts at
// its first byte and writes to nothing but its stack.
func link(machine elf.Machine, code []byte) []byte {
	const headers = 64 + 2*56 // one file header, two program headers
	size := uint64(headers + len(code))
	file := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{
			0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT),
		},
		Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Entry: base + headers, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2,
	}
	load := elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X),
		Vaddr: base, Paddr: base, Filesz: size, Memsz: size, Align: align,
	}
	// Without this header the kernel makes the stack, on some architectures every readable page, executable.
	stack := elf.Prog64{Type: uint32(elf.PT_GNU_STACK), Flags: uint32(elf.PF_R | elf.PF_W), Align: 16}

	var b bytes.Buffer
	for _, part := range []any{file, load, stack, code} {
		// Writing fixed-size values to a bytes.Buffer cannot fail.
		_ = binary.Write(&b, binary.LittleEndian, part)
	}
	return b.Bytes()
}

// mountPoints are what an OCI runtime mounts on in the root filesystem. It is
// read-only, so they must be there.
var mountPoints = []string{"dev", "proc", "sys"}

// Install makes dir/pause, a root filesystem with this machine's program at
// /pause and nothing else but empty mount points, and returns its path. It is
// the same for every pod and for every start of the engine: calling it again
// is harmless, and a program that runs keeps its file. Only the owner of dir
// may call it, once at a time.
func Install(dir string) (rootfs string, err error) {
	program, err := Binary(runtime.GOARCH)
	if err != nil {
		return "", err
	}
	rootfs = filepath.Join(dir, "pause")
	for _, d := range append([]string{"."}, mountPoints...) {
		d = filepath.Join(rootfs, d)
		if err := os.MkdirAll(d, 0o755); err != nil {
			return "", fmt.Errorf("install pause program: %w", err)
		}
		// Not the caller's umask: the program runs as a user of its own.
		if err := os.Chmod(d, 0o755); err != nil {
			return "", fmt.Errorf("install pause program: %w", err)
		}
	}
	path := filepath.Join(rootfs, "pause")
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, program) {
		if st, err := os.Stat(path); err == nil && st.Mode().Perm() == 0o755 {
			return rootfs, nil
		}
	}
	if err := replace(path, program); err != nil {
		return "", fmt.Errorf("install pause program: %w", err)
	}
	return rootfs, nil
}

// replace writes a file under another name first: one that runs cannot be
// written to (ETXTBSY), and half a program must never be found. The other
// name is outside the root filesystem, beside it, and always the same, so
// that a crash leaves nothing that the next call does not use up.
func replace(path string, data []byte) error {
	next := filepath.Dir(path) + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	err := os.WriteFile(next, data, 0o755)
	if err == nil {
		err = os.Chmod(next, 0o755)
	}
	if err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(next))
	}
	return nil
}
