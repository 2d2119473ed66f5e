package conffiles

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Options bound what is read.
type Options struct {
	// Dirs in order; one that does not exist has no files.
	Dirs []string
	// Extensions of the files that are meant, with the dot. Hidden files and all others are passed over.
	Extensions []string
	// MaxBytes bounds a file, MaxFiles the files of all directories, MaxTotal their bytes.
	MaxBytes, MaxTotal int64
	MaxFiles           int
}

// File is what one file of the directories has.
type File[T any] struct {
	Path string
	// Dir is the index of its directory in Options.Dirs.
	Dir   int
	Value T
	// Err is why the file cannot be used: Value is then what the file had before
	// that, and Stale says that there was something.
	Err   error
	Stale bool
}

// Dirs has the files of directories, parsed, and reads again those that changed.
// There is no watch: a look costs a stat(2) for each file, so it is taken when the
// files are needed, and finds what is there at that moment.
type Dirs[T any] struct {
	opts  Options
	parse func(path string, data []byte) (T, error)

	mu    sync.Mutex // Protects known. Held while files are read: for those who need these files only.
	known map[string]entry[T]
}

type entry[T any] struct {
	version version
	file    File[T]
	size    int64
}

// version changes when a file does.
type version struct {
	size             int64
	inode            uint64
	modified, change time.Time
}

func versionOf(info fs.FileInfo) version {
	v := version{size: info.Size(), modified: info.ModTime()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		v.inode, v.change = st.Ino, time.Unix(st.Ctim.Unix())
	}
	return v
}

// New reads nothing yet. parse must not keep data.
func New[T any](opts Options, parse func(path string, data []byte) (T, error)) *Dirs[T] {
	return &Dirs[T]{opts: opts, parse: parse, known: map[string]entry[T]{}}
}

// Read returns the files of all directories, in the order of the directories and
// then of the names. The error is about directories and bounds; files that can
// be read are returned beside it.
func (d *Dirs[T]) Read() ([]File[T], error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var files []File[T]
	var errs []error
	var total int64
	next := make(map[string]entry[T], len(d.known))
	for i, dir := range d.opts.Dirs {
		names, err := d.names(dir)
		if err != nil {
			errs = append(errs, err)
		}
		for _, name := range names {
			path := filepath.Join(dir, name)
			if len(files) == d.opts.MaxFiles {
				errs = append(errs, fmt.Errorf("%s and what follows is not read: there are more than %d files", path, d.opts.MaxFiles))
				break
			}
			e, ok := d.entry(path, i)
			if !ok {
				continue
			}
			if total += e.size; total > d.opts.MaxTotal {
				errs = append(errs, fmt.Errorf("%s and what follows is not read: the files have more than %d bytes", path, d.opts.MaxTotal))
				total -= e.size
				break
			}
			next[path] = e
			files = append(files, e.file)
		}
	}
	d.known = next
	return files, errors.Join(errs...)
}

// names are the files of a directory that are meant, sorted.
func (d *Dirs[T]) names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, entry := range entries {
		name := entry.Name()
		if !entry.IsDir() && name[0] != '.' && slices.Contains(d.opts.Extensions, filepath.Ext(name)) {
			names = append(names, name)
		}
	}
	return names, err
}

// entry is a file as it is now; false when it has gone since it was listed.
func (d *Dirs[T]) entry(path string, dir int) (entry[T], bool) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		// A link that leads nowhere is worth a word, a file that has gone is not.
		if _, lerr := os.Lstat(path); lerr != nil {
			return entry[T]{}, false
		}
	}
	before, have := d.known[path]
	if err == nil && have && before.version == versionOf(info) {
		return before, true
	}
	e := entry[T]{file: File[T]{Path: path, Dir: dir}}
	var data []byte
	data, e.version, err = read(path, d.opts.MaxBytes)
	e.size = int64(len(data))
	if err == nil {
		e.file.Value, err = d.parse(path, data)
	}
	if err != nil {
		e.file.Err = named(path, err)
		if have && (before.file.Err == nil || before.file.Stale) {
			e.file.Value, e.file.Stale, e.size = before.file.Value, true, before.size
		}
	}
	return e, true
}

// named puts the file's path before an error that does not begin with it.
func named(path string, err error) error {
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return err
	}
	if text := err.Error(); len(text) >= len(path) && text[:len(path)] == path {
		return err
	}
	return fmt.Errorf("%s: %w", path, err)
}
