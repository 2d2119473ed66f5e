package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-engine/cri-engine/internal/streaming"
)

// streamed is a fake runtime whose commands are: they write their words, and what
// they read; a container echoes; ports do, too.
type streamed struct {
	server *streaming.Server
	cut    func() // ends all connections
}

func withStreams(t testing.TB, f *fakeRuntime) {
	t.Helper()
	s, err := streaming.Listen(streaming.Options{
		Engine: fakeStreams{f}, Address: "127.0.0.1:0", IdleTimeout: time.Minute, CreationTimeout: 10 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	f.streams = &streamed{server: s, cut: s.Close}
}

type fakeStreams struct{ f *fakeRuntime }

func (fakeStreams) Exec(ctx context.Context, _ string, command []string, s streaming.Streams) (int32, error) {
	fmt.Fprintln(s.Stdout, strings.Join(command, "|"))
	if s.Stderr != nil {
		fmt.Fprintln(s.Stderr, "terminal", s.TTY)
	}
	switch command[0] {
	case "fail":
		return 0, errors.New("there is no such program")
	case "hang":
		<-ctx.Done()
		return 0, ctx.Err()
	}
	if s.Stdin != nil {
		_, _ = io.Copy(s.Stdout, s.Stdin)
	}
	return 7, nil
}

// Attach is a container that echoes to its clients or, when they want no output, to
// its log, and ends with its stdin.
func (s fakeStreams) Attach(ctx context.Context, id string, to streaming.Streams) error {
	if to.Stdout == nil {
		data, _ := io.ReadAll(to.Stdin)
		s.f.end(id, string(data), 3)
		return nil
	}
	if to.Stdin != nil {
		_, _ = io.Copy(to.Stdout, to.Stdin)
	}
	if to.Stderr != nil {
		fmt.Fprintln(to.Stderr, "the end")
	}
	if to.TTY && ctx.Err() == nil {
		s.f.end(id, "", 5)
	}
	return nil
}

// end waits for a container's start, and ends it with a line in its log.
func (f *fakeRuntime) end(id, line string, code int32) {
	for range 500 {
		f.mu.Lock()
		c := f.container(id)
		if c != nil && c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			if line != "" {
				_ = os.WriteFile(c.GetLogPath(), []byte("2026-01-02T03:04:05Z stdout F "+line), 0o600)
			}
			c.State, c.ExitCode = runtimeapi.ContainerState_CONTAINER_EXITED, code
			f.mu.Unlock()
			return
		}
		f.mu.Unlock()
		time.Sleep(10 * time.Millisecond)
	}
}

func (fakeStreams) PortForward(_ context.Context, _ string, port int32, client streaming.ReadWriteCloser) error {
	if port == 9 {
		return errors.New("connection refused")
	}
	data, err := io.ReadAll(client)
	if err == nil {
		_, err = client.Write(bytes.ToUpper(data))
	}
	return err
}

func (f *fakeRuntime) Exec(_ context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	url, err := f.streams.server.Exec(r)
	return &runtimeapi.ExecResponse{Url: url}, err
}

func (f *fakeRuntime) Attach(_ context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	f.mu.Lock()
	early := f.attachToRunning && f.container(r.GetContainerId()).GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING
	f.mu.Unlock()
	if early {
		return nil, status.Error(codes.FailedPrecondition, "the container does not run")
	}
	url, err := f.streams.server.Attach(r)
	return &runtimeapi.AttachResponse{Url: url}, err
}

func (f *fakeRuntime) PortForward(_ context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	url, err := f.streams.server.PortForward(r)
	return &runtimeapi.PortForwardResponse{Url: url}, err
}

func (f *fakeRuntime) GetContainerEvents(_ *runtimeapi.GetEventsRequest, s grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	for _, id := range []string{"pod1", "0123456789abcdef"} {
		err := s.Send(&runtimeapi.ContainerEventResponse{
			ContainerId: id, ContainerEventType: runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, CreatedAt: 1,
			PodSandboxStatus:   &runtimeapi.PodSandboxStatus{Id: "pod1", Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n"}},
			ContainersStatuses: []*runtimeapi.ContainerStatus{{Id: "0123456789abcdef", Metadata: &runtimeapi.ContainerMetadata{Name: "c\x1b[m"}}},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func TestExecStreams(t *testing.T) {
	f := populated(t)
	withStreams(t, f)
	f.try(t, "exec", "app", "ls", "-l", "--color").want(t, 7, "ls|-l|--color\n", "terminal false\n")
	f.tryContext(t.Context(), t, "in\n", "exec", "-i", "app", "cat").want(t, 7, "cat\nin\n", "terminal false\n")
	f.tryContext(t.Context(), t, "in\n", "exec", "-it", "app", "cat").want(t, 7, "cat\nin\n", "")
	f.try(t, "exec", "app", "fail").want(t, 1, "fail\n", "there is no such program")
	f.try(t, "exec", "-i", "--timeout", "1", "app", "true").want(t, 1, "", "--timeout is for commands without")
	t.Run("interrupted", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if r := f.tryContext(ctx, t, "", "exec", "app", "hang"); r.code == 0 {
			t.Errorf("code %d, %q", r.code, r.err)
		}
	})
	t.Run("a connection that is cut is no success", func(t *testing.T) {
		time.AfterFunc(300*time.Millisecond, f.streams.cut)
		if r := f.try(t, "exec", "app", "hang"); r.code != 1 || !strings.Contains(r.err, "exec app: ") {
			t.Errorf("code %d, %q", r.code, r.err)
		}
	})
}

func TestAttach(t *testing.T) {
	f := populated(t)
	withStreams(t, f)
	f.tryContext(t.Context(), t, "hello\n", "attach", "-i", "app").want(t, 0, "hello\n", "the end\n")
	f.try(t, "attach", "none").want(t, 1, "", "attach none: no such running container")
	f.try(t, "attach", "--detach-keys", "ctrl-1", "app").want(t, 1, "", "there is no ctrl-1")
}

func TestDetachKeys(t *testing.T) {
	keys, err := parseKeys("ctrl-p,q")
	if err != nil || string(keys) != "\x10q" {
		t.Fatalf("%q, %v", keys, err)
	}
	for _, c := range []struct {
		in, want string
		detached bool
	}{
		{"abc", "abc", false},
		{"a\x10qb", "a", true},
		{"\x10a\x10", "\x10a\x10", false},
		{"\x10\x10qz", "\x10", true},
	} {
		for _, size := range []int{1, 2, 100} {
			left := false
			d := &detacher{in: io.MultiReader(chunks(c.in, size)...), keys: keys, done: func() { left = true }}
			got, err := io.ReadAll(d)
			if string(got) != c.want || left != c.detached || errors.Is(err, errDetached) != c.detached {
				t.Errorf("%q by %d: %q, %v, %v", c.in, size, got, left, err)
			}
		}
	}
}

func chunks(s string, size int) (all []io.Reader) {
	for len(s) > 0 {
		n := min(size, len(s))
		all = append(all, strings.NewReader(s[:n]))
		s = s[n:]
	}
	return all
}

// lineWriter passes on each line that is written.
type lineWriter chan string

func (w lineWriter) Write(p []byte) (int, error) { w <- string(p); return len(p), nil }

func TestPortForward(t *testing.T) {
	f := populated(t)
	withStreams(t, f)
	c, err := dial(t.Context(), f.socket, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	ctx, cancel := context.WithCancel(t.Context())
	out, errOut, ended := make(lineWriter, 10), make(lineWriter, 10), make(chan error)
	go func() {
		o := &forwardOptions{addresses: []string{"127.0.0.1"}}
		ended <- runPortForward(ctx, &call{options: &o.options, client: c, args: []string{"web", ":80", "0:9"}, out: out, errOut: errOut}, o)
	}()
	address := func() (to string) {
		line := <-out
		if _, err := fmt.Sscanf(line, "Forwarding from %s to", &to); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		return to
	}
	good, refused := address(), address()
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			nc, err := net.Dial("tcp", good)
			if err != nil {
				t.Error(err)
				return
			}
			defer nc.Close()
			text := strings.Repeat(string(rune('a'+i)), 50000)
			_, _ = io.WriteString(nc, text)
			_ = nc.(*net.TCPConn).CloseWrite()
			if back, err := io.ReadAll(nc); err != nil || string(back) != strings.ToUpper(text) {
				t.Errorf("%d bytes came back, %v", len(back), err)
			}
		})
	}
	wg.Wait()
	nc, err := net.Dial("tcp", refused)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if line := <-errOut; !strings.Contains(line, "port 9") || !strings.Contains(line, "connection refused") {
		t.Errorf("%q", line)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("interrupted: %v", err)
	}
	if _, err := net.Dial("tcp", good); err == nil {
		t.Error("it still listens")
	}
}

func TestParsePorts(t *testing.T) {
	got, err := parsePorts([]string{"80", "8080:80", ":443", "0:1"})
	want := []forwardedPort{{80, 80}, {8080, 80}, {0, 443}, {0, 1}}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "0", "a", "1:2:3", "65536", "80:", "-1"} {
		if got, err := parsePorts([]string{bad}); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

func TestEvents(t *testing.T) {
	f := populated(t)
	r := f.try(t, "events")
	if r.code != 1 || !strings.Contains(r.err, "the runtime ended the events") {
		t.Errorf("code %d, %q", r.code, r.err)
	}
	lines := strings.Split(r.out, "\n")
	if len(lines) != 3 || !strings.HasSuffix(lines[0], "  started  pod1  pod of n/p") || !strings.Contains(lines[1], "0123456789abc  container c") || strings.Contains(r.out, "\x1b") {
		t.Errorf("%q", r.out)
	}
}
