package crilog

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"
)

const (
	// pollInterval is how long a follower sleeps at the end of the file. It is polled
	// rather than watched: a node has few inotify instances, and they are the pods'.
	pollInterval = 50 * time.Millisecond
	// lastWords is how long a follower waits for output after the container's end.
	// Runtimes other than ours report an exit before the log is complete.
	lastWords = 100 * time.Millisecond
	// firstAsk and maxAsk are the shortest and the longest time between two
	// questions whether the container runs. Most that are followed from their start are short.
	firstAsk = pollInterval
	maxAsk   = time.Second
)

// Options say what Copy copies.
type Options struct {
	// Tail is how many lines from the end to begin with; negative for all.
	Tail int
	// Since leaves out lines that are older; zero for none.
	Since time.Time
	// Timestamps writes each line's time before it.
	Timestamps bool
	// Ended makes Copy follow the file until Ended says that the container writes
	// no more and all was read. With nil, Copy returns at the end of the file.
	Ended func(ctx context.Context) (bool, error)
}

// Copy writes the log file at path as the container wrote it: its stdout to
// stdout, its stderr to stderr. It returns how many malformed lines it left out.
//
// While it follows, a file that is renamed and made anew, as at a rotation,
// is read to its end, then the new one from its start; one that was cut off is
// read from the start. A file that is not there yet is waited for.
func Copy(ctx context.Context, path string, o Options, stdout, stderr io.Writer) (malformed int, err error) {
	c := &copier{Options: o, path: path}
	for s, w := range []io.Writer{Stdout: stdout, Stderr: stderr} {
		c.out[s].w = bufio.NewWriterSize(w, bufferSize)
	}
	defer c.close()
	if err := c.open(ctx); err != nil {
		return 0, err
	}
	err = c.copy(ctx)
	return c.malformed, errors.Join(err, c.flush())
}

// copier is one run of Copy, used by one goroutine.
type copier struct {
	Options
	path string
	file *os.File
	read *Reader
	from window // offsets in file

	out       [streams]output
	malformed int

	replaced bool      // path is another file by now; this one has been read once more since
	asked    time.Time // when Ended was asked last
	ask      time.Duration
	ended    time.Time // when Ended first said yes
}

// output is what was written of one stream.
type output struct {
	w      *bufio.Writer
	within bool // the line written last goes on
	skip   bool // … and is left out
}

func (c *copier) copy(ctx context.Context) error {
	for {
		at := c.read.Offset() + c.from.start()
		e, err := c.read.Next()
		switch {
		case err == nil:
			c.ask, c.replaced = min(c.ask, firstAsk), false
			if at >= c.from[e.Stream] {
				err = c.write(e)
			}
		case errors.Is(err, ErrMalformed):
			c.malformed++
			err = nil
		case errors.Is(err, io.EOF):
			var more bool
			if more, err = c.wait(ctx); err == nil && !more {
				return c.rest(true)
			}
		}
		if err != nil {
			return err
		}
	}
}

// rest writes a last line that no newline ends; more says that it may go on.
func (c *copier) rest(more bool) error {
	at := c.read.Offset() + c.from.start()
	if e, ok := c.read.Rest(); ok && at >= c.from[e.Stream] {
		e.More = more
		return c.write(e)
	}
	return nil
}

func (c *copier) write(e Entry) error {
	o := &c.out[e.Stream]
	if !o.within {
		o.skip = e.Time.Before(c.Since)
	}
	begins := !o.within
	o.within = e.More
	if o.skip {
		return nil
	}
	// A bufio.Writer keeps its first error, so that the last call tells it.
	if begins && c.Timestamps {
		_, _ = o.w.WriteString(e.Time.Format(time.RFC3339Nano) + " ")
	}
	_, err := o.w.Write(e.Content)
	if !e.More {
		err = o.w.WriteByte('\n')
	}
	return err
}

func (c *copier) flush() error {
	return errors.Join(c.out[Stdout].w.Flush(), c.out[Stderr].w.Flush())
}

// wait is called at the end of the file. It returns whether there may be more.
func (c *copier) wait(ctx context.Context) (more bool, err error) {
	if err := c.flush(); err != nil {
		return false, err
	}
	if c.Ended == nil {
		return false, nil
	}
	if changed, err := c.rotate(); changed || err != nil {
		return changed, err
	}
	if !c.ended.IsZero() {
		if time.Since(c.ended) > lastWords {
			return false, nil
		}
	} else if time.Since(c.asked) >= c.ask {
		ended, err := c.Ended(ctx)
		if err != nil {
			return false, err
		}
		c.asked, c.ask = time.Now(), min(max(2*c.ask, firstAsk), maxAsk)
		if ended {
			c.ended = time.Now()
			return true, nil
		}
	}
	return true, sleep(ctx, pollInterval)
}

// rotate looks whether the file at the path is another one now, or shorter
// than what was read, and returns true when reading can go on at once.
func (c *copier) rotate() (bool, error) {
	mine, err := c.file.Stat()
	if err != nil {
		return false, err
	}
	now, err := os.Stat(c.path)
	if err != nil {
		// Between rename and reopen there is none; the runtime still writes to the old one.
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return false, err
	}
	if !os.SameFile(mine, now) {
		// The runtime writes to the new one only after it is done with the old one,
		// so what the old one holds from here on is all there will be.
		if !c.replaced {
			c.replaced = true
			return true, nil
		}
		return true, c.reopen()
	}
	if mine.Size() < c.from.start()+c.read.Offset() {
		return true, c.reopen()
	}
	return false, nil
}

// open opens the file for the first time, and finds where to begin.
func (c *copier) open(ctx context.Context) error {
	for {
		file, err := openRegular(c.path)
		if err == nil {
			c.file = file
			break
		}
		if c.Ended == nil || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		ended, askErr := c.Ended(ctx)
		switch {
		case askErr != nil:
			return askErr
		case ended:
			return err
		}
		if err := sleep(ctx, pollInterval); err != nil {
			return err
		}
	}
	if c.Tail >= 0 {
		info, err := c.file.Stat()
		if err != nil {
			return err
		}
		if c.from, err = lastLines(c.file, info.Size(), c.Tail); err != nil {
			return fmt.Errorf("find the last lines of %s: %w", c.path, err)
		}
		if _, err := c.file.Seek(c.from.start(), io.SeekStart); err != nil {
			return err
		}
	}
	c.read = NewReader(c.file)
	return nil
}

// reopen goes on at the start of what is at the path now.
func (c *copier) reopen() error {
	if err := c.rest(false); err != nil {
		return err
	}
	file, err := openRegular(c.path)
	if err != nil {
		return err
	}
	c.close()
	c.file, c.read, c.from, c.replaced = file, NewReader(file), window{}, false
	return nil
}

func (c *copier) close() {
	if c.file != nil {
		_ = c.file.Close() // only read from
	}
}

// openRegular opens a regular file for reading. Anything else at the path
// could block for ever (a FIFO) or has side effects (a device).
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
