//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
)

func (c *Container) execURL(t testing.TB, want streamsWanted, argv ...string) string {
	t.Helper()
	resp, err := c.p.e.rt.Exec(call(t), &runtimeapi.ExecRequest{
		ContainerId: c.ID, Cmd: argv, Stdin: want.stdin, Stdout: want.stdout, Stderr: want.stderr, Tty: want.tty,
	})
	if err != nil {
		t.Fatalf("exec: %v", err)
	}
	return resp.Url
}

func (c *Container) attachURL(t testing.TB, want streamsWanted) string {
	t.Helper()
	resp, err := c.p.e.rt.Attach(call(t), &runtimeapi.AttachRequest{
		ContainerId: c.ID, Stdin: want.stdin, Stdout: want.stdout, Stderr: want.stderr, Tty: want.tty,
	})
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	return resp.Url
}

func (p *Pod) forwardURL(t testing.TB) string {
	t.Helper()
	resp, err := p.e.rt.PortForward(call(t), &runtimeapi.PortForwardRequest{PodSandboxId: p.ID})
	if err != nil {
		t.Fatalf("port-forward: %v", err)
	}
	return resp.Url
}

func withStdin(once bool) containerOption {
	return func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, once }
}

func wantRead(t testing.TB, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got[:n], err, want)
	}
}

func TestExecStreams(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		p := e.runPod(t)
		c := p.run(t, busyboxImage, sleeper)
		all := streamsWanted{stdin: true, stdout: true, stderr: true}
		t.Run("both outputs come whole, and the exit code behind them", func(t *testing.T) {
			s := mustConnect(t, c.execURL(t, streamsWanted{stdout: true, stderr: true}, "sh", "-c", "head -c 3000000 /dev/zero; echo oops >&2; exit 42"), streamsWanted{stdout: true, stderr: true})
			var wg sync.WaitGroup
			var out int64
			wg.Go(func() { out, _ = io.Copy(io.Discard, s.stdout) })
			errs, _ := io.ReadAll(s.stderr)
			wg.Wait()
			if out != 3000000 || string(errs) != "oops\n" {
				t.Errorf("%d bytes and %q", out, errs)
			}
			if code := s.code(t); code != 42 {
				t.Errorf("exit code %d", code)
			}
		})
		t.Run("stdin goes in, and its end", func(t *testing.T) {
			s := mustConnect(t, c.execURL(t, all, "sh", "-c", "wc -c; exit 7"), all)
			data := bytes.Repeat([]byte("0123456789"), 100000)
			if _, err := s.stdin.Write(data); err != nil {
				t.Fatal(err)
			}
			_ = s.stdin.Close()
			out, _ := io.ReadAll(s.stdout)
			if strings.TrimSpace(string(out)) != "1000000" || s.code(t) != 7 {
				t.Errorf("got %q", out)
			}
		})
		t.Run("a terminal has the client's size, and the next", func(t *testing.T) {
			want := streamsWanted{stdin: true, stdout: true, tty: true}
			s := mustConnect(t, c.execURL(t, want, "sh"), want)
			r := bufio.NewReader(s.stdout)
			for i, size := range []string{"33 101", "12 34"} {
				var rows, columns int
				_, _ = fmt.Sscan(size, &rows, &columns)
				_ = json.NewEncoder(s.resize).Encode(map[string]int{"Width": columns, "Height": rows})
				eventually(t, 10*time.Second, "the size "+size, func() bool {
					if _, err := fmt.Fprintf(s.stdin, "stty size; echo end%d\n", i); err != nil {
						t.Fatal(err)
					}
					var seen strings.Builder
					for {
						line, err := r.ReadString('\n')
						if err != nil {
							t.Fatal(err)
						}
						seen.WriteString(line)
						if strings.HasPrefix(line, fmt.Sprintf("end%d", i)) {
							return strings.Contains(seen.String(), "\n"+size+"\r\n")
						}
					}
				})
			}
			_, _ = io.WriteString(s.stdin, "exit 3\n")
			if code := s.code(t); code != 3 {
				t.Errorf("exit code %d", code)
			}
		})
		t.Run("over WebSocket", func(t *testing.T) {
			socket, resp, err := (&websocket.Dialer{Subprotocols: []string{"v4.channel.k8s.io"}}).Dial(
				strings.Replace(c.execURL(t, all, "sh", "-c", "read x; echo got $x; echo oops >&2; exit 5"), "http", "ws", 1), nil)
			if err != nil {
				t.Fatalf("%v, %v", err, resp)
			}
			defer socket.Close()
			_ = socket.SetReadDeadline(time.Now().Add(slowly(time.Minute)))
			if err := socket.WriteMessage(websocket.BinaryMessage, []byte("\x00word\n")); err != nil {
				t.Fatal(err)
			}
			got := map[byte]string{} // by channel
			for {
				_, data, err := socket.ReadMessage()
				if err != nil {
					break
				}
				got[data[0]] += string(data[1:])
			}
			if got[1] != "got word\n" || got[2] != "oops\n" || !strings.Contains(got[3], `"message":"5"`) {
				t.Errorf("got %q", got)
			}
		})
		t.Run("what a command leaves behind does not keep its client", func(t *testing.T) {
			s := mustConnect(t, c.execURL(t, streamsWanted{stdout: true}, "sh", "-c", "sleep 1000 & echo done"), streamsWanted{stdout: true})
			wantRead(t, s.stdout, "done\n")
			start := time.Now()
			if s.code(t) != 0 || time.Since(start) > slowly(20*time.Second) {
				t.Errorf("it took %s", time.Since(start))
			}
		})
		t.Run("a command ends when its client is gone", func(t *testing.T) {
			s := mustConnect(t, c.execURL(t, streamsWanted{stdout: true}, "sleep", "98765"), streamsWanted{stdout: true})
			ran := func() bool {
				resp, err := e.rt.ExecSync(call(t), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sh", "-c", "ps | grep -c '[s]leep 98765'"}, Timeout: 20})
				return err == nil && strings.TrimSpace(string(resp.Stdout)) == "1"
			}
			eventually(t, 10*time.Second, "the command runs", ran)
			s.cut()
			eventually(t, 10*time.Second, "the command is ended", func() bool { return !ran() })
		})
		t.Run("a URL is good once", func(t *testing.T) {
			url := c.execURL(t, streamsWanted{stdout: true}, "true")
			s := mustConnect(t, url, streamsWanted{stdout: true})
			s.code(t)
			if _, err := connectStreams(url, streamsWanted{stdout: true}); err == nil || !strings.Contains(err.Error(), "404") {
				t.Errorf("the second time: %v", err)
			}
			resp, err := http.Get(url[:strings.LastIndex(url, "/")+1] + "AAAAAAAAAAAAAAAAAAAAAAAAAA")
			if err != nil || resp.StatusCode != http.StatusNotFound {
				t.Errorf("a guessed one: %v, %v", resp, err)
			}
		})
		t.Run("bad requests are refused before a client is sent on its way", func(t *testing.T) {
			for _, bad := range []struct {
				r    *runtimeapi.ExecRequest
				code codes.Code
				text string
			}{
				{&runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: []string{"true"}}, codes.InvalidArgument, "stdout"},
				{&runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: []string{"true"}, Tty: true, Stderr: true}, codes.InvalidArgument, "stderr"},
				{&runtimeapi.ExecRequest{ContainerId: c.ID, Stdout: true}, codes.InvalidArgument, "cmd"},
				{&runtimeapi.ExecRequest{ContainerId: strings.Repeat("0", 64), Cmd: []string{"true"}, Stdout: true}, codes.NotFound, "000"},
			} {
				_, err := e.rt.Exec(call(t), bad.r)
				wantCode(t, err, bad.code, bad.text)
			}
		})
	})
}

func TestAttachStreams(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		p := e.runPod(t)
		all := streamsWanted{stdin: true, stdout: true, stderr: true}
		t.Run("clients share a container, which outlives them", func(t *testing.T) {
			c := p.run(t, busyboxImage, shell("while read x; do echo got $x; echo err $x >&2; done"), withStdin(false))
			a, b := mustConnect(t, c.attachURL(t, all), all), mustConnect(t, c.attachURL(t, all), all)
			eventually(t, 10*time.Second, "both are attached", func() bool { return e.attached(t) == 4 })
			_, _ = io.WriteString(a.stdin, "one\n")
			for _, s := range []*streamClient{a, b} {
				wantRead(t, s.stdout, "got one\n")
				wantRead(t, s.stderr, "err one\n")
			}
			_ = a.stdin.Close() // half closed: stdin stays open for the others
			_, _ = io.WriteString(b.stdin, "two\n")
			wantRead(t, a.stdout, "got two\n")
			a.cut()
			b.cut()
			eventually(t, 10*time.Second, "nobody is attached", func() bool { return e.attached(t) == 0 })
			again := mustConnect(t, c.attachURL(t, all), all)
			_, _ = io.WriteString(again.stdin, "three\n")
			wantRead(t, again.stdout, "got three\n")
			c.stop(t, 0)
			if code := again.code(t); code != 0 {
				t.Errorf("the client's call ends with %d", code)
			}
			if got := string(stream(readLog(t, c.logPath()), "stdout")); got != "got one\ngot two\ngot three\n" {
				t.Errorf("log %q", got)
			}
		})
		t.Run("stdin that is given once ends with its first client", func(t *testing.T) {
			c := p.run(t, busyboxImage, shell("cat; echo the end"), withStdin(true))
			s := mustConnect(t, c.attachURL(t, all), all)
			eventually(t, 10*time.Second, "it is attached", func() bool { return e.attached(t) == 2 })
			_, _ = io.WriteString(s.stdin, "data\n")
			wantRead(t, s.stdout, "data\n")
			_ = s.stdin.Close()
			wantRead(t, s.stdout, "the end\n")
			c.wait(t)
		})
		t.Run("a terminal is the client's, with its size", func(t *testing.T) {
			want := streamsWanted{stdin: true, stdout: true, tty: true}
			c := p.run(t, busyboxImage, shell("read x; stty size; read y; exit 4"), withStdin(false), func(c *runtimeapi.ContainerConfig) { c.Tty = true })
			s := mustConnect(t, c.attachURL(t, want), want)
			_ = json.NewEncoder(s.resize).Encode(map[string]int{"Width": 101, "Height": 33})
			time.Sleep(500 * time.Millisecond) // the size goes its own way
			_, _ = io.WriteString(s.stdin, "\n")
			wantRead(t, s.stdout, "\r\n33 101\r\n")
			_, _ = io.WriteString(s.stdin, "\n")
			if got := c.wait(t).ExitCode; got != 4 {
				t.Errorf("exit code %d", got)
			}
		})
		t.Run("who attaches before the start may write all there is to stdin then, and sees the first byte", func(t *testing.T) {
			c := p.create(t, busyboxImage, shell("echo first; cat; echo the end >&2"), withStdin(true))
			s := mustConnect(t, c.attachURL(t, all), all)
			text := []byte(strings.Repeat("a line that goes in before there is a program to read it\n", 20_000))
			go func() {
				_, _ = s.stdin.Write(text)
				_ = s.stdin.Close()
			}()
			time.Sleep(500 * time.Millisecond) // what may be written is
			c.start(t)
			wantRead(t, s.stdout, "first\n")
			go func() { _, _ = io.Copy(io.Discard, s.stdout) }()
			wantRead(t, s.stderr, "the end\n")
			c.wait(t)
			if got := stream(readLog(t, c.logPath()), "stdout"); string(got) != "first\n"+string(text) {
				t.Errorf("%d bytes of %d are in the log", len(got), len(text)+6)
			}
		})
		t.Run("who attaches before a start that fails is told, and one that leaves holds up no start", func(t *testing.T) {
			c := p.create(t, busyboxImage, command("/no/such/program"), withStdin(true))
			s := mustConnect(t, c.attachURL(t, all), all)
			if _, err := e.rt.StartContainer(call(t), &runtimeapi.StartContainerRequest{ContainerId: c.ID}); err == nil {
				t.Error("a program that does not exist was started")
			}
			if status, _ := io.ReadAll(s.failure); !strings.Contains(string(status), "not started") {
				t.Errorf("the client's status is %q", status)
			}
			c = p.create(t, busyboxImage, shell("cat"), withStdin(true))
			mustConnect(t, c.attachURL(t, all), all).cut()
			time.Sleep(500 * time.Millisecond) // that it is gone is seen
			start := time.Now()
			c.start(t)
			if took := time.Since(start); took > slowly(1500*time.Millisecond) {
				t.Errorf("the start took %s", took)
			}
		})
		t.Run("a client that does not read holds neither container nor log", func(t *testing.T) {
			c := p.run(t, busyboxImage, command("payload", "lines", "300000", "1000000", "0"), withStdin(false))
			mustConnect(t, c.attachURL(t, streamsWanted{stdout: true}), streamsWanted{stdout: true})
			c.wait(t)
			wantNumbered(t, readLog(t, c.logPath()), "stdout", 300000)
		})
	})
}

func TestPortForward(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		for _, c := range []struct {
			name    string
			address string
			options []podOption
		}{
			{"over IPv4", "127.0.0.1:7007", nil},
			{"over IPv6", "[::1]:7007", nil},
			{"in a pod on the host's network", "127.0.0.1:7007", []podOption{hostNetwork}},
		} {
			t.Run("connections side by side "+c.name, func(t *testing.T) {
				p := e.runPod(t, c.options...)
				p.run(t, busyboxImage, command("payload", "echo", c.address))
				s, err := connect(p.forwardURL(t), portforward.ProtocolV1Name)
				if err != nil {
					t.Fatal(err)
				}
				defer s.cut()
				waitForPort(t, s)
				var wg sync.WaitGroup
				for i := range 20 {
					wg.Go(func() {
						f, err := s.forward(7007, 1000+i)
						if err != nil {
							t.Error(err)
							return
						}
						data := bytes.Repeat([]byte{byte('a' + i)}, 300000)
						go func() {
							_, _ = f.data.Write(data)
							_ = f.data.Close()
						}()
						if back, err := io.ReadAll(f.data); err != nil || !bytes.Equal(back, data) {
							t.Errorf("%d bytes of %d came back, %v: %s", len(back), len(data), err, <-f.failed)
						}
					})
				}
				wg.Wait()
			})
		}
		t.Run("a port that nobody listens on is an error that names it", func(t *testing.T) {
			p := e.runPod(t)
			s, err := connect(p.forwardURL(t), portforward.ProtocolV1Name)
			if err != nil {
				t.Fatal(err)
			}
			defer s.cut()
			f, err := s.forward(7008, 1)
			if f.failed == nil { // else the refusal, which may have come before the stream's reply, is told there
				t.Fatal(err)
			}
			text := <-f.failed
			if !strings.Contains(text, "7008") || !strings.Contains(text, "refused") {
				t.Errorf("it says %q", text)
			}
		})
	})
}

// waitForPort waits until the pod's server answers.
func waitForPort(t testing.TB, s *streamClient) {
	t.Helper()
	request := 0
	eventually(t, 10*time.Second, "the server answers", func() bool {
		request++
		f, err := s.forward(7007, request)
		if err != nil {
			return false // a refusal can come before the stream's reply, and resets it
		}
		_, _ = io.WriteString(f.data, "x")
		_ = f.data.Close()
		back, _ := io.ReadAll(f.data)
		return string(back) == "x"
	})
}

// TestClientsThatVanish cuts clients of all kinds at random moments. STREAM_CUTS is
// how many of each.
func TestClientsThatVanish(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		p := e.runPod(t)
		c := p.run(t, busyboxImage, shell("while read x; do echo $x; done"), withStdin(false))
		server := p.run(t, busyboxImage, command("payload", "echo", "127.0.0.1:7007"))
		cuts, seed := int(knob(t, "STREAM_CUTS", 30)), knob(t, "SEED", uint64(time.Now().UnixNano()))
		t.Logf("SEED=%d STREAM_CUTS=%d", seed, cuts)
		round := func(n int) {
			var wg sync.WaitGroup
			for kind := range 3 {
				wg.Go(func() {
					random := rand.New(rand.NewPCG(seed, uint64(kind)))
					for range n {
						vanish(t, kind, c, random)
					}
				})
			}
			wg.Wait()
		}
		round(5) // whatever is made once is there
		eventually(t, 60*time.Second, "only the two containers are left", func() bool { return e.footprint(t).Processes == 2 })
		before := e.footprint(t)
		round(cuts)
		after := e.footprint(t)
		for deadline := time.Now().Add(slowly(time.Minute)); !after.within(before) && time.Now().Before(deadline); after = e.footprint(t) {
			time.Sleep(100 * time.Millisecond)
		}
		if t.Logf("before: %+v, after: %+v", before, after); !after.within(before) {
			t.Error("something is left of clients that are gone")
		}
		resp, err := e.rt.ExecSync(call(t), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sh", "-c", "ps | grep -c '[s]leep 98765'"}, Timeout: 20})
		if err != nil || strings.TrimSpace(string(resp.Stdout)) != "0" {
			t.Errorf("commands of vanished clients run on: %s, %v", resp.GetStdout(), err)
		}
		for _, c := range []*Container{c, server} {
			if st := c.status(t).State; st != runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Errorf("a container is %s", st)
			}
		}
	})
}

func vanish(t *testing.T, kind int, c *Container, random *rand.Rand) {
	moment := time.Duration(random.IntN(150)) * time.Millisecond
	want := streamsWanted{stdin: true, stdout: true}
	var s *streamClient
	var err error
	switch kind {
	case 0:
		want.tty = random.IntN(2) == 0
		s, err = connectStreams(c.execURL(t, want, "sh", "-c", "cat & sleep 98765"), want)
	case 1:
		s, err = connectStreams(c.attachURL(t, want), want)
	case 2:
		s, err = connect(c.p.forwardURL(t), portforward.ProtocolV1Name)
	}
	if err != nil {
		t.Error(err)
		return
	}
	// The library's client waits 30 s for the answer to a stream's opening, even when the
	// connection is gone: that is not waited for.
	talked := make(chan struct{})
	go func() {
		defer close(talked)
		s.talk(kind == 2, random.Uint64())
	}()
	select {
	case <-talked:
	case <-time.After(moment):
	}
	s.cut()
}

// talk says things until the connection is cut.
func (c *streamClient) talk(forwarding bool, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 0))
	if !forwarding {
		go func() { _, _ = io.Copy(io.Discard, c.stdout) }()
	}
	for i := range 20 {
		if forwarding {
			f, err := c.forward(7007, i)
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(io.Discard, f.data) }()
			_, _ = f.data.Write(make([]byte, random.IntN(100000)))
		} else if _, err := io.WriteString(c.stdin, strings.Repeat("x", random.IntN(2000))+"\n"); err != nil {
			return
		}
		time.Sleep(time.Duration(random.IntN(15)) * time.Millisecond)
	}
}

// footprint is what daemon and pump have open and at work.
type footprint struct{ DaemonGoroutines, DaemonFds, PumpGoroutines, PumpFds, Processes int }

// within allows for what comes and goes by itself: idle workers, connections for calls.
func (f footprint) within(o footprint) bool {
	return f.DaemonGoroutines <= o.DaemonGoroutines+4 && f.DaemonFds <= o.DaemonFds+2 &&
		f.PumpGoroutines <= o.PumpGoroutines+4 && f.PumpFds <= o.PumpFds+4 && f.Processes == o.Processes
}

func (e *Engine) statusInfo(t testing.TB) (daemon, pump struct{ Pid, PumpPid, Goroutines, Processes, Attached int }) {
	t.Helper()
	resp, err := e.rt.Status(call(t), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	for key, to := range map[string]any{"daemon": &daemon, "monitor": &pump} {
		if err := json.Unmarshal([]byte(resp.Info[key]), to); err != nil {
			t.Fatalf("status's info %s %q: %v", key, resp.Info[key], err)
		}
	}
	return daemon, pump
}

func (e *Engine) attached(t testing.TB) int {
	_, pump := e.statusInfo(t)
	return pump.Attached
}

func (e *Engine) footprint(t testing.TB) footprint {
	t.Helper()
	daemon, pump := e.statusInfo(t)
	fds := func(pid int) int {
		list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	return footprint{daemon.Goroutines, fds(daemon.Pid), pump.Goroutines, fds(pump.PumpPid), pump.Processes}
}
