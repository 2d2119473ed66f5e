package monitor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// The messages between keeper and pump, one packet each. The pump's are
// acknowledged by their sequence number, after the keeper has done what they
// say; the keeper's are not.
const (
	opHello  = "hello"  // pump: I am here (Version)
	opPut    = "put"    // pump: hold this record, these fds (replacing), and no longer those in Drop; keeper: what I hold
	opForget = "forget" // pump: close all of Key's
	opReady  = "ready"  // keeper: these were all; go on
	opExited = "exited" // keeper: my child Pid ended, reaped once its record says so
	opStop   = "stop"   // keeper: finish what runs and exit, another comes or none
	opAck    = "ack"
)

// message is a packet between keeper and pump. JSON, with fds beside it.
type message struct {
	Seq     uint64   `json:"seq,omitempty"`
	Op      string   `json:"op"`
	Record  *record  `json:"record,omitempty"`
	Roles   []string `json:"roles,omitempty"` // of the fds that come with it, in order
	Drop    []string `json:"drop,omitempty"`
	Key     key      `json:"key,omitempty"`
	Pid     int      `json:"pid,omitempty"`
	Ended   *ended   `json:"ended,omitempty"`
	Version string   `json:"version,omitempty"`
	// Origin is what the monitor's own settings were when it started.
	Origin *origin `json:"origin,omitempty"`
	Error  string  `json:"error,omitempty"`
}

// origin is what the monitor changed about itself, for its children to have it back.
type origin struct {
	// OOMScoreAdj, and whether it was changed.
	OOMScoreAdj int  `json:"oomScoreAdj"`
	Lowered     bool `json:"lowered"`
	// Binary is the path that the monitor was started by; an upgrade starts what is there then.
	Binary string `json:"binary"`
}

// maxPacket bounds one packet: a record and its frame.
const maxPacket = maxRecord + 4<<10

// link is one end of the socket between keeper and pump.
type link struct {
	conn *net.UnixConn

	mu      sync.Mutex // Protects what follows, and the order of packets.
	seq     uint64
	waiting map[uint64]chan error
	dead    bool
}

// newLink takes over fd, a connected SOCK_SEQPACKET socket.
func newLink(fd int) (*link, error) {
	f := os.NewFile(uintptr(fd), "link")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.New("the link is not a unix socket")
	}
	return &link{conn: u, waiting: map[uint64]chan error{}}, nil
}

// fd returns the socket's number, valid while the link is.
func (l *link) fd() (int, error) {
	raw, err := l.conn.SyscallConn()
	if err != nil {
		return -1, err
	}
	n := -1
	err = raw.Control(func(fd uintptr) { n = int(fd) })
	return n, err
}

func (l *link) send(m *message, fds ...int) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(data) > maxPacket {
		return fmt.Errorf("%w: record of %d bytes", errTooLong, len(data))
	}
	_, _, err = l.conn.WriteMsgUnix(data, unix.UnixRights(fds...), nil)
	return err
}

// receive returns the next packet. Its fds are the caller's to close.
func (l *link) receive(buf []byte) (*message, []int, error) {
	oob := make([]byte, unix.CmsgSpace(len(roles)*4))
	n, oobn, flags, _, err := l.conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, nil, err
	}
	fds, err := parseFds(oob[:oobn])
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.New("packet was cut off")
	}
	m := &message{}
	if err == nil {
		err = json.Unmarshal(buf[:n], m)
	}
	if err == nil && len(m.Roles) != len(fds) {
		err = fmt.Errorf("packet has %d fds for %d roles", len(fds), len(m.Roles))
	}
	if err != nil {
		closeAll(fds)
		return nil, nil, err
	}
	return m, fds, nil
}

func parseFds(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for i := range msgs {
		got, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // not fds
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// call sends a packet and waits until the keeper has done it. When the keeper is
// dead it returns nil at once: this process is about to become the keeper, and
// its own table, which the caller changed first, is then what counts.
func (l *link) call(m *message, fds ...int) error {
	done := make(chan error, 1)
	l.mu.Lock()
	if l.dead {
		l.mu.Unlock()
		return nil
	}
	l.seq++
	m.Seq = l.seq
	l.waiting[m.Seq] = done
	err := l.send(m, fds...)
	if err != nil {
		delete(l.waiting, m.Seq)
	}
	l.mu.Unlock()
	if err != nil {
		if isGone(err) {
			return nil
		}
		return fmt.Errorf("tell the keeper: %w", err)
	}
	return <-done
}

// isGone: the other end of the socket is closed.
func isGone(err error) bool {
	return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.ENOTCONN) || errors.Is(err, io.EOF)
}

// acknowledged ends the call that m answers.
func (l *link) acknowledged(m *message) {
	l.mu.Lock()
	done := l.waiting[m.Seq]
	delete(l.waiting, m.Seq)
	l.mu.Unlock()
	if done == nil {
		return
	}
	if m.Error != "" {
		done <- errors.New("keeper: " + m.Error)
		return
	}
	done <- nil
}

// died ends all calls: see call.
func (l *link) died() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = true
	for seq, done := range l.waiting {
		done <- nil
		delete(l.waiting, seq)
	}
}
