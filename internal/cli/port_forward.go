package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
)

// forwardOptions are the flags of port-forward.
type forwardOptions struct {
	options
	addresses []string
}

func portForwardCommand() *cobra.Command {
	var o forwardOptions
	cmd := &cobra.Command{
		Use:   "port-forward POD [LOCAL:]REMOTE...",
		Short: "Reach ports of a pod from here",
		Long: `Listen on local ports and connect whoever comes to ports of a pod, until interrupted. Without
LOCAL the port's own number is taken, with LOCAL 0 (or ":REMOTE") any free one.`,
		Example: `  cri-engine port-forward web 8080:80
  cri-engine port-forward web :80 :443`,
		Args: cobra.MinimumNArgs(2),
		RunE: o.connected(func(ctx context.Context, c *call) error { return runPortForward(ctx, c, &o) }),
	}
	o.addEndpoint(cmd, defaultTimeout)
	cmd.ValidArgsFunction = o.complete(1, completePods)
	cmd.Flags().StringSliceVar(&o.addresses, "address", []string{"127.0.0.1", "::1"}, "`ADDRESSES` to listen on")
	return cmd
}

// forwardedPort is a local port and what it leads to.
type forwardedPort struct{ local, remote uint16 }

func parsePorts(args []string) ([]forwardedPort, error) {
	var ports []forwardedPort
	for _, arg := range args {
		local, remote, both := strings.Cut(arg, ":")
		if !both {
			local, remote = arg, arg
		}
		if local == "" {
			local = "0"
		}
		l, lerr := strconv.ParseUint(local, 10, 16)
		r, rerr := strconv.ParseUint(remote, 10, 16)
		if lerr != nil || rerr != nil || r == 0 {
			return nil, fmt.Errorf("port %q: want REMOTE or LOCAL:REMOTE", arg)
		}
		ports = append(ports, forwardedPort{uint16(l), uint16(r)})
	}
	return ports, nil
}

func runPortForward(ctx context.Context, c *call, o *forwardOptions) error {
	ports, err := parsePorts(c.args[1:])
	if err != nil {
		return err
	}
	list, err := c.pods(ctx, nil)
	if err != nil {
		return err
	}
	pod, err := list.find(c.args[0])
	if err != nil {
		return about("port-forward", c.args[0], err)
	}
	request := &runtimeapi.PortForwardRequest{PodSandboxId: pod.GetId()}
	for _, p := range ports {
		request.Port = append(request.Port, int32(p.remote))
	}
	r, err := c.runtime.PortForward(ctx, request)
	if err != nil {
		return about("port-forward", c.args[0], err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := dialStream(ctx, r.GetUrl(), portforward.ProtocolV1Name)
	if err != nil {
		return about("port-forward", c.args[0], err)
	}
	defer conn.Close()
	f := &forwarder{conn: conn, errOut: c.errOut}
	if err := f.listen(ctx, c.out, o.addresses, ports); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		err = nil
	case <-conn.CloseChan():
		err = about("port-forward", c.args[0], errCut)
	}
	cancel()
	f.wg.Wait()
	return err
}

// forwarder serves local connections over one connection to the runtime.
type forwarder struct {
	conn    httpstream.Connection
	errOut  io.Writer
	wg      sync.WaitGroup
	request atomic.Int64
}

// listen takes connections until ctx ends. Of several addresses one must work: a machine
// may be without IPv6.
func (f *forwarder) listen(ctx context.Context, out io.Writer, addresses []string, ports []forwardedPort) error {
	for _, p := range ports {
		var errs []error
		local := p.local
		for _, address := range addresses {
			l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(address, strconv.Itoa(int(local))))
			if err != nil {
				errs = append(errs, err)
				continue
			}
			if a, ok := l.Addr().(*net.TCPAddr); ok {
				local = uint16(a.Port) // the same for the next address
			}
			fmt.Fprintf(out, "Forwarding from %s to %d\n", l.Addr(), p.remote)
			context.AfterFunc(ctx, func() { l.Close() })
			f.wg.Go(func() { f.accept(ctx, l, p.remote) })
		}
		if len(errs) == len(addresses) {
			return errors.Join(errs...)
		}
	}
	return nil
}

func (f *forwarder) accept(ctx context.Context, l net.Listener, port uint16) {
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed, at the end
		}
		f.wg.Go(func() {
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			if err := f.serve(c, port); err != nil && ctx.Err() == nil {
				fmt.Fprintf(f.errOut, "%s: port %d: %s\n", program, port, clean(err.Error()))
			}
		})
	}
}

// serve connects one local connection; both halves end each for itself.
func (f *forwarder) serve(c net.Conn, port uint16) error {
	id := []string{
		portforward.PortHeader, strconv.Itoa(int(port)),
		portforward.PortForwardRequestIDHeader, strconv.FormatInt(f.request.Add(1), 10),
	}
	failure, err := openStream(f.conn, portforward.StreamTypeError, id...)
	if err != nil {
		return err
	}
	_ = failure.Close() // nothing is written there
	data, err := openStream(f.conn, portforward.StreamTypeData, id...)
	if err != nil {
		return err
	}
	defer f.conn.RemoveStreams(failure, data)
	failed := make(chan string, 1)
	go func() { // ends with the stream, which ends with the connection
		text, _ := io.ReadAll(io.LimitReader(failure, maxStatus))
		failed <- string(text)
	}()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = io.Copy(data, c)
		_ = data.Close()
	}()
	_, _ = io.Copy(c, data)
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.CloseWrite()
	}
	if text := <-failed; text != "" {
		return errors.New(text)
	}
	<-sent
	return nil
}
