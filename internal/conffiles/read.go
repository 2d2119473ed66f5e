package conffiles

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Read returns the content of a regular file (through symbolic links) of at most
// maxBytes. It does not hang on a FIFO and does not follow a file that grows.
func Read(path string, maxBytes int64) ([]byte, error) {
	data, _, err := read(path, maxBytes)
	return data, err
}

// read tells too which version of the file was read, by what was opened.
func read(path string, maxBytes int64) ([]byte, version, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, version{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, version{}, err
	}
	v := versionOf(info)
	if !info.Mode().IsRegular() {
		return nil, v, fmt.Errorf("%s is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err != nil {
		return nil, v, err
	}
	if int64(len(data)) > maxBytes {
		return nil, v, fmt.Errorf("%s is larger than %d bytes", path, maxBytes)
	}
	return data, v, nil
}
