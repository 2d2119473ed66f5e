package monitor

import (
	"bufio"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

func TestAttachedClients(t *testing.T) {
	n := fakeNode(t)
	readLine := func(t *testing.T, r *bufio.Reader, want string) {
		t.Helper()
		if line, err := r.ReadString('\n'); err != nil || line != want {
			t.Fatalf("got %q, %v, want %q", line, err, want)
		}
	}
	t.Run("each sees what is written, and the line that waits for its end", func(t *testing.T) {
		b := n.run(n.shell("printf 'name? '; read x; echo got $x; read y; echo then $y >&2"), withStdin)
		in := n.c.Stdin(b.id)
		defer in.Close()
		var clients [3]*Attached
		for i := range clients {
			clients[i] = n.c.Attach(b.id)
			defer clients[i].Close()
			prompt := make([]byte, 6)
			if _, err := io.ReadFull(clients[i].Stdout, prompt); err != nil || string(prompt) != "name? " {
				t.Fatalf("client %d sees %q, %v", i, prompt, err)
			}
		}
		errs := make(chan string)
		go func() {
			all, _ := io.ReadAll(clients[0].Stderr)
			errs <- string(all)
		}()
		_, err := in.Write(n.ctx(), []byte("me\n"))
		must(t, err)
		for _, c := range clients {
			readLine(t, bufio.NewReader(c.Stdout), "got me\n")
		}
		_, err = in.Write(n.ctx(), []byte("you\n"))
		must(t, err)
		if got := <-errs; got != "then you\n" {
			t.Errorf("stderr is %q", got)
		}
		if rest, err := io.ReadAll(clients[1].Stdout); err != nil || len(rest) > 0 {
			t.Errorf("the end brings %q, %v", rest, err)
		}
		b.wait()
		if lines := b.lines("stdout"); len(lines) != 1 || lines[0] != "name? got me" {
			t.Errorf("the log has %q", lines)
		}
		n.delete(b.id)
	})
	t.Run("one that is connected misses no answer to what is written then", func(t *testing.T) {
		b := n.run(n.shell("while read x; do echo got $x; echo err $x >&2; done"), withStdin)
		in := n.c.Stdin(b.id)
		defer in.Close()
		for range 50 {
			a := n.c.Attach(b.id)
			a.Connect(true, true)
			_, err := in.Write(n.ctx(), []byte("it\n"))
			must(t, err)
			readLine(t, bufio.NewReader(a.Stdout), "got it\n")
			readLine(t, bufio.NewReader(a.Stderr), "err it\n")
			a.Close()
		}
		must(t, n.c.CloseStdin(n.ctx(), b.id, ""))
		b.wait()
		n.delete(b.id)
	})
	t.Run("one that does not read holds nobody back", func(t *testing.T) {
		b := n.run(n.shell("read go; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); echo $i; done"), withStdin)
		slow, fast := n.c.Attach(b.id), n.c.Attach(b.id)
		defer slow.Close()
		defer fast.Close()
		in := n.c.Stdin(b.id)
		defer in.Close()
		first := make(chan error)
		lines := make(chan int)
		go func() {
			r := bufio.NewReader(fast.Stdout)
			count := 0
			for ; ; count++ {
				_, err := r.ReadString('\n')
				if count == 0 {
					first <- err
				}
				if err != nil {
					break
				}
			}
			lines <- count
		}()
		go func() { _, _ = slow.Stdout.Read(make([]byte, 1)) }()
		eventually(t, "both are attached", func() bool { return n.status().Attached == 2 })
		_, err := in.Write(n.ctx(), []byte("\n"))
		must(t, err)
		must(t, <-first)
		if e := b.wait(); e.Code != 0 {
			t.Errorf("it ended with %d", e.Code)
		}
		checkNumbers(t, b.lines("stdout"), 200000)
		if got := <-lines; got == 0 {
			t.Error("the fast client got nothing")
		}
		n.delete(b.id)
	})
	t.Run("a write that nobody reads ends with its client, and the next goes on behind it", func(t *testing.T) {
		b := n.run(n.shell("sleep 1.5; exec wc -c"), func(r *CreateRequest, _ map[string]any) { r.Stdin, r.StdinOnce = true, false })
		in := n.c.Stdin(b.id)
		defer in.Close()
		ctx, cancel := context.WithTimeout(n.ctx(), 100*time.Millisecond)
		defer cancel()
		if _, err := in.Write(ctx, make([]byte, 1<<20)); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a write into a full pipe ends with %v", err)
		}
		_, err := in.Write(n.ctx(), []byte("abc"))
		must(t, err)
		must(t, n.c.CloseStdin(n.ctx(), b.id, ""))
		b.wait()
		out := strings.TrimSpace(strings.Join(b.lines("stdout"), ""))
		if len(out) < 5 || out == "3" {
			t.Errorf("it read %q bytes", out)
		}
		n.delete(b.id)
	})
	t.Run("the end of the one that had it ends stdin that is given once", func(t *testing.T) {
		b := n.run(n.shell("exec cat"), func(r *CreateRequest, _ map[string]any) { r.Stdin, r.StdinOnce = true, true })
		in := n.c.Stdin(b.id)
		_, err := in.Write(n.ctx(), []byte("once\n"))
		must(t, err)
		in.Close()
		if e := b.wait(); e.Code != 0 {
			t.Errorf("it ended with %d", e.Code)
		}
		n.delete(b.id)
	})
	eventually(t, "nobody is attached any more", func() bool { return n.status().Attached == 0 })
	t.Run("they stay through the pump's death", func(t *testing.T) {
		b := n.run(n.shell("while read x; do echo $x; done"), withStdin)
		in, c := n.c.Stdin(b.id), n.c.Attach(b.id)
		defer in.Close()
		defer c.Close()
		r := bufio.NewReader(c.Stdout)
		say := func(text string) {
			t.Helper()
			_, err := in.Write(n.ctx(), []byte(text))
			must(t, err)
		}
		go func() { // until the client is attached, it misses what is said
			for n.ctx().Err() == nil {
				if n.status().Attached > 0 {
					say("one\n")
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		}()
		readLine(t, r, "one\n")
		n.killOne(false)
		done := make(chan struct{})
		go func() {
			defer close(done)
			readLine(t, r, "two\n")
		}()
		eventually(t, "it is attached again", func() bool { return n.status().Attached > 0 })
		say("two\n")
		<-done
		n.delete(b.id)
	})
}
