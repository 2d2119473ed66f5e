package conffiles

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// parsed counts how often a file was parsed; "bad" is no good.
type parsed struct{ count int }

func (p *parsed) parse(_ string, data []byte) (string, error) {
	p.count++
	if strings.HasPrefix(string(data), "bad") {
		return "", errors.New("it is bad")
	}
	return string(data), nil
}

func texts(files []File[string]) string {
	var b strings.Builder
	for _, f := range files {
		fmt.Fprintf(&b, "%s=%s", filepath.Base(f.Path), f.Value)
		if f.Err != nil {
			b.WriteString("!")
		}
		b.WriteString(" ")
	}
	return strings.TrimSpace(b.String())
}

func TestDirs(t *testing.T) {
	setUp := func(t *testing.T, change func(*Options)) (string, *parsed, *Dirs[string]) {
		dir, p := t.TempDir(), &parsed{}
		o := Options{Dirs: []string{dir + "/one", dir + "/two", dir + "/none"}, Extensions: []string{".json", ".yaml"}, MaxBytes: 100, MaxTotal: 1000, MaxFiles: 10}
		if change != nil {
			change(&o)
		}
		return dir, p, New(o, p.parse)
	}
	want := func(t *testing.T, d *Dirs[string], want, wantErr string) {
		t.Helper()
		files, err := d.Read()
		if got := texts(files); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if wantErr == "" && err != nil || wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)) {
			t.Errorf("error %v, want %q", err, wantErr)
		}
	}
	t.Run("files come by directory and name, others are passed over", func(t *testing.T) {
		dir, _, d := setUp(t, nil)
		write(t, dir+"/two/a.json", "1")
		write(t, dir+"/one/b.yaml", "2")
		write(t, dir+"/one/a.json", "3")
		write(t, dir+"/one/.hidden.json", "4")
		write(t, dir+"/one/a.json.tmp", "5")
		write(t, dir+"/one/sub.json/x", "6")
		want(t, d, "a.json=3 b.yaml=2 a.json=1", "")
	})
	t.Run("only what changed is parsed again, and what went is gone", func(t *testing.T) {
		dir, p, d := setUp(t, nil)
		write(t, dir+"/one/a.json", "1")
		write(t, dir+"/one/b.json", "2")
		want(t, d, "a.json=1 b.json=2", "")
		want(t, d, "a.json=1 b.json=2", "")
		if p.count != 2 {
			t.Errorf("two files that did not change were parsed %d times", p.count)
		}
		time.Sleep(10 * time.Millisecond) // the file system's clock ticks by so much
		write(t, dir+"/one/a.json", "3")
		want(t, d, "a.json=3 b.json=2", "")
		if p.count != 3 {
			t.Errorf("after one change %d were parsed", p.count)
		}
		os.Remove(dir + "/one/a.json")
		want(t, d, "b.json=2", "")
	})
	t.Run("a file that became bad keeps what it had, with the error", func(t *testing.T) {
		dir, _, d := setUp(t, nil)
		write(t, dir+"/one/a.json", "good")
		want(t, d, "a.json=good", "")
		for _, bad := range []string{"bad", "bad again"} {
			write(t, dir+"/one/a.json", bad)
			want(t, d, "a.json=good!", "")
		}
		files, _ := d.Read()
		if got := files[0].Err.Error(); got != dir+"/one/a.json: it is bad" || !files[0].Stale {
			t.Errorf("error %q, stale %v", got, files[0].Stale)
		}
	})
	t.Run("a bad file does not hurt others, and names itself", func(t *testing.T) {
		dir, _, d := setUp(t, nil)
		write(t, dir+"/one/a.json", "bad")
		write(t, dir+"/one/b.json", strings.Repeat("x", 101))
		if err := syscall.Mkfifo(dir+"/one/c.json", 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/nowhere", dir+"/one/d.json"); err != nil {
			t.Fatal(err)
		}
		write(t, dir+"/two/e.json", "1")
		want(t, d, "a.json=! b.json=! c.json=! d.json=! e.json=1", "")
		files, _ := d.Read()
		for _, f := range files[:4] {
			if !strings.Contains(f.Err.Error(), f.Path) || f.Stale {
				t.Errorf("%s: error %q, stale %v", f.Path, f.Err, f.Stale)
			}
		}
	})
	t.Run("there are bounds on files and bytes", func(t *testing.T) {
		dir, _, d := setUp(t, func(o *Options) { o.MaxFiles = 2 })
		for _, name := range []string{"a", "b", "c"} {
			write(t, dir+"/one/"+name+".json", strings.Repeat(name, 60))
		}
		a, b := strings.Repeat("a", 60), strings.Repeat("b", 60)
		want(t, d, "a.json="+a+" b.json="+b, dir+"/one/c.json and what follows is not read: there are more than 2 files")
		d.opts.MaxTotal = 100
		want(t, d, "a.json="+a, dir+"/one/b.json and what follows is not read: the files have more than 100 bytes")
	})
	t.Run("a directory that is none is an error", func(t *testing.T) {
		dir, _, d := setUp(t, nil)
		write(t, dir+"/one", "")
		write(t, dir+"/two/a.json", "1")
		want(t, d, "a.json=1", dir+"/one")
	})
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/file", "12345")
	if data, err := Read(dir+"/file", 5); err != nil || string(data) != "12345" {
		t.Errorf("got %q, %v", data, err)
	}
	for _, path := range []string{dir + "/file", dir, dir + "/none", "/dev/zero"} {
		if _, err := Read(path, 4); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: error %v", path, err)
		}
	}
}
