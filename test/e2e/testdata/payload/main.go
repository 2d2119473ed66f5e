// payload is what the end-to-end tests run inside containers where busybox
// will not do: it writes numbered lines at a known speed, eats memory, and
// says what it sees of its own process.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		fail("want a subcommand")
	}
	args := os.Args[2:]
	switch os.Args[1] {
	case "lines":
		lines(number(args, 0), number(args, 1))
		os.Exit(number(args, 2))
	case "flood":
		flood(time.Duration(number(args, 0))*time.Second, number(args, 1))
	case "eat":
		eat(number(args, 0))
	case "trap":
		trap(number(args, 0))
	case "echo-udp":
		if len(args) == 0 {
			fail("too few arguments")
		}
		echoUDP(args[0])
	case "echo":
		if len(args) == 0 {
			fail("too few arguments")
		}
		echo(args[0])
	case "sleep":
		time.Sleep(time.Duration(number(args, 0)) * time.Second)
	default:
		fail("unknown subcommand " + os.Args[1])
	}
}

func fail(msg string) {
	fmt.Fprintln(os.Stderr, "payload:", msg)
	os.Exit(99)
}

func number(args []string, i int) int {
	if i >= len(args) {
		fail("too few arguments")
	}
	n, err := strconv.Atoi(args[i])
	if err != nil {
		fail(err.Error())
	}
	return n
}

// echo sends back what comes on each connection to an address, and ends its half
// when the other has ended.
func echo(address string) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		fail(err.Error())
	}
	for {
		c, err := l.Accept()
		if err != nil {
			fail(err.Error())
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

func echoUDP(address string) {
	c, err := net.ListenPacket("udp", address)
	if err != nil {
		fail(err.Error())
	}
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			fail(err.Error())
		}
		_, _ = c.WriteTo(buf[:n], from)
	}
}

// lines writes count lines to stdout and as many to stderr, perSecond on each;
// 0 for as fast as they are taken.
func lines(count, perSecond int) {
	var wg sync.WaitGroup
	for _, f := range []*os.File{os.Stdout, os.Stderr} {
		wg.Go(func() { numbered(f, count, perSecond) })
	}
	wg.Wait()
}

// numbered writes in batches of a millisecond's lines: a line per write would
// spend the machine on system calls before the log is put to the test.
func numbered(f *os.File, count, perSecond int) {
	batch := perSecond / 1000
	if batch < 1 {
		batch = 1
	}
	start := time.Now()
	buf := make([]byte, 0, 64*batch)
	for n := 0; n < count; {
		buf = buf[:0]
		for range min(batch, count-n) {
			n++
			buf = fmt.Appendf(buf, "line %09d\n", n)
		}
		if _, err := f.Write(buf); err != nil {
			os.Exit(98)
		}
		if perSecond > 0 {
			due := time.Duration(n) * time.Second / time.Duration(perSecond)
			time.Sleep(due - time.Since(start))
		}
	}
}

// flood writes lines of the given length for a time, as fast as they are taken.
func flood(d time.Duration, length int) {
	line := make([]byte, length)
	for i := range line {
		line[i] = byte('a' + i%26)
	}
	line[length-1] = '\n'
	var buf []byte
	for len(buf) < 32<<10 {
		buf = append(buf, line...)
	}
	for start := time.Now(); time.Since(start) < d; {
		if _, err := os.Stdout.Write(buf); err != nil {
			os.Exit(98)
		}
	}
}

// eat touches mib MiB of memory and holds it.
func eat(mib int) {
	var held [][]byte
	for range mib {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		held = append(held, b)
	}
	fmt.Println("ate", len(held))
	time.Sleep(time.Hour)
}

// trap says each signal it gets and ends with the given code at the first
// SIGUSR2; it outlives every other that can be caught.
func trap(code int) {
	c := make(chan os.Signal, 16)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGQUIT)
	fmt.Println("ready")
	for s := range c {
		fmt.Println("signal", int(s.(syscall.Signal)))
		if s == syscall.SIGUSR2 {
			os.Exit(code)
		}
	}
}
