//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/cri-engine/cri-engine/test/coverage"
)

// What tests send is noted, so that test/coverage/table.tsv names for each RPC and
// field tests that really send it. Each world writes a file of its own.

var sent struct {
	mu      sync.Mutex // Protects names.
	names   map[string]bool
	skipped bool // the test found, maybe after a request, that it can't run here
}

func noteSent(method string, request any) {
	message, ok := request.(proto.Message)
	if !ok {
		return
	}
	sent.mu.Lock()
	defer sent.mu.Unlock()
	if sent.names == nil {
		sent.names = map[string]bool{}
	}
	sent.names[method[strings.LastIndex(method, "/")+1:]] = true
	coverage.Sent(message, func(name string) { sent.names[name] = true })
}

var notingSent = []grpc.DialOption{
	grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, request, reply any, c *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		noteSent(method, request)
		return invoke(ctx, method, request, reply, c, opts...)
	}),
	grpc.WithChainStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, c *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		s, err := open(ctx, d, c, method, opts...)
		return &notingStream{s, method}, err
	}),
}

type notingStream struct {
	grpc.ClientStream
	method string
}

func (s *notingStream) SendMsg(m any) error {
	noteSent(s.method, m)
	return s.ClientStream.SendMsg(m)
}

func sentDir() string { return filepath.Join(scratchDir, "sent") }

// writeSent writes down what this world's test sent: a world has one test.
func writeSent() error {
	test := strings.Trim(strings.Split(flag.Lookup("test.run").Value.String(), "/")[0], "^$")
	if sent.skipped {
		return nil
	}
	sent.mu.Lock()
	defer sent.mu.Unlock()
	var lines strings.Builder
	for _, name := range slices.Sorted(maps.Keys(sent.names)) {
		fmt.Fprintln(&lines, name, test)
	}
	f, err := os.CreateTemp(sentDir(), test+"-")
	if err != nil {
		return err
	}
	_, err = f.WriteString(lines.String())
	return errors.Join(err, f.Close())
}

// readSent returns the tests that sent each RPC and field.
func readSent() (map[string]map[string]bool, error) {
	files, err := filepath.Glob(filepath.Join(sentDir(), "*"))
	if err != nil {
		return nil, err
	}
	all := map[string]map[string]bool{}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			name, test, _ := strings.Cut(lines.Text(), " ")
			if all[name] == nil {
				all[name] = map[string]bool{}
			}
			all[name][test] = true
		}
		f.Close()
	}
	return all, nil
}

// checkSent compares what was sent with what the table says of this suite's tests,
// but for those that were skipped. E2E_SENT names a file to write it to.
func checkSent() error {
	all, err := readSent()
	if err != nil {
		return err
	}
	if file := os.Getenv("E2E_SENT"); file != "" {
		var b strings.Builder
		for _, name := range slices.Sorted(maps.Keys(all)) {
			fmt.Fprintf(&b, "%s\t%s\n", name, strings.Join(slices.Sorted(maps.Keys(all[name])), " "))
		}
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			return err
		}
	}
	ran := map[string]bool{}
	for _, tests := range all {
		maps.Copy(ran, tests)
	}
	rows, err := coverage.Table()
	if err != nil {
		return err
	}
	var wrong []error
	for _, row := range rows {
		for _, test := range row.Tests {
			if ran[test] && !strings.HasSuffix(row.Name, ".*") && !all[row.Name][test] {
				wrong = append(wrong, fmt.Errorf("test/coverage/table.tsv names %s for %s, which it never sends", test, row.Name))
			}
		}
	}
	return errors.Join(wrong...)
}

func TestTheNotesOfWhatIsSentHaveFieldsOfAllDepths(t *testing.T) {
	inWorld(t, func(t *testing.T, w *World) {
		e := w.engine(t)
		e.runPod(t)
		for _, name := range []string{"RunPodSandbox", "RunPodSandboxRequest.config", "PodSandboxMetadata.uid", "NamespaceOption.pid"} {
			sent.mu.Lock()
			found := sent.names[name]
			sent.mu.Unlock()
			if !found {
				t.Errorf("%s was sent and not noted", name)
			}
		}
	})
}
