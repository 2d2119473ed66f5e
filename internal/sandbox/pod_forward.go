package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/cri-engine/cri-engine/internal/cni"
)

const (
	// forwardDial is how long a pod may take to accept a connection.
	forwardDial = 10 * time.Second
	// forwardLinger is how long a client that sends nothing is waited for once the pod
	// has ended its half of a connection.
	forwardLinger = time.Minute
)

// PortForward connects a client to a port of a ready pod, at the loopback addresses
// of its network namespace, IPv4 first. It returns when both halves have ended
// (each is passed on), or when ctx ends.
func (e *Engine) PortForward(ctx context.Context, podID string, port int32, client io.ReadWriteCloser) error {
	p, err := e.findPod(podID)
	if err != nil {
		return err
	}
	rec := p.read()
	if rec.Phase != phaseReady {
		return fmt.Errorf("forward port %d of pod sandbox %s: it is not ready: %w", port, p.id, ErrPrecondition)
	}
	if port < 1 || port > 65535 {
		return fmt.Errorf("forward port %d of pod sandbox %s: no such port: %w", port, p.id, ErrInvalid)
	}
	conn, err := dialPod(ctx, rec.NetNS, int(port))
	if err != nil {
		return fmt.Errorf("forward port %d of pod sandbox %s: %w", port, p.id, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	return forward(conn, client)
}

// dialPod dials in a network namespace, "" for the host's.
func dialPod(ctx context.Context, netns string, port int) (*net.TCPConn, error) {
	var conn net.Conn
	dial := func() error {
		var errs []error
		for _, host := range []string{"127.0.0.1", "::1"} {
			d := net.Dialer{Timeout: forwardDial}
			var err error
			if conn, err = d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port))); err == nil {
				return nil
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
	if netns == "" {
		if err := dial(); err != nil {
			return nil, err
		}
	} else if err := cni.InNetNS(netns, dial); err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// forward moves bytes both ways. Its copy from the client ends with the client's
// connection, or with conn.
func forward(conn *net.TCPConn, client io.ReadWriteCloser) error {
	sent := make(chan struct{})
	linger := time.NewTimer(forwardLinger)
	defer linger.Stop()
	go func() {
		defer close(sent)
		_, _ = io.Copy(&timedWriter{conn, linger}, client) // an end is an end, whoever made it
		_ = conn.CloseWrite()
	}()
	_, err := io.Copy(client, conn)
	_ = client.Close() // our half; what the client still sends goes on
	if err != nil {
		return fmt.Errorf("connection: %w", err)
	}
	linger.Reset(forwardLinger)
	select {
	case <-sent:
	case <-linger.C:
	}
	return nil
}

// timedWriter restarts a timer with each write.
type timedWriter struct {
	io.Writer
	timer *time.Timer
}

func (w *timedWriter) Write(p []byte) (int, error) {
	w.timer.Reset(forwardLinger)
	return w.Writer.Write(p)
}
